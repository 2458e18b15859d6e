//! The thread that owns the tracker and the kernel.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::Context;
use podwire_k8s::k8s_openapi::jiff::Timestamp;
use podwire_kernel::{
    conntrack::{self, Conntrack},
    sysctl::ProcSys,
};
use podwire_model::{EndpointSlice, IpNet, Node, Problem, Service};
use podwire_proxy::{Tracker, mode::Applied, plan::Me};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{State, config::Config, health_checks, settings::Wanted, switch::Switch, system};
use crate::{
    daemon::Retry,
    events::{About, Recorder},
    update::Update,
};

/// How long after a change what it left unused is removed.
const TIDY_PAUSE: Duration = Duration::from_secs(1);
/// How often to look whether somebody else changed the rules, and what to report of changes.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Something that the worker must know.
pub enum Input {
    /// Services changed; with what is wrong with them.
    Services(Update<Service>, Vec<Problem>),
    /// EndpointSlices changed, each with when the control plane saw the reason; with what is wrong with them.
    Slices(Update<(EndpointSlice, Option<Timestamp>)>, Vec<Problem>),
    /// This node's object; `None` if there is none yet.
    Node(Option<Box<Node>>, Vec<Problem>),
    /// The ranges of cluster IPs, as far as the API tells.
    ServiceRanges(Vec<IpNet>),
    /// The configuration changed.
    Config(Box<Config>),
}

/// Where the worker's news go.
pub struct Outputs {
    /// Pages and metrics.
    pub state: State,
    /// Events.
    pub recorder: Recorder,
    /// Health checks of Services.
    pub checks: watch::Sender<health_checks::Wanted>,
}

/// Turns inputs into kernel state.
pub struct Worker {
    config: Config,
    tracker: Tracker,
    switch: Switch,
    conntrack: Box<dyn Conntrack>,
    out: Outputs,
    /// This node's object; the outer `None` before it was asked for.
    node: Option<Option<Box<Node>>>,
    service_ranges: Option<Vec<IpNet>>,
    /// Changes that are not in the kernel yet, by the time at which the control plane saw their reason.
    triggers: Vec<Timestamp>,
    synced_once: bool,
    /// Somebody else changed the rules.
    disturbed: bool,
    retry: Retry,
    /// What was last reported about the mode that is wanted and cannot be.
    refusal: Option<String>,
    /// When to remove what is no longer used.
    tidy_at: Option<Instant>,
    look_at: Instant,
    /// Something changed since the last look.
    news: bool,
}

impl Worker {
    /// Does nothing yet.
    ///
    /// # Errors
    /// Connection tracking cannot be reached.
    pub fn new(node: &str, config: Config, switch: Switch, out: Outputs) -> anyhow::Result<Self> {
        let me = Me { node: node.into(), masquerade_all: config.masquerade_all, ..Me::default() };
        Ok(Self {
            config,
            tracker: Tracker::new(me),
            switch,
            conntrack: Box::new(conntrack::Kernel::open().context("opening connection tracking")?),
            out,
            node: None,
            service_ranges: None,
            triggers: Vec::new(),
            synced_once: false,
            disturbed: false,
            retry: Retry::default(),
            refusal: None,
            tidy_at: None,
            look_at: Instant::now() + LOOK_PAUSE,
            news: false,
        })
    }

