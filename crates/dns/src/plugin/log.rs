//! `log`: one line a query.

use domain::base::iana::Rcode;
use tracing::info;

use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive},
    message::{DnsName, Query, Reply},
    program::{SiteBuilder, nearest},
};

/// `log [ZONES…] { class all|success|denial|error }`
struct Log {
    zones: Vec<DnsName>,
    classes: Vec<Class>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    All,
    Success,
    Denial,
    Error,
}

impl Class {
    /// The class of an answer, as CoreDNS sorts them.
    fn of(reply: &Reply) -> Self {
        match reply.rcode {
            Rcode::NOERROR if reply.answer.is_empty() => Self::Denial,
            Rcode::NOERROR => Self::Success,
            Rcode::NXDOMAIN => Self::Denial,
            _ => Self::Error,
        }
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    if let Some(format) = directive.args.iter().find(|word| word.text.contains('{')) {
        return Err(format.error("log: a format is not supported yet"));
    }
    let mut classes = Vec::new();
    for option in &directive.body {
        if option.name() != "class" {
            return Err(option.unknown_option("log"));
        }
        for word in option.plain(1, usize::MAX)? {
            classes.push(match word.text.as_str() {
                "all" => Class::All,
                "success" => Class::Success,
                "denial" => Class::Denial,
                "error" => Class::Error,
                other => return Err(word.error(format!("log: {other:?} is not one of all, success, denial, error"))),
            });
        }
    }
    if classes.is_empty() {
        classes.push(Class::All);
    }
    let zones = site.zones_or_own(&directive.args)?;
    site.add(Log { zones, classes });
    Ok(())
}

impl Plugin for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        let wanted = self.classes.iter().any(|class| [Class::All, Class::of(reply)].contains(class));
        if !wanted || !query.is_from_client() || nearest(&self.zones, &query.name).is_none() {
            return;
        }
        info!(
            client = %query.arrival.client,
            id = query.id,
            proto = query.arrival.transport.as_str(),
            rcode = %reply.rcode,
            records = reply.answer.len(),
            duration = ?query.arrival.now.elapsed(),
            "{} {} {}", query.qtype, query.qclass, query.name.fmt_with_dot(),
        );
    }
}
