//! Which endpoints of a Service port get traffic: readiness, termination, topology.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use podwire_model::{Family, Name, ServicePort};

use crate::{
    endpoints::{Is, Slice},
    plan::{Backend, Me},
};

/// All endpoints of one Service port in one family, sorted, each once.
pub struct Candidates<'a> {
    endpoints: Vec<Candidate<'a>>,
    me: &'a Me,
}

struct Candidate<'a> {
    backend: Backend,
    is: Is,
    zones: &'a [Name],
}

impl<'a> Candidates<'a> {
    /// Joins the slices' ports to `port` by name and protocol. An endpoint that is in two slices (it moves from one to
    /// the other) counts once, as the one that is more able to serve.
    pub fn gather(slices: &'a [Slice], family: Family, port: &ServicePort, me: &'a Me) -> Self {
        let mut endpoints = Vec::new();
        for slice in slices.iter().filter(|slice| slice.family == family) {
            for number in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
                endpoints.extend(slice.members.iter().map(|member| Candidate {
                    backend: Backend { address: member.address, port: number.port },
                    is: member.is,
                    zones: slice.zones(member),
                }));
            }
        }
        // Sorted already where there is one slice. The most able one of equals comes first, and stays.
        endpoints.sort_by(|a, b| (a.backend, Reverse((a.is, a.zones))).cmp(&(b.backend, Reverse((b.is, b.zones)))));
        endpoints.dedup_by_key(|candidate| candidate.backend);
        Self { endpoints, me }
    }

    /// Addresses on this node: those that say so, and those that do not say where they are but are in the range of this
    /// node's pods.
    pub fn here(&self) -> impl Iterator<Item = IpAddr> {
        let here = |Candidate { backend, is, .. }: &&Candidate| {
            let in_range = || self.me.pod_ranges.iter().any(|range| range.contains(&backend.address));
            is.is(Is::HERE) || is.is(Is::UNPLACED) && in_range()
        };
        self.endpoints.iter().filter(here).map(|candidate| candidate.backend.address)
    }

    /// Addresses of ready endpoints of this node.
    pub fn ready_here(&self) -> impl Iterator<Item = IpAddr> {
        let here = self.endpoints.iter().filter(|candidate| candidate.is.is(Is::READY) && candidate.is.is(Is::HERE));
        here.map(|candidate| candidate.backend.address)
    }

    /// The endpoints for policy Cluster, sorted: the ready ones, of which topology may prefer some; where there are none,
    /// those that still serve while they terminate.
    pub fn cluster(&self) -> Arc<[Backend]> {
        let ready = || self.endpoints.iter().filter(|candidate| candidate.is.is(Is::READY));
        if ready().next().is_none() {
            return self.backends(|candidate| candidate.is.is_last_resort());
        }
        // Hints count only if every ready endpoint has some and one names us.
        let for_this_node = |candidate: &Candidate| candidate.is.is(Is::FOR_THIS_NODE);
        if ready().all(|candidate| candidate.is.is(Is::FOR_NODES)) && ready().any(for_this_node) {
            return self.backends(|candidate| candidate.is.is(Is::READY) && for_this_node(candidate));
        }
        let for_zone = |candidate: &Candidate| self.me.zone.as_ref().is_some_and(|zone| candidate.zones.contains(zone));
        if ready().all(|candidate| !candidate.zones.is_empty()) && ready().any(for_zone) {
            return self.backends(|candidate| candidate.is.is(Is::READY) && for_zone(candidate));
        }
        self.backends(|candidate| candidate.is.is(Is::READY))
    }

    /// The endpoints for policy Local, sorted: those of this node that are ready; where there are none, those of this
    /// node that still serve while they terminate.
    pub fn local(&self) -> Arc<[Backend]> {
        let ready = self.backends(|candidate| candidate.is.is(Is::HERE) && candidate.is.is(Is::READY));
        if !ready.is_empty() {
            return ready;
        }
        self.backends(|candidate| candidate.is.is(Is::HERE) && candidate.is.is_last_resort())
    }

    fn backends(&self, wanted: impl Fn(&Candidate) -> bool) -> Arc<[Backend]> {
        let wanted = self.endpoints.iter().filter(|candidate| wanted(candidate));
        let mut backends: Vec<Backend> = Vec::with_capacity(self.endpoints.len());
        backends.extend(wanted.map(|candidate| candidate.backend));
        backends.into()
    }
}