    /// Works until nobody can send any more. Everything that waits is brought into the kernel together.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            match inputs.recv_timeout(self.pause()) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            inputs.try_iter().for_each(|input| self.take(input));
            self.settle();
            let now = Instant::now();
            if self.retry.pause().is_none() && self.tidy_at.is_some_and(|at| at <= now) {
                self.tidy();
            }
            if self.retry.pause().is_none() && self.switch.clean_at().is_some_and(|at| at <= now) {
                self.switch.clean();
            }
            if self.look_at <= now {
                self.look_at = now + LOOK_PAUSE;
                self.look();
            }
        }
    }

    /// How long there is nothing to do, if nothing comes.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let until = [Some(self.look_at), self.tidy_at, self.switch.clean_at()];
        let next = until.into_iter().flatten().map(|at| at.saturating_duration_since(now));
        next.chain(self.retry.pause()).min().unwrap_or(LOOK_PAUSE)
    }

    fn take(&mut self, input: Input) {
        let (tracker, metrics) = (&mut self.tracker, &self.out.state.metrics);
        match input {
            Input::Services(update, problems) => {
                metrics.service_changes.inc();
                metrics.service_changes_pending.inc();
                metrics.queued();
                match update {
                    Update::All(services) => tracker.set_services(services),
                    Update::One(service) => tracker.service(service),
                    Update::Gone(name) => tracker.service_gone(&name),
                }
                problems.into_iter().for_each(|problem| tracker.note(problem));
            }
            Input::Slices(update, problems) => {
                metrics.endpoint_changes.inc();
                metrics.endpoint_changes_pending.inc();
                metrics.queued();
                match update {
                    // Complete lists say nothing about how long anything took.
                    Update::All(slices) => tracker.set_slices(slices.into_iter().map(|(slice, _)| slice)),
                    Update::One((slice, trigger)) => {
                        self.triggers.extend(trigger);
                        tracker.slice(slice);
                    }
                    Update::Gone(name) => tracker.slice_gone(&name),
                }
                problems.into_iter().for_each(|problem| tracker.note(problem));
            }
            Input::Node(node, problems) => {
                if let Some(node) = &node {
                    tracker.node(node);
                }
                problems.into_iter().for_each(|problem| tracker.note(problem));
                // A Node object that goes away does not change what this machine is.
                let known = self.node.take().flatten();
                self.node = Some(node.or(known));
            }
            Input::ServiceRanges(ranges) => self.service_ranges = Some(ranges),
            Input::Config(config) => {
                self.tracker.set_masquerade_all(config.masquerade_all);
                self.out.state.set_patience(config.patience);
                if config.conntrack != self.config.conntrack {
                    set_up_conntrack(&config, &self.out.recorder);
                }
                self.config = *config;
            }
        }
    }

    /// Brings the kernel up to date with everything that is known.
    fn settle(&mut self) {
        let (Some(node), Some(ranges)) = (&self.node, &self.service_ranges) else { return };
        let Some(wanted) = Wanted::new(&self.config, node.as_deref(), ranges) else { return };
        let opened = self.switch.want(wanted);
        self.report_refusal(opened);
        let begin = Instant::now();
        let force = self.disturbed || self.retry.pause().is_some();
        let Some(outcome) = self.switch.apply(&mut self.tracker, force) else { return };
        match outcome {
            Ok(applied) => self.applied(&applied, begin.elapsed()),
            Err(error) => {
                let metrics = &self.out.state.metrics;
                match self.switch.mode() {
                    Some("nftables") | None => metrics.nftables_failures.inc(),
                    Some(_) => metrics.iptables_failures.inc(),
                };
                self.out.state.out_of_sync();
                error!("{error:#}; trying again in {:?}", self.retry.failed());
            }
        }
    }

    /// Tells once about a mode that cannot be opened; it is tried again whenever something comes.
    fn report_refusal(&mut self, opened: anyhow::Result<()>) {
        let refusal = opened.err().map(|error| format!("{error:#}"));
        if let Some(message) = refusal.as_ref().filter(|message| self.refusal.as_ref() != Some(message)) {
            error!("the configured mode cannot be used, going on as before: {message}");
            self.out.recorder.node("ProxyModeFailed", message.clone());
            self.out.state.metrics.config_errors.inc();
        }
        self.refusal = refusal;
    }

    fn applied(&mut self, applied: &Applied, took: Duration) {
        let metrics = &self.out.state.metrics;
        metrics.synced(applied.full, took);
        self.out.state.in_sync();
        self.retry.succeeded();
        self.disturbed = false;
        self.news = true;
        let now = Timestamp::now();
        for trigger in self.triggers.drain(..) {
            metrics.network_programming.observe(now.duration_since(trigger).as_secs_f64());
        }
        if applied.untidy {
            self.tidy_at.get_or_insert_with(|| Instant::now() + TIDY_PAUSE);
        }
        if !applied.stale.is_empty() {
            let begin = Instant::now();
            for stale in &applied.stale {
                metrics.flow_deletions.inc();
                if let Err(error) = self.conntrack.delete(&stale.filter()) {
                    warn!("a UDP flow may go on to an endpoint that is gone: {error}");
                }
            }
            metrics.conntrack_syncs.observe(begin.elapsed().as_secs_f64());
        }
        if self.synced_once {
            debug!(written = applied.written, full = applied.full, ?took, "in sync");
        } else {
            self.synced_once = true;
            info!(mode = self.switch.mode(), written = applied.written, ?took, "in sync for the first time");
        }
    }

    fn tidy(&mut self) {
        match self.switch.tidy() {
            Ok(again) => self.tidy_at = again.then(|| Instant::now() + TIDY_PAUSE),
            Err(error) => {
                warn!("{error}");
                self.tidy_at = None;
                self.retry.failed();
            }
        }
    }

    /// Looks at what needs no haste.
    fn look(&mut self) {
        match self.switch.disturbed() {
            Ok(false) => {}
            Ok(true) => {
                self.out.state.metrics.disturbances.inc();
                warn!("somebody else changed the rules: reading and repairing them");
                self.disturbed = true;
                self.settle();
            }
            Err(error) => warn!("whether the rules are as they should be is not known: {error}"),
        }
        if std::mem::take(&mut self.news) {
            self.publish();
        }
    }

    /// Publishes what follows from the plans besides rules.
    fn publish(&mut self) {
        for problem in self.tracker.take_problems() {
            warn!("{problem}");
            let about = About { kind: problem.kind, object: problem.object.clone() };
            self.out.recorder.object(about, "NotServedAsWritten", problem.to_string());
        }
        let metrics = &self.out.state.metrics;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.problems.set(gauge(self.tracker.problems().count()));
        for (policy, count) in ["internal", "external"].into_iter().zip(self.tracker.without_local_endpoints()) {
            metrics.no_local_endpoints.get_or_create(&[("traffic_policy", policy)]).set(gauge(count));
        }
        let checks = self.tracker.health_checks();
        let addresses = self.switch.active().and_then(|wanted| health_checks::Wanted::addresses(&wanted.settings));
        let wanted = health_checks::Wanted { checks, addresses };
        self.out.checks.send_if_modified(|known| {
            let differs = *known != wanted;
            *known = wanted;
            differs
        });
    }
}

/// Sets the kernel's connection tracking up; failures are told and do no other harm.
pub fn set_up_conntrack(config: &Config, recorder: &Recorder) {
    for failure in system::conntrack(&config.conntrack, system::processors(), &mut ProcSys) {
        warn!("{failure}");
        recorder.node("FailedToSetConntrack", failure);
    }
}
