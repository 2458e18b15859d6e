//! `kubernetes`: answers for the names of the cluster, from the [`View`](crate::view::View) alone.
//!
//! Follows the Kubernetes DNS specification 1.1.0, and CoreDNS where that is silent. Differences from CoreDNS: a name that
//! exists with another type gives NODATA everywhere; an alias is followed for every type; nothing is answered before
//! the first complete sync.

mod answer;
mod setup;

use std::sync::Arc;

use domain::base::iana::{Rcode, Rtype};

use self::answer::{Finding, Zone};
use super::{Plugin, Step};
use crate::{
    cluster::Cluster,
    message::{DnsName, Query, Reply},
    program::nearest,
    router::Rest,
};

pub(super) use setup::setup;

/// The directive's name.
const NAME: &str = "kubernetes";

/// What `<dashed address>.<namespace>.pod` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodMode {
    /// NXDOMAIN.
    #[default]
    Disabled,
    /// The address that the name spells, in any Namespace that exists.
    Insecure,
    /// The same, if a Pod of the Namespace has the address.
    Verified,
}

/// The directive as it was configured.
pub struct Kubernetes {
    cluster: Arc<Cluster>,
    zones: Vec<DnsName>,
    /// The first zone that is not a reverse zone: where PTR records point.
    primary: DnsName,
    pods: PodMode,
    /// TTL of all answers, seconds.
    ttl: u32,
    /// Only these Namespaces have names; empty for all.
    namespaces: Vec<String>,
    /// Zones whose unknown names are left to the next plugin; `None` for no zone at all.
    fallthrough: Option<Vec<DnsName>>,
}

impl Plugin for Kubernetes {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        let Some(apex) = nearest(&self.zones, &query.name) else { return Step::Next };
        if matches!(query.qtype, Rtype::AXFR | Rtype::IXFR) {
            return Step::Reply(Reply::code(Rcode::REFUSED, NAME));
        }
        if !self.cluster.is_synced() {
            return Step::Reply(Reply::failure(NAME, "the cluster's Services are not known yet"));
        }
        let zone = Zone {
            // The zone in the query's spelling, so that the SOA record keeps its case.
            apex: query.name.range_from(query.name.len() - apex.len()),
            serial: self.cluster.serial(),
            plugin: self,
        };
        let mut reply = Reply { authoritative: true, plugin: NAME, ..Reply::default() };
        match zone.find(&self.cluster.view(), query) {
            Finding::Missing if self.falls_through(query) => return Step::Next,
            Finding::Missing => {
                reply.rcode = Rcode::NXDOMAIN;
                reply.authority.push(zone.soa());
            }
            Finding::Records { answer, .. } if answer.is_empty() => reply.authority.push(zone.soa()),
            Finding::Records { answer, additional } => {
                reply.answer = answer;
                reply.additional = additional;
            }
            Finding::Alias(alias, target) => {
                reply.answer.push(alias);
                return Step::Follow(reply, target);
            }
        }
        Step::Reply(reply)
    }

    fn is_ready(&self) -> bool {
        self.cluster.is_synced()
    }
}

impl Kubernetes {
    fn falls_through(&self, query: &Query) -> bool {
        self.fallthrough.as_ref().is_some_and(|zones| nearest(zones, &query.name).is_some())
    }

    fn exposes(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|exposed| exposed == namespace)
    }
}
