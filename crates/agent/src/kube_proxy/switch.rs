//! Which mode is at work, and how another one takes over while traffic flows.
//!
//! The new mode is complete before anything of the old one goes: until then both sets of rules are in the kernel, and a
//! connection follows the first that translates it (the kernel translates a connection once). What conntrack knows goes
//! on as it is. The same happens at a start: what *other* modes left is removed after the first complete sync.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context;
use podwire_proxy::{
    Tracker,
    mode::{Applied, Description, Mode},
};
use tracing::{error, info, warn};

use super::{State, settings::Wanted};
use crate::events::Recorder;

/// What serves in place of a mode that the kernel cannot do.
const FALLBACKS: [(&str, &str); 1] = [("ipvs", "iptables")];

/// A mode that was started.
struct Running {
    wanted: Wanted,
    description: &'static Description,
    mode: Box<dyn Mode>,
}

/// How long a packet may be on its way through rules that it met before another mode was complete: the processor may be
/// taken from it between two of them. On a busy machine 100 ms were seen not to be enough.
pub const IN_FLIGHT: Duration = Duration::from_secs(1);
/// How long to wait before trying again to remove what a mode left.
const CLEAN_PAUSE: Duration = Duration::from_secs(30);

/// The mode at work, and the one that takes over.
pub struct Switch {
    modes: &'static [Description],
    state: State,
    recorder: Recorder,
    active: Option<Running>,
    /// Takes over as soon as it is complete.
    next: Option<Running>,
    /// Whether `next` was given everything.
    told: bool,
    /// `next` works on what `active` made in the kernel, which therefore gets no more changes.
    frozen: bool,
    /// Were at work before: their sockets are open and their rules in the kernel as long as packets may meet them.
    retired: Vec<Running>,
    in_flight: Duration,
    /// When to remove what retired modes left.
    clean_at: Option<Instant>,
    /// The modes that may have left something in the kernel.
    leftovers: BTreeSet<&'static str>,
}

impl Switch {
    /// Whether `mode`, or what serves in its place, can be used here.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(modes: &'static [Description], mode: &str) -> anyhow::Result<()> {
        let usable = |name: &str| Ok((find(modes, name)?.probe)()?);
        let fallback = FALLBACKS.iter().find(|(name, _)| *name == mode);
        usable(mode).or_else(|reason| fallback.map_or(Err(reason), |(_, fallback)| usable(fallback)))
    }

    /// Nothing is at work yet. Any of the modes may have been before. What one leaves stays for `in_flight` after another
    /// took over: [`IN_FLIGHT`].
    pub fn new(modes: &'static [Description], state: State, recorder: Recorder, in_flight: Duration) -> Self {
        let leftovers = modes.iter().map(|mode| mode.name).collect();
        let (active, next, told, frozen) = (None, None, false, false);
        let (retired, clean_at) = (Vec::new(), None);
        Self { modes, state, recorder, active, next, told, frozen, retired, in_flight, clean_at, leftovers }
    }

    /// Opens what is wanted, unless it is open already.
    ///
    /// # Errors
    /// No such mode, or the kernel cannot do it. What is at work goes on.
    pub fn want(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        if self.next.as_ref().or(self.active.as_ref()).is_some_and(|latest| latest.wanted == wanted) {
            return Ok(());
        }
        let next = self.open(wanted)?;
        let same = |running: &Running| running.description.name == next.description.name;
        self.frozen |= self.active.as_ref().is_some_and(same);
        self.leftovers.insert(next.description.name);
        self.next = Some(next);
        self.told = false;
        Ok(())
    }

    fn open(&self, wanted: Wanted) -> anyhow::Result<Running> {
        let fallback = FALLBACKS.iter().find(|(name, _)| *name == wanted.mode).map(|(_, fallback)| *fallback);
        let start = |name: &str| {
            let description = find(self.modes, name)?;
            (description.probe)()?;
            anyhow::Ok((description, (description.open)(&wanted.settings)?))
        };
        let (description, mode) = match (start(&wanted.mode), fallback) {
            (Ok(started), _) => {
                self.state.metrics.fallback.set(0);
                started
            }
            (Err(reason), Some(fallback)) => {
                let message = format!("mode {} cannot be used, falling back to {fallback}: {reason:#}", wanted.mode);
                error!("{message}");
                self.recorder.node("ProxyModeFallback", message);
                self.state.metrics.fallback.set(1);
                start(fallback)?
            }
            (Err(reason), None) => return Err(reason),
        };
        Ok(Running { wanted, description, mode })
    }

    /// Brings everything up to date. `force`: also a mode that has no changes, since something is to be repaired or
    /// tried again.
    ///
    /// `None` as long as nothing may be written: the lists are not complete, or no mode is open.
    ///
    /// # Errors
    /// A mode could not do it; call again, nothing is forgotten.
    pub fn apply(&mut self, tracker: &mut Tracker, force: bool) -> Option<anyhow::Result<Applied>> {
        let changes = tracker.take_changes()?;
        let mut outcome = None;
        if let Some(active) = self.active.as_mut().filter(|_| !self.frozen)
            && (force || !changes.is_empty())
        {
            outcome = Some(active.mode.apply(changes.clone()).map_err(Into::into));
        }
        if let Some(next) = &mut self.next {
            let changes = if self.told { changes } else { tracker.take_all().unwrap_or_default() };
            self.told = true;
            let applied = next.mode.apply(changes);
            if applied.is_ok() {
                self.promote();
            }
            outcome = Some(applied.map_err(Into::into));
        }
        outcome
    }

    fn promote(&mut self) {
        let Some(next) = self.next.take() else { return };
        let name = next.description.name;
        self.state.set_mode(name);
        self.frozen = false;
        if let Some(old) = self.active.replace(next) {
            self.state.metrics.switches.inc();
            info!(from = old.description.name, to = name, "another mode, or other settings, took over");
            self.retired.push(old);
        }
        self.clean_at = Some(Instant::now() + self.in_flight);
    }

    /// When [`Switch::clean`] has something to do.
    pub fn clean_at(&self) -> Option<Instant> {
        self.clean_at
    }

    /// Removes what modes that are not at work left in the kernel. Says whether all is gone; if not it is to be tried again
    /// at [`Switch::clean_at`].
    pub fn clean(&mut self) -> bool {
        let gone = self.remove_leftovers();
        self.clean_at = (!gone).then(|| Instant::now() + CLEAN_PAUSE);
        gone
    }

    fn remove_leftovers(&mut self) -> bool {
        let (Some(active), None) = (&self.active, &self.next) else { return true };
        self.retired.clear();
        let name = active.description.name;
        let others = self.modes.iter().filter(|mode| mode.name != name && self.leftovers.contains(mode.name));
        let mut gone = Vec::new();
        for mode in others {
            match (mode.cleanup)() {
                Ok(()) => gone.push(mode.name),
                Err(error) => {
                    self.state.metrics.cleanup_failures.inc();
                    warn!("what mode {} left is still there: {error}", mode.name);
                }
            }
        }
        self.leftovers.retain(|mode| !gone.contains(mode));
        self.leftovers.iter().all(|mode| *mode == name)
    }

    /// See [`Mode::tidy`].
    ///
    /// # Errors
    /// As there.
    pub fn tidy(&mut self) -> podwire_proxy::Result<bool> {
        self.active.as_mut().map_or(Ok(false), |active| active.mode.tidy())
    }

    /// See [`Mode::disturbed`].
    ///
    /// # Errors
    /// As there.
    pub fn disturbed(&mut self) -> podwire_proxy::Result<bool> {
        let active = self.active.as_mut().filter(|_| !self.frozen);
        active.map_or(Ok(false), |active| active.mode.disturbed())
    }

    /// What the mode at work was told.
    pub fn active(&self) -> Option<&Wanted> {
        self.active.as_ref().map(|active| &active.wanted)
    }

    /// The name of the mode at work.
    pub fn mode(&self) -> Option<&'static str> {
        self.active.as_ref().map(|active| active.description.name)
    }
}

