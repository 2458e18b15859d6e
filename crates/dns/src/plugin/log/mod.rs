//! `log`: one line a query.

mod format;

use domain::base::iana::Rcode;
use tracing::info;

use self::format::Format;
use super::Plugin;
use crate::{
    corefile::{CorefileError, Directive, Word},
    message::{DnsName, Query, Reply},
    program::{SiteBuilder, nearest},
};

/// The directives of a server block; the first one whose zones have the name in them decides.
struct Log(Vec<Rule>);

/// `log [ZONES…] [FORMAT] { class all|success|denial|error }`
struct Rule {
    zones: Vec<DnsName>,
    format: Format,
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

    const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Success => "success",
            Self::Denial => "denial",
            Self::Error => "error",
        }
    }

    fn parse(word: &Word) -> Result<Self, CorefileError> {
        let all = [Self::All, Self::Success, Self::Denial, Self::Error];
        all.into_iter()
            .find(|class| class.as_str() == word.text)
            .ok_or_else(|| word.error(format!("log: {:?} is not one of all, success, denial, error", word.text)))
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    if let Some(all) = site.together(directive) {
        let rules: Result<Vec<_>, _> = all.into_iter().map(|directive| rule(directive, site)).collect();
        site.add(Log(rules?));
    }
    Ok(())
}

fn rule(directive: &Directive, site: &SiteBuilder<'_>) -> Result<Rule, CorefileError> {
    let (format, names) = match directive.args.split_last() {
        Some((last, names)) if last.text.contains('{') => (Format::parse(last)?, names),
        _ => (Format::default(), &directive.args[..]),
    };
    let mut classes = Vec::new();
    for option in &directive.body {
        if option.name() != "class" {
            return Err(option.unknown_option("log"));
        }
        for word in option.plain(1, usize::MAX)? {
            classes.push(Class::parse(word)?);
        }
    }
    if classes.is_empty() {
        classes.push(Class::All);
    }
    Ok(Rule { zones: site.zones_or_own(names)?, format, classes })
}

impl Plugin for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        let rule = self.0.iter().find(|rule| nearest(&rule.zones, &query.name).is_some());
        let Some(rule) = rule.filter(|_| query.is_from_client()) else { return };
        if rule.classes.iter().any(|class| [Class::All, Class::of(reply)].contains(class)) {
            info!("{}", rule.format.line(query, reply, query.arrival.now.elapsed()));
        }
    }
}
