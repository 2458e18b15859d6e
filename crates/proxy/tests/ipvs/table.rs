//! The packet table, traced through rules, sets and virtual servers.

use podwire_kernel::route::{Address, Route as _};
use podwire_proxy::{
    Tracker,
    mode::{
        self, Mode,
        ipvs::{Ipvs, kernel::Fake, trace},
    },
};
use podwire_testkit::packet_table::{self, Abilities, Outcome, Packet, World, interface};

use super::support;
pub use super::support::settings;

pub fn tracker() -> Tracker {
    support::tracker(&packet_table::empty())
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
    bring(&mut mode, &mut support::tracker(world), world);
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
pub fn traced(kernel: &Fake, packet: &Packet) -> Outcome {
    let input = interface(&packet.from);
    let packet = trace::Packet {
        source: packet.from,
        destination: packet.to.ip(),
        protocol: packet.protocol,
        port: packet.to.port(),
        input: (input != "lo").then_some(input),
    };
    let fates = trace::trace(kernel, packet).unwrap();
    support::outcome(&fates)
}

/// What ipvs mode can do.
fn abilities() -> Abilities {
    support::abilities(mode::find("ipvs").unwrap())
}

/// Every row, traced.
pub fn assert_rows(kernel: &Fake, world: &World, road: &str) {
    for row in packet_table::rows() {
        let outcome = row.outcome_by(world, &abilities());
        assert_eq!(traced(kernel, &row.packet), outcome, "{} ({road})", row.name);
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
            let oracle = packet_table::expected_by(&world, &row.packet, &abilities());
            assert_eq!(traced(mode.kernel(), &row.packet), oracle, "{}", row.name);
        }
    }
}

#[test]
fn every_row_of_the_tables_with_other_settings() {
    for table in &packet_table::tables()[1..] {
        let mode = applied(&table.world);
        for row in &table.rows {
            let outcome = row.outcome_by(&table.world, &abilities());
            assert_eq!(traced(mode.kernel(), &row.packet), outcome, "{}: {}", table.name, row.name);
        }
    }
}
