//! The packet table, traced through rules, sets and virtual servers.

use std::{collections::BTreeSet, net::SocketAddr};

use podwire_kernel::route::{Address, Route as _};
use podwire_proxy::{
    Tracker,
    mode::{
        DetectLocal, Mode, Settings,
        ipvs::{
            Ipvs,
            kernel::Fake,
            trace::{self, Fate},
        },
    },
    plan::Me,
};
use podwire_testkit::packet_table::{self, Outcome, Packet, World};

pub fn settings(world: &World) -> Settings {
    Settings { detect_local: DetectLocal::Ranges(vec![world.pods]), ..Settings::default() }
}

pub fn tracker() -> Tracker {
    Tracker::new(Me { node: "node1".into(), ..Me::default() })
}

/// A kernel with the node's addresses.
pub fn kernel(world: &World) -> Fake {
    let mut fake = Fake::new();
    for (number, address) in world.node_addresses.iter().enumerate() {
        let device = fake.route.add_device(&format!("eth{number}"));
        fake.route.add_address(&Address::new(device, *address)).unwrap();
    }
    fake
}

/// The mode over a fake kernel that holds `world`.
pub fn applied(world: &World) -> Ipvs<Fake> {
    let mut mode = Ipvs::new(kernel(world), settings(world));
    bring(&mut mode, &mut tracker(), world);
    mode
}

/// Brings a world into the kernel, and ends what needs no waiting.
pub fn bring(mode: &mut Ipvs<Fake>, tracker: &mut Tracker, world: &World) {
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert!(!mode.tidy().unwrap());
}

/// What `kernel` does with a packet.
pub fn traced(kernel: &Fake, world: &World, packet: &Packet) -> Outcome {
    let from_node = world.node_addresses.contains(&packet.from);
    let packet = trace::Packet {
        source: packet.from,
        destination: packet.to.ip(),
        protocol: packet.protocol,
        port: packet.to.port(),
        input: if from_node { None } else { Some("eth0") },
    };
    let fates = trace::trace(kernel, packet).unwrap();
    let mut sent = BTreeSet::new();
    for fate in &fates {
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

/// Every row, traced.
pub fn assert_rows(kernel: &Fake, world: &World, road: &str) {
    for row in packet_table::rows() {
        assert_eq!(traced(kernel, world, &row.packet), row.outcome, "{} ({road})", row.name);
    }
}

#[test]
fn every_row_of_the_packet_table() {
    let world = packet_table::world();
    assert_rows(applied(&world).kernel(), &world, "at once");
}

#[test]
fn every_state_of_the_history_as_the_oracle_says() {
    for world in packet_table::history() {
        let mode = applied(&world);
        for row in packet_table::rows() {
            let oracle = packet_table::expected(&world, &row.packet);
            assert_eq!(traced(mode.kernel(), &world, &row.packet), oracle, "{}", row.name);
        }
    }
}
