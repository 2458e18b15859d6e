//! A file that a plugin reads again when it changes.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// A file by its path, and how it looked when it was read last.
pub(crate) struct WatchedFile {
    pub(crate) path: PathBuf,
    /// How often to look; zero for never.
    pub(crate) interval: Duration,
    seen: Mutex<Option<Stamp>>,
}

/// What tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) modified: SystemTime,
    length: u64,
}

impl WatchedFile {
    pub(crate) fn new(path: impl Into<PathBuf>, interval: Duration) -> Self {
        Self { path: path.into(), interval, seen: Mutex::new(None) }
    }

    /// The file's bytes if it looks different from the last time, or for the first time; `Err` once when it cannot be
    /// read any more. Blocks.
    pub(crate) fn changed(&self) -> Option<io::Result<(Stamp, Vec<u8>)>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = fs::metadata(&self.path)
            .and_then(|metadata| Ok(Stamp { modified: metadata.modified()?, length: metadata.len() }));
        let known = seen.take();
        *seen = stamp.as_ref().ok().copied();
        match stamp {
            Ok(stamp) if known == Some(stamp) => None,
            Ok(stamp) => Some(fs::read(&self.path).map(|bytes| (stamp, bytes))),
            Err(_) if known.is_none() => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Calls `look` in the background, on a thread that may block, as often as the interval says.
    pub(crate) async fn watch(interval: Duration, look: impl Fn() + Clone + Send + 'static) {
        if interval.is_zero() {
            return;
        }
        loop {
            tokio::time::sleep(interval).await;
            // It fails only when the runtime ends or `look` panicked, which has been told.
            let _ = tokio::task::spawn_blocking(look.clone()).await;
        }
    }
}
