//! The packet table, traced through the rendered rules.

use podwire_kernel::iptables::{Fake, Table};
use podwire_model::Family;
use podwire_proxy::{
    Tracker,
    mode::{
        MODES, Mode,
        iptables::{IptablesMode, trace},
    },
};
use podwire_testkit::packet_table::{self, Abilities, Outcome, Packet, World, interface};

use super::support;
pub use super::support::settings;

pub fn tracker() -> Tracker {
    support::tracker(&packet_table::empty())
}

/// A tracker that knows everything of `world`.
pub fn tracking(world: &World) -> Tracker {
    let mut tracker = support::tracker(world);
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    tracker
}

/// The mode over `fake` after everything of `world` was applied.
pub fn start(fake: Fake, world: &World) -> IptablesMode<Fake> {
    let mut mode = IptablesMode::new(fake, settings(world));
    mode.apply(tracking(world).take_changes().unwrap()).unwrap();
    mode
}

/// The mode over a fake kernel that holds `world`.
pub fn applied(world: &World) -> IptablesMode<Fake> {
    start(Fake::new(), world)
}

/// What the rules in `fake` do with a packet.
pub fn traced(fake: &Fake, world: &World, packet: &Packet) -> Outcome {
    let family = Family::of(&packet.to.ip());
    let (nat, filter) = (fake.table(family, Table::Nat), fake.table(family, Table::Filter));
    let input = interface(&packet.from);
    let packet = trace::Packet {
        source: packet.from,
        destination: packet.to.ip(),
        protocol: packet.protocol,
        port: packet.to.port(),
        input: (input != "lo").then_some(input),
    };
    let tables = trace::Tables { nat: &nat, filter: &filter };
    let fates = trace::trace(tables, packet, &world.node_addresses).unwrap_or_else(|error| panic!("{error}"));
    support::outcome(&fates)
}

/// What iptables mode can do.
fn abilities() -> Abilities {
    MODES.iter().find(|mode| mode.name == "iptables").map(support::abilities).unwrap()
}

/// Every row, traced.
pub fn assert_rows(fake: &Fake, world: &World, road: &str) {
    for row in packet_table::rows() {
        let outcome = row.outcome_by(world, &abilities());
        assert_eq!(traced(fake, world, &row.packet), outcome, "{} ({road})", row.name);
    }
}

#[test]
fn every_row_of_the_packet_table() {
    let world = packet_table::world();
    assert_rows(applied(&world).iptables(), &world, "at once");
}

#[test]
fn every_state_of_the_history_as_the_oracle_says() {
    for world in packet_table::history() {
        let mode = applied(&world);
        for row in packet_table::rows() {
            let oracle = packet_table::expected_by(&world, &row.packet, &abilities());
            assert_eq!(traced(mode.iptables(), &world, &row.packet), oracle, "{}", row.name);
        }
    }
}

#[test]
fn every_row_of_the_tables_with_other_settings() {
    for table in &packet_table::tables()[1..] {
        let mode = applied(&table.world);
        for row in &table.rows {
            let outcome = row.outcome_by(&table.world, &abilities());
            assert_eq!(traced(mode.iptables(), &table.world, &row.packet), outcome, "{}: {}", table.name, row.name);
        }
    }
}
