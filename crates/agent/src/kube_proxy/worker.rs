//! The thread that owns the tracker and the kernel.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::Context;
use podwire_kernel::conntrack::{self, Conntrack};
use podwire_proxy::{Changes, Tracker, mode::Mode};
use tracing::{debug, error, info, warn};

use super::{Input, State};
use crate::{daemon::Retry, update::Update};

/// How long after a change what it left unused is removed.
const TIDY_PAUSE: Duration = Duration::from_secs(1);

/// Turns inputs into kernel state.
pub struct Worker {
    tracker: Tracker,
    mode: Box<dyn Mode>,
    conntrack: Box<dyn Conntrack>,
    state: State,
    synced_once: bool,
    retry: Retry,
    /// When to remove what is no longer used.
    tidy_at: Option<Instant>,
}

impl Worker {
    /// Does nothing yet.
    ///
    /// # Errors
    /// Connection tracking cannot be reached.
    pub fn new(tracker: Tracker, mode: Box<dyn Mode>, state: State) -> anyhow::Result<Self> {
        let conntrack = Box::new(conntrack::Kernel::open().context("opening connection tracking")?);
        Ok(Self { tracker, mode, conntrack, state, synced_once: false, retry: Retry::default(), tidy_at: None })
    }

    /// Works until nobody can send any more. Everything that waits goes into one transaction.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let tidy_in = self.tidy_at.map(|at| at.saturating_duration_since(Instant::now()));
            let first = match self.retry.pause().or(tidy_in) {
                None => inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => inputs.recv_timeout(pause),
            };
            match first {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            inputs.try_iter().for_each(|input| self.take(input));
            if let Some(changes) = self.tracker.take_changes()
                && (!changes.is_empty() || self.retry.pause().is_some() || !self.synced_once)
            {
                self.apply(changes);
            }
            if self.retry.pause().is_none() && self.tidy_at.is_some_and(|at| at <= Instant::now()) {
                self.tidy();
            }
        }
    }

    fn tidy(&mut self) {
        match self.mode.tidy() {
            Ok(again) => self.tidy_at = again.then(|| Instant::now() + TIDY_PAUSE),
            Err(error) => {
                warn!("{error}");
                self.tidy_at = None;
                self.retry.failed();
            }
        }
    }

    fn take(&mut self, input: Input) {
        let (tracker, metrics) = (&mut self.tracker, &self.state.metrics);
        match input {
            Input::Services(update) => {
                metrics.service_changes.inc();
                match update {
                    Update::All(services) => tracker.set_services(services),
                    Update::One(service) => tracker.service(service),
                    Update::Gone(name) => tracker.service_gone(&name),
                }
            }
            Input::Slices(update) => {
                metrics.endpoint_changes.inc();
                match update {
                    Update::All(slices) => tracker.set_slices(slices),
                    Update::One(slice) => tracker.slice(slice),
                    Update::Gone(name) => tracker.slice_gone(&name),
                }
            }
            Input::Node(node) => tracker.node(&node),
        }
    }

    fn apply(&mut self, changes: Changes) {
        let begin = Instant::now();
        let frontends = changes.frontends.len();
        match self.mode.apply(changes) {
            Ok(applied) => {
                let took = begin.elapsed();
                self.state.metrics.synced(applied.full, took);
                self.state.in_sync();
                self.retry.succeeded();
                if applied.untidy {
                    self.tidy_at.get_or_insert_with(|| Instant::now() + TIDY_PAUSE);
                }
                for stale in &applied.stale {
                    self.state.metrics.flow_deletions.inc();
                    if let Err(error) = self.conntrack.delete(&stale.filter()) {
                        warn!("a UDP flow may go on to an endpoint that is gone: {error}");
                    }
                }
                if !self.synced_once {
                    self.synced_once = true;
                    info!(frontends, written = applied.written, ?took, "in sync for the first time");
                } else {
                    debug!(frontends, written = applied.written, full = applied.full, ?took, "in sync");
                }
            }
            Err(error) => {
                self.state.metrics.failures.inc();
                self.state.out_of_sync();
                error!("{error}; trying again in {:?}", self.retry.failed());
            }
        }
    }
}