fn find(modes: &'static [Description], name: &str) -> anyhow::Result<&'static Description> {
    modes.iter().find(|mode| mode.name == name).with_context(|| format!("mode {name} is not part of this build"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use podwire_model::EndpointSlice;
    use podwire_proxy::{Changes, Error, mode::Settings, plan::Me};
    use podwire_testkit::build;

    use super::{super::Metrics, *};

    thread_local! {
        /// What modes were asked to do: `mode: what`.
        static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
        /// What of it they refuse.
        static REFUSED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    fn does(what: String) -> podwire_proxy::Result<()> {
        let refused = REFUSED.with_borrow(|refused| refused.iter().any(|refused| what.starts_with(refused)));
        LOG.with_borrow_mut(|log| log.push(if refused { format!("{what} refused") } else { what.clone() }));
        if refused { Err(Error::UnknownMode { name: what, supported: String::new() }) } else { Ok(()) }
    }

    fn log() -> Vec<String> {
        LOG.take()
    }

    struct Fake(&'static str, u32);

    impl Mode for Fake {
        fn apply(&mut self, changes: Changes) -> podwire_proxy::Result<Applied> {
            does(format!("{}/{} apply {}", self.0, self.1, changes.frontends.len()))?;
            Ok(Applied::default())
        }

        fn tidy(&mut self) -> podwire_proxy::Result<bool> {
            Ok(false)
        }

        fn disturbed(&mut self) -> podwire_proxy::Result<bool> {
            Ok(false)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            does(format!("{}/{} dropped", self.0, self.1)).unwrap_or_default();
        }
    }

    macro_rules! fake {
        ($name:literal) => {
            Description {
                name: $name,
                keeps_sources: true,
                probe: || does(concat!($name, " probe").to_owned()),
                open: |settings| Ok(Box::new(Fake($name, settings.masquerade_mark))),
                cleanup: || does(concat!($name, " cleanup").to_owned()),
            }
        };
    }

    static MODES: [Description; 3] = [fake!("nftables"), fake!("iptables"), fake!("ipvs")];

    fn wanted(mode: &str, masquerade_mark: u32) -> Wanted {
        Wanted { mode: mode.to_owned(), settings: Settings { masquerade_mark, ..Settings::default() } }
    }

    /// A switch, and a tracker with one Service.
    fn start() -> (Switch, Tracker) {
        let mut tracker = Tracker::new(Me::default());
        tracker.set_services([build::service("a", "10.96.0.1")]);
        tracker.set_slices(Vec::<EndpointSlice>::new());
        let state = State::new("", Metrics::new(), Duration::from_secs(60));
        let (recorder, _) = Recorder::new("node1");
        (Switch::new(&MODES, state, recorder, Duration::ZERO), tracker)
    }

    #[test]
    fn nothing_is_removed_before_the_other_mode_is_complete() {
        let (mut switch, mut tracker) = start();
        assert!(switch.clean());
        switch.want(wanted("nftables", 1)).unwrap();
        assert!(switch.clean());
        assert_eq!(log(), ["nftables probe"]);
        switch.apply(&mut tracker, false).unwrap().unwrap();
        assert!(switch.clean());
        assert_eq!(log(), ["nftables/1 apply 1", "iptables cleanup", "ipvs cleanup"]);

        REFUSED.set(vec!["iptables/1 apply"]);
        switch.want(wanted("iptables", 1)).unwrap();
        assert!(switch.apply(&mut tracker, false).unwrap().is_err());
        assert!(switch.clean());
        tracker.service(build::service("b", "10.96.0.2"));
        assert!(switch.apply(&mut tracker, true).unwrap().is_err());
        assert_eq!(switch.mode(), Some("nftables"));
        let refused =
            ["iptables probe", "iptables/1 apply 1 refused", "nftables/1 apply 1", "iptables/1 apply 1 refused"];
        assert_eq!(log(), refused, "the old mode keeps up");

        REFUSED.set(vec!["nftables cleanup"]);
        switch.apply(&mut tracker, true).unwrap().unwrap();
        assert_eq!(switch.mode(), Some("iptables"));
        assert!(!switch.clean(), "to be tried again");
        REFUSED.take();
        assert!(switch.clean());
        let done = [
            "nftables/1 apply 0",
            "iptables/1 apply 0",
            "nftables/1 dropped",
            "nftables cleanup refused",
            "nftables cleanup",
        ];
        assert_eq!(log(), done);
        assert!(switch.clean());
        assert_eq!(log(), [""; 0]);
    }

    #[test]
    fn other_settings_of_a_mode_take_over_its_own_rules() {
        let (mut switch, mut tracker) = start();
        switch.want(wanted("nftables", 1)).unwrap();
        switch.apply(&mut tracker, false).unwrap().unwrap();
        switch.clean();
        log();
        REFUSED.set(vec!["nftables/2 apply"]);
        switch.want(wanted("nftables", 2)).unwrap();
        assert!(switch.apply(&mut tracker, false).unwrap().is_err());
        assert!(switch.apply(&mut tracker, true).unwrap().is_err());
        switch.want(wanted("nftables", 1)).unwrap();
        switch.apply(&mut tracker, true).unwrap().unwrap();
        assert!(switch.clean());
        let expected = [
            "nftables probe",
            "nftables/2 apply 1 refused",
            "nftables/2 apply 0 refused",
            "nftables probe",
            "nftables/2 dropped",
            "nftables/1 apply 1",
            "nftables/1 dropped",
        ];
        assert_eq!(log(), expected, "what the failed one may have written is read and put right by a new one");
        assert_eq!(switch.state.metrics.switches.get(), 1);
        REFUSED.take();
    }

    #[test]
    fn ipvs_falls_back_and_others_do_not() {
        let (mut switch, mut tracker) = start();
        REFUSED.set(vec!["ipvs probe"]);
        assert!(Switch::check(&MODES, "ipvs").is_ok());
        switch.want(wanted("ipvs", 1)).unwrap();
        switch.want(wanted("ipvs", 1)).unwrap();
        switch.apply(&mut tracker, false).unwrap().unwrap();
        assert_eq!((switch.mode(), switch.state.metrics.fallback.get()), (Some("iptables"), 1));
        let expected =
            ["ipvs probe refused", "iptables probe", "ipvs probe refused", "iptables probe", "iptables/1 apply 1"];
        assert_eq!(log(), expected);
        REFUSED.set(vec!["nftables probe"]);
        assert!(switch.want(wanted("nftables", 1)).is_err());
        assert_eq!(switch.mode(), Some("iptables"));
        assert!(Switch::check(&MODES, "nftables").is_err());
        REFUSED.set(vec!["ipvs probe", "iptables probe"]);
        assert!(Switch::check(&MODES, "ipvs").is_err());
        let missing = switch.want(wanted("userspace", 1)).unwrap_err().to_string();
        assert_eq!(missing, "mode userspace is not part of this build");
        REFUSED.take();
    }
}
