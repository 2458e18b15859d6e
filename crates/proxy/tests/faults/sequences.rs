//! Random sequences of events. Whatever happened on the way, the rules at the end are those that the oracle wants, and
//! the same as if the last state had been the first.
//!
//! A failure prints its seed and the shortest sequence found that still fails: `PODWIRE_SEED=17 cargo nextest run -p
//! podwire-proxy sequences` runs that one alone. `PODWIRE_SEQUENCES` says how many there are.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use podwire_model::Protocol;
use podwire_proxy::{Tracker, mode::MODES, plan::Me};
use podwire_testkit::{
    packet_table::{Outcome, Packet, World, expected},
    random::Random,
};

use super::{
    random_worlds::{Event, Objects, events, packets},
    subjects::{Maker, SUBJECTS, Subject},
};

/// How many sequences each mode is driven along in CI, …
const SEQUENCES: u64 = 10_000;
/// … and elsewhere, where somebody waits.
const FEW_SEQUENCES: u64 = 1000;
/// Events in the longest.
const LENGTH: usize = 40;
/// Packets that are looked at in the end.
const PACKETS: usize = 40;
/// More attempts than any streak of failures takes.
const ATTEMPTS: usize = 300;

#[test]
fn every_mode_is_here() {
    let named: Vec<_> = MODES.iter().map(|mode| mode.name).collect();
    let tested: Vec<_> = SUBJECTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(tested, named);
}

#[test]
fn random_sequences_end_as_the_oracle_says() {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let only = number("PODWIRE_SEED");
    let usual = if std::env::var_os("CI").is_some() { SEQUENCES } else { FEW_SEQUENCES };
    let sequences = number("PODWIRE_SEQUENCES").unwrap_or(usual);
    for subject in SUBJECTS {
        let next = AtomicU64::new(only.unwrap_or(0));
        let end = only.map_or(sequences, |seed| seed + 1);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while failed.lock().unwrap().is_none() {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            break;
                        }
                        if let Err(problem) = sequence(subject, seed) {
                            *failed.lock().unwrap() = Some(problem);
                        }
                    }
                });
            }
        });
        if let Some(problem) = failed.into_inner().unwrap() {
            panic!("{problem}");
        }
    }
}

fn sequence(subject: &Maker, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut events = events(&mut random, LENGTH);
    let check = |events: &[Event]| check(subject, events, seed);
    let Err(mut problem) = check(&events) else { return Ok(()) };
    // Leave out what can be left out.
    let mut at = 0;
    while at < events.len() {
        let mut shorter = events.clone();
        shorter.remove(at);
        match check(&shorter) {
            Ok(()) => at += 1,
            Err(same) => (events, problem) = (shorter, same),
        }
    }
    let list: String = events.iter().map(|event| format!("\n  {event:?}")).collect();
    Err(format!("{} mode, PODWIRE_SEED={seed}: {problem}\nafter{list}", subject.0))
}

/// What is to become of a packet, also in a mode that relays: it replaces every source, and cannot relay SCTP.
fn wanted(mode: &str, world: &World, packet: &Packet) -> Outcome {
    let keeps_sources = MODES.iter().any(|known| known.name == mode && known.keeps_sources);
    match expected(world, packet) {
        Outcome::Sent(_) if !keeps_sources && packet.protocol == Protocol::Sctp => Outcome::Rejected,
        Outcome::Sent(to) => Outcome::Sent(to.into_iter().map(|(to, masked)| (to, masked || !keeps_sources)).collect()),
        other => other,
    }
}

fn check((name, make): &Maker, events: &[Event], seed: u64) -> Result<(), String> {
    // Every other sequence over a kernel that fails.
    let failing = (seed % 2 == 1).then_some(10);
    let mut road = Road::new(make(failing), failing.is_some());
    for event in events {
        road.take(event)?;
    }
    road.settle()?;
    let mut direct = Road::new(make(None), false);
    direct.objects = road.objects.clone();
    direct.settle()?;

    let world = road.objects.world();
    for packet in packets(&mut Random::new(seed), PACKETS) {
        let (traced, expected) = (road.subject.traced(&world, &packet)?, wanted(name, &world, &packet));
        if traced != expected {
            return Err(format!("{packet:?}\n   is {traced:?},\nwanted {expected:?}"));
        }
    }
    let (shape, wanted) = (road.subject.shape(), direct.subject.shape());
    if shape != wanted {
        let (more, less): (Vec<_>, Vec<_>) = (shape.difference(&wanted).collect(), wanted.difference(&shape).collect());
        return Err(format!("too much: {more:#?}\nmissing: {less:#?}"));
    }
    Ok(())
}

/// A proxy, what it should know and what it does know.
struct Road {
    subject: Box<dyn Subject>,
    /// Whether the kernel may fail.
    may_fail: bool,
    tracker: Tracker,
    objects: Objects,
}

impl Road {
    fn new(subject: Box<dyn Subject>, may_fail: bool) -> Self {
        Self { subject, may_fail, tracker: tracker(), objects: Objects::default() }
    }

    fn take(&mut self, event: &Event) -> Result<(), String> {
        self.objects.take(event);
        match event.clone() {
            Event::Service(service) => self.tracker.service(*service),
            Event::ServiceGone(name) => self.tracker.service_gone(&name),
            Event::Slice(slice) => self.tracker.slice(*slice),
            Event::SliceGone(name) => self.tracker.slice_gone(&name),
            Event::Lost(_) => {}
            Event::Listed => self.list(),
            Event::Apply => {
                if let Some(changes) = self.tracker.take_changes() {
                    let applied = self.subject.mode().apply(changes).map(drop);
                    self.check_failure(applied)?;
                }
            }
            Event::Tidy => {
                let tidied = self.subject.mode().tidy().map(drop);
                self.check_failure(tidied)?;
            }
            Event::Restart => {
                self.subject.restart();
                self.tracker = tracker();
            }
        }
        Ok(())
    }

    /// A failure leaves things for the next time, as a proxy that waits before it tries again. Unless there was no reason
    /// to fail.
    fn check_failure(&self, done: podwire_proxy::Result<()>) -> Result<(), String> {
        if self.may_fail { Ok(()) } else { done.map_err(|error| error.to_string()) }
    }

    /// Complete lists, as a watch gives them when it starts.
    fn list(&mut self) {
        self.tracker.set_services(self.objects.services.values().cloned());
        self.tracker.set_slices(self.objects.slices.values().cloned());
    }

    /// Brings what should be known into the kernel, and removes what is unused.
    fn settle(&mut self) -> Result<(), String> {
        self.list();
        let mut changes = self.tracker.take_changes().ok_or("no plan after complete lists")?;
        let mut error = None;
        for attempt in 0..ATTEMPTS {
            if attempt == ATTEMPTS / 2 {
                self.subject.heal();
            }
            let mode = self.subject.mode();
            match mode.apply(std::mem::take(&mut changes)).and_then(|_| mode.tidy()) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(failure) if !self.may_fail => return Err(failure.to_string()),
                Err(failure) => error = Some(failure),
            }
        }
        Err(format!("does not settle; the last error: {error:?}"))
    }
}

fn tracker() -> Tracker {
    Tracker::new(Me { node: "node1".into(), ..Me::default() })
}
