//! `chaos`: says in class CH which program this is and on which host (RFC 4892).

use std::fs;

use bytes::Bytes;
use domain::{
    base::{
        Ttl,
        iana::{Class, Rtype},
    },
    rdata::Txt,
};

use super::{Plugin, Step, pattern::name_text};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, Query, Record, Reply},
    program::SiteBuilder,
    router::Rest,
};

const NAME: &str = "chaos";

/// `chaos [VERSION] [AUTHORS…]`
struct Chaos {
    version: Txt<Bytes>,
    authors: Vec<Txt<Bytes>>,
    host: Txt<Bytes>,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let words = directive.plain(0, usize::MAX)?;
    let text = |text: &str| {
        let built = Txt::build_from_slice(text.as_bytes());
        built.map_err(|_| directive.error(format!("chaos: a text of {} bytes is too long", text.len())))
    };
    let (version, authors) = match words.split_first() {
        Some((version, authors)) => (version.text.as_str(), authors),
        None => (concat!("Podwire-", env!("CARGO_PKG_VERSION")), words),
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".to_owned());
    let chaos = Chaos {
        version: text(version)?,
        authors: authors.iter().map(|author| text(&author.text)).collect::<Result<_, _>>()?,
        host: text(host.trim())?,
    };
    site.add(chaos);
    Ok(())
}

impl Plugin for Chaos {
    fn name(&self) -> &'static str {
        NAME
    }

    fn knows(&self, class: Class) -> bool {
        class == Class::CH
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        if query.qtype != Rtype::TXT {
            return Step::Next;
        }
        let texts = match name_text(&query.name).as_str() {
            "version.bind." | "version.server." => std::slice::from_ref(&self.version),
            "hostname.bind." | "id.server." => std::slice::from_ref(&self.host),
            "authors.bind." => &self.authors[..],
            _ => return Step::Next,
        };
        let record =
            |text: &Txt<Bytes>| Record::new(query.name.clone(), Class::CH, Ttl::from_secs(0), Data::Txt(text.clone()));
        Step::Reply(Reply { plugin: NAME, answer: texts.iter().map(record).collect(), ..Reply::default() })
    }
}
