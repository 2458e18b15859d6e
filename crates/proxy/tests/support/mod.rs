//! From the plain values of a packet table's world to what the proxy is told. Shared by all test programs of this crate:
//! `#[path = "../support/mod.rs"] mod support;`.

// No test program needs all of it.
#![allow(dead_code)]

use std::{collections::BTreeSet, net::SocketAddr};

use podwire_proxy::{
    Changes, Tracker,
    mode::{Description, DetectLocal, NodePortAddresses, Settings, trace::Fate},
    plan::Me,
};
use podwire_testkit::packet_table::{Abilities, FAMILIES, NodePorts, Outcome, Pods, World, range};

/// The settings of a world.
pub fn settings(world: &World) -> Settings {
    Settings {
        detect_local: match &world.pods {
            Pods::Unknown => DetectLocal::Unknown,
            Pods::Ranges(ranges) => DetectLocal::Ranges(ranges.clone()),
            Pods::Interface(name) => DetectLocal::Interface((*name).to_owned()),
            Pods::InterfacePrefix(prefix) => DetectLocal::InterfacePrefix((*prefix).to_owned()),
        },
        node_port_addresses: match &world.node_ports {
            NodePorts::Everywhere => NodePortAddresses::All,
            NodePorts::Primary => NodePortAddresses::Primary,
            NodePorts::Ranges(ranges) => NodePortAddresses::Ranges(ranges.clone()),
        },
        node_ips: world.node_addresses.clone(),
        service_ranges: world.service_ranges.clone(),
        localhost_node_ports: world.localhost_node_ports,
        ..Settings::default()
    }
}

/// A tracker on a world's node that knows nothing else yet.
pub fn tracker(world: &World) -> Tracker {
    Tracker::new(Me {
        node: world.node.into(),
        zone: world.zone.map(Into::into),
        addresses: world.node_addresses.clone(),
        pod_ranges: FAMILIES.map(|family| range("10.244.0.0/24", family)).into(),
        masquerade_all: world.masquerade_all,
    })
}

/// All that a mode is told of a world.
pub fn planned(world: &World) -> Changes {
    let mut tracker = tracker(world);
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    tracker.take_changes().unwrap_or_default()
}

/// What a mode can do. The one place where a mode's legitimate differences are listed.
pub fn abilities(mode: &Description) -> Abilities {
    let common = Abilities { keeps_sources: mode.keeps_sources, ..Abilities::default() };
    match mode.name {
        "iptables" => Abilities { localhost_v4: true, refuses_at_localhost: true, ..common },
        "ipvs" => Abilities { owns_addresses: true, ..common },
        "userspace" => Abilities { sctp: false, localhost_v4: true, localhost_v6: true, ..common },
        _ => common,
    }
}

/// What a tracer found, as the packet table says it.
pub fn outcome(fates: &BTreeSet<Fate>) -> Outcome {
    let mut sent = BTreeSet::new();
    for fate in fates {
        match fate {
            Fate::Sent { to, masqueraded } => sent.insert((SocketAddr::new(to.address, to.port), *masqueraded)),
            other => {
                assert_eq!(fates.len(), 1, "{other:?} among {fates:?}");
                return match other {
                    Fate::Rejected => Outcome::Rejected,
                    Fate::Dropped => Outcome::Dropped,
                    _ => Outcome::Untouched,
                };
            }
        };
    }
    Outcome::Sent(sent)
}
