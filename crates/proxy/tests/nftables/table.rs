//! The packet table, traced through the rendered rules.

use podwire_kernel::nftables::{Fake, Table};
use podwire_model::Family;
use podwire_proxy::{
    Tracker,
    mode::{
        Mode,
        nftables::{Nftables, render::TABLE, trace},
    },
};
use podwire_testkit::packet_table::{self, Outcome, Packet, World};

use super::support;
pub use super::support::settings;

pub fn tracker() -> Tracker {
    support::tracker(&packet_table::empty())
}

pub fn table() -> Table {
    Table::new(podwire_kernel::nftables::Family::Ip, TABLE)
}

/// The mode over a fake kernel that holds `world`.
pub fn applied(world: &World) -> Nftables<Fake> {
    let mut mode = Nftables::new(Fake::new(), settings(world));
    mode.apply(support::planned(world)).unwrap();
    mode
}

/// What the rules in `kernel` do with a packet.
pub fn traced(kernel: &Fake, world: &World, packet: &Packet) -> Outcome {
    let table = &kernel.ruleset()[&Table::new(Family::of(&packet.to.ip()).into(), TABLE)];
    let input = packet_table::interface(&packet.from);
    let packet = trace::Packet {
        source: packet.from,
        destination: packet.to.ip(),
        protocol: packet.protocol.number(),
        port: packet.to.port(),
    };
    let fates = trace::trace_by(table, packet, &world.node_addresses, input).unwrap();
    support::outcome(&fates)
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

#[test]
fn every_row_of_the_tables_with_other_settings() {
    for table in &packet_table::tables()[1..] {
        let mode = applied(&table.world);
        for row in &table.rows {
            let outcome =
                row.outcome_by(&table.world, &support::abilities(podwire_proxy::mode::find("nftables").unwrap()));
            assert_eq!(traced(mode.kernel(), &table.world, &row.packet), outcome, "{}: {}", table.name, row.name);
        }
    }
}
