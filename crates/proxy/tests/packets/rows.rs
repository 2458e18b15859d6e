//! The packet tables with real packets.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use podwire_model::Protocol;
use podwire_proxy::mode::Description;
use podwire_testkit::packet_table::{Abilities, Outcome, Row, Table, tables};

use super::{
    client::{Seen, connect},
    net::{Net, modes},
    support::abilities,
};

/// So many attempts reach each of three endpoints but once in a billion runs.
const ATTEMPTS: usize = 60;
/// So many attempts without an answer say that there is none.
const LATE: usize = 3;
/// Most rows wait: for an answer, or for none.
const WORKERS: usize = 24;

#[test]
fn every_row_of_the_packet_table() {
    each_mode(|net, mode| check_table(net, mode, &tables()[0]));
}

#[test]
fn every_row_of_the_tables_with_other_settings() {
    each_mode(|net, mode| {
        for table in &tables()[1..] {
            check_table(net, mode, table);
            net.at(&table.world.node_addresses[0], || (mode.cleanup)().unwrap());
        }
    });
}

/// Every mode at once, each in a network of its own: most of the time they wait.
fn each_mode(check: impl Fn(&Net, &Description) + Sync) {
    std::thread::scope(|scope| {
        for mode in modes() {
            let check = &check;
            scope.spawn(move || {
                if let Some(net) = Net::build() {
                    check(&net, mode);
                }
            });
        }
    });
}

/// Every row of a table, many at a time.
fn check_table(net: &Net, mode: &Description, table: &Table) {
    let _proxy = net.proxy(mode, &table.world);
    let runner = Runner { net, table, abilities: abilities(mode), lanes: Mutex::default() };
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(row) = table.rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(problem) = runner.check(row) {
                        problems.lock().unwrap().push(format!("{}: {problem}", row.name));
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} mode, {}:\n{}", mode.name, table.name, problems.join("\n"));
}

struct Runner<'a> {
    net: &'a Net,
    table: &'a Table,
    abilities: Abilities,
    /// Raw sockets see everything that passes between two addresses: one at a time.
    lanes: Mutex<HashMap<(IpAddr, IpAddr), &'static Mutex<()>>>,
}

impl Runner<'_> {
    fn check(&self, row: &Row) -> Result<(), String> {
        let lane = (row.packet.protocol == Protocol::Sctp).then(|| {
            let lanes = &mut *self.lanes.lock().unwrap();
            let lane = lanes.entry((row.packet.from, row.packet.to.ip()));
            *lane.or_insert_with(|| Box::leak(Box::default()))
        });
        let _held = lane.map(|lane| lane.lock().unwrap());
        let packet = row.packet;
        let attempt = || connect(packet.from, packet.to, packet.protocol);
        // A machine with other work may be late; rules that drop would drop again.
        let patient = || (0..LATE).map(|_| attempt()).find(|seen| *seen != Seen::Nothing).unwrap_or(Seen::Nothing);
        self.net.at(&packet.from, || match row.outcome_by(&self.table.world, &self.abilities) {
            Outcome::Rejected => is(patient(), &Seen::Refused),
            Outcome::Dropped => is(attempt(), &Seen::Nothing),
            Outcome::Untouched if packet.to.port() == 8080 => is(patient(), &Seen::Answer(packet.to, packet.from)),
            // Nobody listens there: whatever comes back is not an endpoint.
            Outcome::Untouched => match attempt() {
                answer @ Seen::Answer(..) => Err(format!("{answer:?}")),
                _ => Ok(()),
            },
            Outcome::Sent(expected) => self.reaches(row, &expected, attempt),
        })
    }

    /// Whether attempts reach exactly the expected endpoints, masqueraded or not as expected.
    fn reaches(
        &self,
        row: &Row,
        expected: &BTreeSet<(std::net::SocketAddr, bool)>,
        attempt: impl Fn() -> Seen,
    ) -> Result<(), String> {
        let from = row.packet.from;
        // The node's own addresses are what masquerading puts there: with one of them as the source all along, nobody can
        // tell in a mode that always does.
        let tells = self.abilities.keeps_sources || !self.table.world.node_addresses.contains(&from);
        let (mut seen, mut late) = (BTreeSet::new(), 0);
        for _ in 0..ATTEMPTS {
            match attempt() {
                // As above.
                Seen::Nothing if late + 1 < LATE => late += 1,
                Seen::Answer(endpoint, source) => {
                    let answer = (endpoint, source != from || !tells);
                    if !expected.contains(&answer) {
                        return Err(format!("{answer:?}, expected {expected:?}"));
                    }
                    seen.insert(answer);
                }
                other => return Err(format!("{other:?}, expected {expected:?}")),
            }
            if seen == *expected {
                return Ok(());
            }
        }
        Err(format!("only {seen:?}, expected {expected:?}"))
    }
}

fn is(seen: Seen, expected: &Seen) -> Result<(), String> {
    if seen == *expected { Ok(()) } else { Err(format!("{seen:?}, expected {expected:?}")) }
}
