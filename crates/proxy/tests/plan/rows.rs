use podwire_testkit::packet_table::{self, health_checks, tables};

use super::{
    literal::Literal,
    support::{planned, tracker},
};

#[test]
fn every_row_of_every_table() {
    for table in tables() {
        let mut literal = Literal::default();
        literal.apply(planned(&table.world));
        for row in &table.rows {
            assert_eq!(literal.outcome(&table.world, &row.packet), row.outcome, "{}: {}", table.name, row.name);
        }
    }
}

#[test]
fn every_health_check() {
    let world = packet_table::world();
    let mut tracker = tracker(&world);
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    tracker.take_changes();
    let checks = tracker.health_checks().into_iter();
    let checks: packet_table::HealthChecks =
        checks.map(|(name, check)| (check.port, (name, check.local_endpoints))).collect();
    assert_eq!(checks, health_checks(&world));
}
