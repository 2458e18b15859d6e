//! `minimal`: an answer with records in it goes without authority and additional records.

use domain::base::iana::Rcode;

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{Query, Reply},
    program::SiteBuilder,
};

/// `minimal`
struct Minimal;

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.plain(0, 0)?;
    site.add(Minimal);
    Ok(())
}

impl Plugin for Minimal {
    fn name(&self) -> &'static str {
        "minimal"
    }

    fn answered(&self, _query: &Query, reply: &mut Reply) {
        // Denials need their SOA record, and delegations are nothing but authority.
        if reply.rcode == Rcode::NOERROR && !reply.answer.is_empty() {
            reply.authority.clear();
            reply.additional.clear();
        }
    }
}
