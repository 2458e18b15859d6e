//! A mode that does nothing but take plans by the letter: what it does with a packet is what the plan says.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use podwire_model::{Family, IpNet};
use podwire_proxy::{
    Changes,
    plan::{Action, Entry, Frontend, Masquerade, Treatment},
};
use podwire_testkit::packet_table::{NodePorts, Outcome, Packet, Pods, World, interface};

/// What a mode has to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Literal {
    pub frontends: HashMap<Frontend, Treatment>,
    pub cluster_ips: HashSet<IpAddr>,
    pub hairpin: HashSet<IpAddr>,
}

impl Literal {
    pub fn apply(&mut self, changes: Changes) {
        for (frontend, treatment) in changes.frontends {
            match treatment {
                Some(treatment) => self.frontends.insert(frontend, treatment),
                None => self.frontends.remove(&frontend),
            };
        }
        let sets = [(&mut self.cluster_ips, changes.cluster_ips), (&mut self.hairpin, changes.hairpin)];
        for (set, addresses) in sets {
            for (address, used) in addresses {
                if used {
                    set.insert(address)
                } else {
                    set.remove(&address)
                };
            }
        }
    }

    /// What becomes of a packet at a node with the settings of `world`; of its Services nothing is looked at.
    pub fn outcome(&self, world: &World, packet: &Packet) -> Outcome {
        let to = packet.to.ip();
        let at = |entry| Frontend { entry, protocol: packet.protocol, port: packet.to.port() };
        let node_port = || answers(world, &to).then(|| self.frontends.get(&at(Entry::NodePort(Family::of(&to)))));
        let found = self.frontends.get(&at(Entry::Address(to))).or_else(|| node_port().flatten());
        match found {
            Some(treatment) => self.treat(world, packet, treatment),
            None if self.cluster_ips.contains(&to) => Outcome::Rejected,
            None if contains(&world.service_ranges, &to) => Outcome::Dropped,
            None => Outcome::Untouched,
        }
    }

    fn treat(&self, world: &World, packet: &Packet, treatment: &Treatment) -> Outcome {
        if treatment.sources.as_deref().is_some_and(|sources| !contains(sources, &packet.from)) {
            return Outcome::Dropped;
        }
        let from_node = packet.from.is_loopback() || world.node_addresses.contains(&packet.from);
        let pod = match &world.pods {
            Pods::Unknown => None,
            Pods::Ranges(ranges) => Some(contains(ranges, &packet.from)),
            Pods::Interface(name) => Some(interface(&packet.from) == *name),
            Pods::InterfacePrefix(prefix) => Some(interface(&packet.from).starts_with(prefix)),
        };
        let inside = from_node || pod == Some(true);
        let action = treatment.outside.as_ref().filter(|_| !inside).unwrap_or(&treatment.inside);
        let (backends, masquerade) = match action {
            Action::Reject => return Outcome::Rejected,
            Action::Drop => return Outcome::Dropped,
            Action::Balance { backends, masquerade, .. } => (backends, masquerade),
        };
        let masked = match masquerade {
            Masquerade::Never => false,
            Masquerade::OffCluster => pod == Some(false),
            Masquerade::Always => true,
        };
        let each = |backend: &podwire_proxy::plan::Backend| {
            let itself = backend.address == packet.from && self.hairpin.contains(&packet.from);
            (SocketAddr::new(backend.address, backend.port), masked || itself)
        };
        Outcome::Sent(backends.iter().map(each).collect::<BTreeSet<_>>())
    }
}

fn contains(ranges: &[IpNet], address: &IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(address))
}

fn answers(world: &World, to: &IpAddr) -> bool {
    let mut own = world.node_addresses.iter().filter(|address| Family::of(address) == Family::of(to));
    match &world.node_ports {
        NodePorts::Everywhere => own.any(|address| address == to),
        NodePorts::Primary => own.next() == Some(to),
        NodePorts::Ranges(ranges) => own.any(|address| address == to) && contains(ranges, to),
    }
}
