//! A proxy over the real kernel that may fail, be disturbed and be restarted.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use podwire_proxy::{
    Changes, Result, Tracker,
    mode::{Description, Mode},
};
use podwire_testkit::{
    build::ip,
    packet_table::{self, NODE, Outcome, Row, World},
};

use super::{
    client::{Seen, connect},
    net::{Net, modes},
    support,
};

/// How often a proxy asks whether others did something.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// By which of these questions it must notice: within a second, on a machine that has nothing else to do.
const SOON: usize = 4;

/// Runs `test` for every mode, each on the node of a net of its own.
pub fn on_node(test: impl Fn(&Net, &'static Description) + Sync) {
    for description in modes() {
        let Some(net) = Net::build() else { return };
        net.at(&ip(NODE), || test(&net, description));
    }
}

/// A proxy. It lives in one network namespace: use it on a thread that is there, see [`on_node`].
pub struct Driver {
    tracker: Tracker,
    pub mode: Box<dyn Mode>,
}

impl Driver {
    /// Starts. Has written nothing yet.
    pub fn start(description: &Description) -> Self {
        let world = packet_table::empty();
        Self { tracker: support::tracker(&world), mode: (description.open)(&support::settings(&world)).unwrap() }
    }

    /// Brings a world into the kernel; returns how much was written.
    pub fn set(&mut self, world: &World) -> Result<usize> {
        self.tracker.set_services(world.services.clone());
        self.tracker.set_slices(world.slices.clone());
        self.mode.apply(self.tracker.take_changes().unwrap()).map(|applied| applied.written)
    }

    /// Asks until others are noticed, and repairs then. Whether they were soon.
    pub fn repairs_soon(&mut self) -> bool {
        for _ in 0..SOON {
            if self.mode.disturbed().unwrap() {
                self.mode.apply(Changes::default()).unwrap();
                return true;
            }
            sleep(ASK_EVERY);
        }
        false
    }

    /// Goes on as a proxy does, until nobody disturbs it for a while.
    pub fn calm_down(&mut self) {
        let (begin, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < 3 * ASK_EVERY && begin.elapsed() < Duration::from_secs(60) {
            sleep(ASK_EVERY);
            if self.mode.disturbed().unwrap() || self.mode.tidy().is_err() {
                let _ = self.mode.apply(Changes::default());
                last = Instant::now();
            }
        }
    }
}

/// Whether each row's packet gets where it should; a few attempts, which need not reach every endpoint.
pub fn check_rows(net: &Net, rows: &[Row], keeps_sources: bool, when: &str) {
    for row in rows {
        for _ in 0..4 {
            let packet = row.packet;
            let attempt = || net.at(&packet.from, || connect(packet.from, packet.to, packet.protocol));
            let mut seen = attempt();
            // On a machine with much else to do, no answer in time says little; never an answer says enough.
            for _ in 0..5 {
                if seen == Seen::Nothing && matches!(row.outcome, Outcome::Sent(_) | Outcome::Rejected) {
                    seen = attempt();
                }
            }
            let right = match (&row.outcome, &seen) {
                (Outcome::Rejected, Seen::Refused) | (Outcome::Dropped, Seen::Nothing) => true,
                (Outcome::Untouched, Seen::Answer(endpoint, _)) => *endpoint == packet.to,
                (Outcome::Untouched, _) => true,
                (Outcome::Sent(to), Seen::Answer(endpoint, source)) => to.iter().any(|(address, masqueraded)| {
                    address == endpoint && (!keeps_sources || *masqueraded == (*source != packet.from))
                }),
                _ => false,
            };
            assert!(right, "{when}: {}: {seen:?}, expected {:?}", row.name, row.outcome);
            if matches!(row.outcome, Outcome::Dropped | Outcome::Untouched) {
                break;
            }
        }
    }
}
