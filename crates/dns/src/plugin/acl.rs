//! `acl`: who may ask for what.

use std::{net::IpAddr, sync::Arc};

use domain::base::iana::{Class, Rcode, Rtype};
use podwire_model::IpNet;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{Plugin, Step, pattern::name_text};
use crate::{
    corefile::{CorefileError, Directive, Word},
    message::{DnsName, Query, Reply},
    metrics::Metrics,
    program::{SiteBuilder, nearest},
    router::Rest,
};

const NAME: &str = "acl";

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct AclMetrics {
    blocked: Family<ZoneLabels, Counter>,
    filtered: Family<ZoneLabels, Counter>,
    allowed: Family<AllowedLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabels {
    server: Arc<str>,
    zone: String,
    view: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AllowedLabels {
    server: Arc<str>,
    view: &'static str,
}

impl AclMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("acl_blocked_requests", "Questions that were refused", self.blocked.clone());
        registry.register("acl_filtered_requests", "Questions that got an empty answer", self.filtered.clone());
        registry.register("acl_allowed_requests", "Questions that were let through", self.allowed.clone());
    }
}

/// The directives of a server block, in the order of the Corefile.
struct Acl {
    rules: Vec<Rule>,
    server: Arc<str>,
    metrics: Arc<Metrics>,
}

/// `acl [ZONES…] { allow|block|filter [type TYPE…] [net RANGE…] }`; the first line that fits decides.
struct Rule {
    zones: Vec<DnsName>,
    policies: Vec<Policy>,
}

struct Policy {
    action: Action,
    /// None for all.
    types: Vec<Rtype>,
    /// None for everybody.
    nets: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    /// REFUSED.
    Block,
    /// NOERROR without records.
    Filter,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let Some(all) = site.together(directive) else { return Ok(()) };
    let mut rules = Vec::new();
    for directive in all {
        let policies: Result<Vec<_>, _> = directive.body.iter().map(policy).collect();
        rules.push(Rule { zones: site.zones_or_own(&directive.args)?, policies: policies? });
    }
    let acl = Acl { rules, server: site.server_label(), metrics: site.environment.metrics.clone() };
    site.add(acl);
    Ok(())
}

fn policy(line: &Directive) -> Result<Policy, CorefileError> {
    let action = match line.name().to_ascii_lowercase().as_str() {
        "allow" => Action::Allow,
        "block" => Action::Block,
        "filter" => Action::Filter,
        "drop" => return Err(line.unsupported_option(NAME)),
        _ => return Err(line.unknown_option(NAME)),
    };
    let mut policy = Policy { action, types: Vec::new(), nets: Vec::new() };
    let words = line.plain(0, usize::MAX)?;
    let keyword = |word: &Word| ["type", "net"].into_iter().find(|known| word.text.eq_ignore_ascii_case(known));
    let mut section = None;
    let mut empty: Option<&Word> = None;
    for word in words {
        match (keyword(word), section) {
            (Some(keyword), _) => {
                if let Some(word) = empty {
                    return Err(word.error(format!("{NAME}: nothing after {:?}", word.text)));
                }
                (section, empty) = (Some(keyword), Some(word));
                continue;
            }
            (None, None) => return Err(word.error(format!("{NAME}: expected \"type\" or \"net\""))),
            // Everything, as if the section were not there.
            (None, Some(_)) if word.text == "*" => {}
            (None, Some("type")) => {
                let rtype = word.text.to_uppercase().parse();
                policy.types.push(rtype.map_err(|_| word.error(format!("{NAME}: {:?} is not a type", word.text)))?);
            }
            (None, Some(_)) => policy.nets.push(net(word)?),
        }
        empty = None;
    }
    match empty {
        Some(word) => Err(word.error(format!("{NAME}: nothing after {:?}", word.text))),
        None => Ok(policy),
    }
}

/// A range, or an address.
fn net(word: &Word) -> Result<IpNet, CorefileError> {
    let address = || word.text.parse::<IpAddr>().map(IpNet::from);
    let net = word.text.parse().or_else(|_| address());
    net.map_err(|_| word.error(format!("{NAME}: {:?} is neither a range such as 10.0.0.0/8 nor an address", word.text)))
}

impl Plugin for Acl {
    fn name(&self) -> &'static str {
        NAME
    }

    fn knows(&self, _class: Class) -> bool {
        true
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        // What we ask ourselves on a client's behalf was let through when the client asked.
        if !query.is_from_client() {
            return Step::Next;
        }
        let metrics = &self.metrics.acl;
        for rule in &self.rules {
            let Some(zone) = nearest(&rule.zones, &query.name) else { continue };
            let policy = rule.policies.iter().find(|policy| policy.fits(query));
            let labels = || ZoneLabels { server: self.server.clone(), zone: name_text(zone), view: "" };
            match policy.map(|policy| policy.action) {
                None => {}
                Some(Action::Allow) => break,
                Some(Action::Block) => {
                    metrics.blocked.get_or_create(&labels()).inc();
                    return Step::Reply(Reply::code(Rcode::REFUSED, NAME));
                }
                Some(Action::Filter) => {
                    metrics.filtered.get_or_create(&labels()).inc();
                    return Step::Reply(Reply::code(Rcode::NOERROR, NAME));
                }
            }
        }
        metrics.allowed.get_or_create(&AllowedLabels { server: self.server.clone(), view: "" }).inc();
        Step::Next
    }
}

impl Policy {
    fn fits(&self, query: &Query) -> bool {
        let client = query.arrival.client.ip();
        (self.types.is_empty() || self.types.contains(&query.qtype))
            && (self.nets.is_empty() || self.nets.iter().any(|net| net.contains(&client)))
    }
}
