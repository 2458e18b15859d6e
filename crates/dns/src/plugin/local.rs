//! `local`: answers for `localhost` and for the reverse zones that never leave a host (RFC 6761 6.3, RFC 6303).

use std::net::{Ipv4Addr, Ipv6Addr};

use domain::{
    base::{
        Serial, Ttl,
        iana::{Rcode, Rtype},
    },
    rdata::{A, Aaaa, Ns, Ptr, Soa},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::{Plugin, Step, pattern::name_text};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, DnsName, Query, Record, Reply, record},
    program::SiteBuilder,
    router::Rest,
};

const NAME: &str = "local";
/// CoreDNS's, seconds: a week.
const TTL: u32 = 604_800;
/// The zones that are answered for.
const ZONES: [&str; 4] = ["localhost.", "0.in-addr.arpa.", "127.in-addr.arpa.", "255.in-addr.arpa."];

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct LocalMetrics {
    localhost_requests: Counter,
}

impl LocalMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Questions for names below localhost or that begin with it";
        registry.register("local_localhost_requests", help, self.localhost_requests.clone());
    }
}

/// `local { localhost_prefix on|off }`
struct Local {
    /// `localhost.<domain>` is localhost too: what a search list makes of it.
    prefix: bool,
    localhost: DnsName,
    metrics: std::sync::Arc<crate::metrics::Metrics>,
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    directive.arguments(0, 0)?;
    let mut prefix = true;
    for option in &directive.body {
        if option.name() != "localhost_prefix" {
            return Err(option.unknown_option(NAME));
        }
        let [word] = option.plain(1, 1)? else { continue };
        prefix = match word.text.as_str() {
            "on" => true,
            "off" => false,
            other => return Err(word.error(format!("localhost_prefix: {other:?} is neither on nor off"))),
        };
    }
    let localhost = DnsName::bytes_from_str(ZONES[0]).map_err(|error| directive.error(error.to_string()))?;
    site.add(Local { prefix, localhost, metrics: site.environment.metrics.clone() });
    Ok(())
}

impl Plugin for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let name = name_text(&query.name);
        let below = |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let host = below(ZONES[0]) || (self.prefix && name.starts_with(ZONES[0]));
        let Some(zone) = ZONES.into_iter().find(|zone| below(zone)).or(host.then_some(ZONES[0])) else {
            return Step::Next;
        };
        let apex = name == zone;
        if host && !apex {
            self.metrics.local.localhost_requests.inc();
        }
        let answer = |data: Data| Some(record(query.name.clone(), TTL, data));
        let answer = match query.qtype {
            Rtype::A if host => answer(Data::A(A::new(Ipv4Addr::LOCALHOST))),
            Rtype::AAAA if host => answer(Data::Aaaa(Aaaa::new(Ipv6Addr::LOCALHOST))),
            Rtype::SOA if apex => Some(self.soa(query.name.clone())),
            Rtype::NS if apex => answer(Data::Ns(Ns::new(self.localhost.clone()))),
            Rtype::PTR if name == "1.0.0.127.in-addr.arpa." => answer(Data::Ptr(Ptr::new(self.localhost.clone()))),
            _ => None,
        };
        let mut reply = Reply { plugin: NAME, ..Reply::default() };
        match answer {
            Some(record) => reply.answer.push(record),
            None => {
                let there = host || apex || name == "1.0.0.127.in-addr.arpa.";
                let owner = match host {
                    true => query.name.clone(),
                    false => query.name.range_from(query.name.len() - zone.len() - 1),
                };
                reply.rcode = if there { Rcode::NOERROR } else { Rcode::NXDOMAIN };
                reply.authority.push(self.soa(owner));
            }
        }
        Step::Reply(reply)
    }
}

impl Local {
    fn soa(&self, owner: DnsName) -> Record {
        let zero = Ttl::from_secs(0);
        let mailbox = DnsName::bytes_from_str("root.localhost.").unwrap_or_else(|_| self.localhost.clone());
        let soa = Soa::new(self.localhost.clone(), mailbox, Serial(1), zero, zero, zero, Ttl::from_secs(TTL));
        record(owner, TTL, Data::Soa(soa))
    }
}
