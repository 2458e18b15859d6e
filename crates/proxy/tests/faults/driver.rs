//! A proxy over the real kernel that may fail, be disturbed and be restarted.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use podwire_proxy::{
    Changes, Result, Tracker,
    mode::{Description, DetectLocal, Mode, Settings},
    plan::Me,
};
use podwire_testkit::{
    build::ip,
    packet_table::{self, NODE, Outcome, Row, World},
};

use super::net::{Net, Seen, connect};

/// How soon a proxy must notice what others did, and have repaired it.
pub const SOON: Duration = Duration::from_secs(1);
/// How often a proxy asks whether others did something.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// A proxy.
pub struct Driver {
    tracker: Tracker,
    pub mode: Box<dyn Mode>,
}

impl Driver {
    /// Starts on the calling thread's node. Has written nothing yet.
    pub fn start(description: &Description) -> Self {
        let pods = packet_table::empty().pods;
        let settings = Settings { detect_local: DetectLocal::Ranges(vec![pods]), ..Settings::default() };
        let tracker = Tracker::new(Me { node: packet_table::empty().node.into(), ..Me::default() });
        Self { tracker, mode: (description.open)(&settings).unwrap() }
    }

    /// Starts on the node of `net`.
    pub fn start_at(net: &Net, description: &Description) -> Self {
        net.at(&ip(NODE), || Self::start(description))
    }

    /// Brings a world into the kernel; returns how much was written.
    pub fn set(&mut self, world: &World) -> Result<usize> {
        self.tracker.set_services(world.services.clone());
        self.tracker.set_slices(world.slices.clone());
        self.mode.apply(self.tracker.take_changes().unwrap()).map(|applied| applied.written)
    }

    /// Asks until others are noticed, and repairs then. How long it took.
    pub fn repaired_after(&mut self) -> Option<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < 5 * SOON {
            if self.mode.disturbed().unwrap() {
                self.mode.apply(Changes::default()).unwrap();
                return Some(begin.elapsed());
            }
            sleep(Duration::from_millis(20));
        }
        None
    }

    /// Goes on as a proxy does, until nobody disturbs it for a while.
    pub fn calm_down(&mut self) {
        let (begin, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < 3 * ASK_EVERY && begin.elapsed() < 20 * SOON {
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
            let seen = net.at(&packet.from, || connect(packet.to, packet.protocol));
            let right = match (&row.outcome, &seen) {
                (Outcome::Rejected, Seen::Refused) | (Outcome::Dropped, Seen::Nothing) => true,
                (Outcome::Untouched, Seen::Answer(endpoint, _)) => *endpoint == packet.to.ip(),
                (Outcome::Untouched, _) => true,
                (Outcome::Sent(to), Seen::Answer(endpoint, source)) => to.iter().any(|(address, masqueraded)| {
                    address.ip() == *endpoint && (!keeps_sources || *masqueraded == (*source != packet.from))
                }),
                _ => false,
            };
            assert!(right, "{when}: {}: {seen:?}, expected {:?}", row.name, row.outcome);
            if row.outcome == Outcome::Dropped {
                break;
            }
        }
    }
}
