//! What every program that stays does the same way: ending when told to, and trying again what failed.

use std::{future, time::Duration};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The runtime cannot handle signals.
    pub fn new() -> anyhow::Result<Self> {
        let wait = |kind, name| signal(kind).with_context(|| format!("cannot wait for {name}"));
        Ok(Self {
            terminate: wait(SignalKind::terminate(), "SIGTERM")?,
            interrupt: wait(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// Resolves when a signal comes, once for each.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How long to wait before what failed is tried again.
#[derive(Debug, Default)]
pub struct Retry(Option<Duration>);

impl Retry {
    /// The pause before the next attempt; `None` when nothing failed.
    pub fn pause(&self) -> Option<Duration> {
        self.0
    }

    /// Nothing is left to be tried again.
    pub fn succeeded(&mut self) {
        self.0 = None;
    }

    /// Says how long to wait after this failure.
    pub fn failed(&mut self) -> Duration {
        *self.0.insert(self.0.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE)))
    }
}

/// Sleeps; for ever when there is nothing to wait for.
pub async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut retry = Retry::default();
        assert_eq!(retry.pause(), None);
        let pauses: Vec<Duration> = (0..12).map(|_| retry.failed()).collect();
        assert_eq!(pauses[..3], [20, 40, 80].map(Duration::from_millis));
        assert_eq!(pauses[11], LONGEST_PAUSE);
        assert_eq!(retry.pause(), Some(LONGEST_PAUSE));
        retry.succeeded();
        assert_eq!((retry.pause(), retry.failed()), (None, FIRST_PAUSE));
    }
}
