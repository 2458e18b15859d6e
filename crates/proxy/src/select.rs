//! Which endpoints of a Service port get traffic: readiness, termination, topology.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use podwire_model::{Endpoint, EndpointSlice, Family, ServicePort};

use crate::plan::{Backend, Me};

/// All endpoints of one Service port in one family, each once.
pub struct Candidates<'a> {
    endpoints: BTreeMap<Backend, &'a Endpoint>,
    me: &'a Me,
}

/// The endpoints that get traffic; sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// For policy Cluster.
    pub cluster: Arc<[Backend]>,
    /// For policy Local.
    pub local: Arc<[Backend]>,
}

impl<'a> Candidates<'a> {
    /// Joins the slices' ports to `port` by name and protocol. An endpoint that is in two slices (it moves from one to
    /// the other) counts once, as the one that is more able to serve.
    pub fn gather(slices: &[&'a EndpointSlice], family: Family, port: &ServicePort, me: &'a Me) -> Self {
        let mut endpoints: BTreeMap<Backend, &Endpoint> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.family == family) {
            let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in matching.map(|p| p.port) {
                for endpoint in &slice.endpoints {
                    let known = endpoints.entry(Backend { address: endpoint.address, port: number });
                    let best = known.or_insert(endpoint);
                    if ability(endpoint) > ability(best) {
                        *best = endpoint;
                    }
                }
            }
        }
        Self { endpoints, me }
    }

    /// Addresses that may be on this node: those that say so, and those that do not say where they are.
    pub fn possibly_local(&self) -> impl Iterator<Item = IpAddr> {
        let local = self.endpoints.iter().filter(|(_, e)| e.node.is_none() || is_local(e, self.me));
        local.map(|(backend, _)| backend.address)
    }

    /// Addresses of ready endpoints of this node.
    pub fn ready_here(&self) -> impl Iterator<Item = IpAddr> {
        let here = self.endpoints.iter().filter(|(_, e)| e.ready && is_local(e, self.me));
        here.map(|(backend, _)| backend.address)
    }

    /// Chooses for both policies: ready endpoints; where there are none, those that still serve while they terminate.
    pub fn choose(&self) -> Chosen {
        let me = self.me;
        let ready = self.backends(|e| e.ready);
        let cluster = if ready.is_empty() { self.backends(terminating) } else { self.near().unwrap_or(ready) };
        let ready_here = self.backends(|e| e.ready && is_local(e, me));
        let local =
            if ready_here.is_empty() { self.backends(|e| terminating(e) && is_local(e, me)) } else { ready_here };
        Chosen { cluster: cluster.into(), local: local.into() }
    }

    /// The ready endpoints that topology hints reserve for this node, or else for its zone. Hints count only if every
    /// ready endpoint has some and one names us.
    fn near(&self) -> Option<Vec<Backend>> {
        let me = self.me;
        let ready = || self.endpoints.values().filter(|e| e.ready);
        let for_node = |e: &Endpoint| e.hint_nodes.contains(&me.node);
        if ready().all(|e| !e.hint_nodes.is_empty()) && ready().any(|e| for_node(e)) {
            return Some(self.backends(|e| e.ready && for_node(e)));
        }
        let zone = me.zone.as_ref()?;
        let for_zone = |e: &Endpoint| e.hint_zones.contains(zone);
        if ready().all(|e| !e.hint_zones.is_empty()) && ready().any(|e| for_zone(e)) {
            return Some(self.backends(|e| e.ready && for_zone(e)));
        }
        None
    }

    fn backends(&self, mut wanted: impl FnMut(&Endpoint) -> bool) -> Vec<Backend> {
        self.endpoints.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(backend, _)| *backend).collect()
    }
}

fn is_local(endpoint: &Endpoint, me: &Me) -> bool {
    endpoint.node.as_ref() == Some(&me.node)
}

fn terminating(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Ready before serving before not; what terminates last. Node and hints break ties, so that the choice does not depend
/// on the order of slices.
fn ability(endpoint: &Endpoint) -> impl Ord {
    let Endpoint { ready, serving, terminating, node, hint_zones, hint_nodes, .. } = endpoint;
    (ready, serving, !terminating, node, hint_zones, hint_nodes)
}
