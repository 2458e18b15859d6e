//! `any`: a short answer to questions for every type at once (RFC 8482 4.2).

use domain::{
    base::{CharStr, iana::Rtype},
    rdata::Hinfo,
};

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, Query, Reply, record},
    program::SiteBuilder,
    router::Rest,
};

const NAME: &str = "any";
/// CoreDNS's, seconds: so that the client sees it where it does not read the text.
const TTL: u32 = 8482;

struct Any;

/// `any`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.plain(0, 0)?;
    site.add(Any);
    Ok(())
}

impl Plugin for Any {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        if query.qtype != Rtype::ANY {
            return Step::Next;
        }
        let text = |text: &'static str| CharStr::from_octets(bytes::Bytes::from_static(text.as_bytes()));
        let (Ok(cpu), Ok(os)) = (text("ANY obsoleted"), text("See RFC 8482")) else { return Step::Next };
        let answer = vec![record(query.name.clone(), TTL, Data::Hinfo(Hinfo::new(cpu, os)))];
        Step::Reply(Reply { authoritative: true, plugin: NAME, answer, ..Reply::default() })
    }
}
