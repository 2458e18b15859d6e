//! The packet table, traced through the rendered rules.

use std::{collections::BTreeSet, net::SocketAddr};

use podwire_kernel::iptables::{Fake, Table};
use podwire_model::Family;
use podwire_proxy::{
    Tracker,
    mode::{
        DetectLocal, Mode, Settings,
        iptables::{
            IptablesMode,
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

/// A tracker that knows everything of `world`.
pub fn tracking(world: &World) -> Tracker {
    let mut tracker = tracker();
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
    let here = world.node_addresses.contains(&packet.from);
    let packet = trace::Packet {
        source: packet.from,
        destination: packet.to.ip(),
        protocol: packet.protocol,
        port: packet.to.port(),
        input: (!here).then_some("eth0"),
    };
    let tables = trace::Tables { nat: &nat, filter: &filter };
    let fates = trace::trace(tables, packet, &world.node_addresses).unwrap_or_else(|error| panic!("{error}"));
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
pub fn assert_rows(fake: &Fake, world: &World, road: &str) {
    for row in packet_table::rows() {
        assert_eq!(traced(fake, world, &row.packet), row.outcome, "{} ({road})", row.name);
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
            let oracle = packet_table::expected(&world, &row.packet);
            assert_eq!(traced(mode.iptables(), &world, &row.packet), oracle, "{}", row.name);
        }
    }
}
