//! What the kernel holds already for a peer of another backend: it stays until the peer runs the same as this node.
//!
//! While the backend of a cluster is changed, some nodes are sooner than others. A node that has gone over still sends to
//! the others by the backend before, since that is what they publish, and still takes what they send by it, since its
//! own tunnel stays; a node that has not yet gone over keeps what leads to those that have. So a pair of nodes changes
//! when the later of the two does.

use std::collections::HashMap;

use ipnet::IpNet;
use podwire_model::{Name, delta::Delta};

use crate::plan::{Entry, Key};

/// The actual entries, by what they are found by.
#[derive(Debug)]
pub(crate) struct Holdings<'a> {
    delta: &'a Delta<Key, Entry>,
    /// Each tunnel device, with its addresses.
    tunnels: HashMap<&'a Name, Vec<&'a Entry>>,
}

impl<'a> Holdings<'a> {
    pub(crate) fn new(delta: &'a Delta<Key, Entry>) -> Self {
        let mut tunnels: HashMap<&Name, Vec<&Entry>> = HashMap::new();
        for entry in delta.all_actual().filter_map(|key| delta.actual(key)) {
            if let Entry::Tunnel(_) | Entry::Address { .. } = entry
                && let Some(device) = entry.device()
            {
                tunnels.entry(device).or_default().push(entry);
            }
        }
        tunnels.retain(|_, entries| entries.iter().any(|entry| matches!(entry, Entry::Tunnel(_))));
        Self { delta, tunnels }
    }

    /// Every tunnel device and its addresses.
    pub(crate) fn tunnels(&self) -> Vec<Entry> {
        self.tunnels.values().flatten().map(|entry| (*entry).clone()).collect()
    }

    /// All by which packets for `subnet` leave this node: the route, and the tunnel and its entries for that route. Empty
    /// when there is no route of the overlay to `subnet`, nor to all of `network`.
    pub(crate) fn leading_to(&self, subnet: IpNet, network: IpNet) -> Vec<Entry> {
        let routes = [subnet, network].map(|destination| self.delta.actual(&Key::Route(destination)));
        let Some(route @ Entry::Route { device, gateway, .. }) = routes.into_iter().flatten().next() else {
            return Vec::new();
        };
        let mut entries = vec![route.clone()];
        entries.extend(self.tunnels.get(device).into_iter().flatten().map(|entry| (*entry).clone()));
        let neighbour = gateway.and_then(|gateway| self.delta.actual(&Key::Neighbour(device.clone(), gateway)));
        if let Some(Entry::Neighbour { mac, .. }) = neighbour {
            entries.extend(neighbour.cloned());
            entries.extend(self.delta.actual(&Key::Fdb(device.clone(), *mac)).cloned());
        }
        if let Some(allowed @ Entry::Allowed { peer, .. }) = self.delta.actual(&Key::Allowed(device.clone(), subnet)) {
            entries.push(allowed.clone());
            entries.extend(self.delta.actual(&Key::WireguardPeer(device.clone(), *peer)).cloned());
        }
        entries.extend(self.delta.actual(&Key::Forward(subnet)).cloned());
        entries
    }
}
