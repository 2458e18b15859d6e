//! Watches a configuration file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often to read the file. It is small, and a mounted ConfigMap changes by a swap of links that is easily missed by
/// watches of the file itself.
const INTERVAL: Duration = Duration::from_secs(1);

/// A file, and what it was when last read.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    known: Option<Vec<u8>>,
    interval: Interval,
}

impl FileWatch {
    /// What the file is now is no news. To be called within a runtime.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { known: fs::read(&path).ok(), path, interval: every(INTERVAL) }
    }

    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the file is different, and returns what it is then. May be dropped and called again at any time.
    ///
    /// # Errors
    /// It can no longer be read, or is not text. This, too, is told once.
    pub async fn changed(&mut self) -> io::Result<String> {
        loop {
            self.interval.tick().await;
            let found = fs::read(&self.path);
            let content = found.as_ref().ok().cloned();
            if content != self.known {
                self.known = content;
                return found.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_change_is_told_once_also_that_of_a_link() {
        let folder = std::env::temp_dir().join(format!("podwire-file-watch-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // As the kubelet does it: net-conf.json -> ..data/net-conf.json, ..data -> ..2026_11_22.
        let version = |name: &str, content: &[u8]| {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("net-conf.json"), content).unwrap();
            symlink(name, folder.join("..data_tmp")).unwrap();
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        };
        version("..1", b"one");
        symlink("..data/net-conf.json", folder.join("net-conf.json")).unwrap();
        let pause = Duration::from_millis(10);
        let mut watch = FileWatch { interval: every(pause), ..FileWatch::new(folder.join("net-conf.json")) };
        let quiet = timeout(pause * 5, watch.changed()).await;
        assert!(quiet.is_err(), "nothing changed: {quiet:?}");
        version("..2", b"two");
        assert_eq!(watch.changed().await.unwrap(), "two");
        version("..3", b"two");
        version("..4", &[0xff]);
        assert!(watch.changed().await.is_err());
        fs::remove_dir_all(folder.join("..4")).unwrap();
        assert_eq!(watch.changed().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let quiet = timeout(pause * 5, watch.changed()).await;
        assert!(quiet.is_err(), "told already: {quiet:?}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
