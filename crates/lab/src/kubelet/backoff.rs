//! How long to wait before a container is started again.

use std::time::Duration;

/// The pause after the second exit in a row; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran for so long starts over with no pause (twice [`LONGEST`], as the kubelet).
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The kubelet's restart back-off: at once, then 10 s, 20 s, 40 s … 5 min.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backoff {
    exits: u32,
}

impl Backoff {
    /// The pause before the next start, given how long the container that just ended had run.
    pub fn after_exit(&mut self, ran_for: Duration) -> Duration {
        if ran_for >= FORGIVEN_AFTER {
            self.exits = 0;
        }
        let exits = self.exits;
        self.exits = exits.saturating_add(1);
        match exits {
            0 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 1).min(8)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..8).map(|_| backoff.after_exit(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.after_exit(Duration::ZERO);
        }
        assert_eq!(backoff.after_exit(Duration::from_secs(599)), LONGEST);
        assert_eq!(backoff.after_exit(Duration::from_secs(600)), Duration::ZERO);
        assert_eq!(backoff.after_exit(Duration::ZERO), FIRST);
    }
}
