//! What a running lab leaves on disk: one private directory, locked as long as the lab lives.
//!
//! The lock (flock on the directory) is held by the lab's init process through its standard input, so it goes with the
//! lab however that ends. A directory that is there but not locked is what a killed lab left, and nothing else can be
//! left: namespaces, mounts and processes end with the init process.

use std::{
    env, fs,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use podwire_kernel::process::{self, PidFd};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Context, Error, Result},
    topology::{self, Machine, Options},
};

/// How often another `down` is given a chance to finish removing a directory while this one makes it.
const ATTEMPTS: u32 = 10;

/// What `state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// What the user asked for.
    pub options: Options,
    /// The lab's init process, as the host sees it.
    pub init: ProcessId,
    /// When `up` began.
    pub started: SystemTime,
    /// What came up; absent while the lab is starting.
    pub running: Option<Running>,
}

/// A process by number and start time, which no other process shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number in the host's PID namespace.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start: u64,
}

/// The parts of a lab that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The API server's URL on the host's loopback.
    pub api_url: String,
    /// The supervisor's process, as the lab sees it.
    pub supervisor: u32,
    /// The underlay's network namespace, as a file of the supervisor: `fd/7`, below its directory in `/proc`.
    pub underlay: PathBuf,
    /// The nodes, then the client.
    pub machines: Vec<RunningMachine>,
}

/// A machine that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningMachine {
    /// Name and address.
    #[serde(flatten)]
    pub machine: Machine,
    /// Its process, as the lab sees it.
    pub pid: u32,
}

impl ProcessId {
    /// Identifies the process that has number `pid` now.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self { pid, start: process::start_time(pid)? })
    }

    /// Opens it, if it still runs.
    pub fn open(self) -> Option<PidFd> {
        let fd = PidFd::open(self.pid).ok()?;
        // Read after opening: the number cannot pass to another process in between without a change of start time.
        (process::start_time(self.pid).ok() == Some(self.start)).then_some(fd)
    }
}

/// The directory of one lab.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory of the lab called `name`, whether or not it exists.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that cannot be one.
    pub fn of(name: &str) -> Result<Self> {
        topology::check_name(name)?;
        Ok(Self(base()?.join(name)))
    }

    /// The directories of all labs, running or not.
    ///
    /// # Errors
    /// The directory of labs cannot be read.
    pub fn all() -> Result<Vec<(String, Self)>> {
        let base = base()?;
        let failed = || format!("read {}", base.display());
        let entries = match fs::read_dir(&base) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.trying(failed)?,
        };
        let mut labs = Vec::new();
        for entry in entries {
            let name = entry.trying(failed)?.file_name().to_string_lossy().into_owned();
            labs.push((name.clone(), Self(base.join(name))));
        }
        labs.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(labs)
    }

    /// Makes and locks the directory for a new lab, after removing what a killed lab of the same name left.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a lab of this name runs.
    pub fn claim(&self, name: &str) -> Result<File> {
        let failed = || format!("create {}", self.0.display());
        for _ in 0..ATTEMPTS {
            if let Some(base) = self.0.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(base).trying(failed)?;
            }
            match DirBuilder::new().mode(0o700).create(&self.0) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).trying(failed),
                _ => {}
            }
            let lock = match File::open(&self.0) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.trying(failed)?,
            };
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(already_running(name)),
                Err(TryLockError::Error(error)) => return Err(error).trying(failed),
                Ok(()) => {}
            }
            if !is_empty(&self.0)? {
                remove(&self.0)?;
                continue;
            }
            return Ok(lock);
        }
        Err(Error::Failed(format!("cannot create {}: something keeps removing it", self.0.display())))
    }

    /// Whether a lab runs (or is starting) here; `None` when there is no directory at all.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn is_running(&self) -> Result<Option<bool>> {
        let failed = || format!("look at {}", self.0.display());
        let directory = match File::open(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.trying(failed)?,
        };
        match directory.try_lock_shared() {
            Ok(()) => Ok(Some(false)),
            Err(TryLockError::WouldBlock) => Ok(Some(true)),
            Err(TryLockError::Error(error)) => Err(error).trying(failed),
        }
    }

    /// Reads the state of the lab, which must be running.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not, with the command that starts it.
    pub fn read_running(&self, name: &str) -> Result<State> {
        if self.is_running()? != Some(true) {
            return Err(Error::Invalid(format!(
                "lab {name} is not running; start it with: podwire lab up --name {name}"
            )));
        }
        self.read()
    }

    /// Reads the state, if it was ever written.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn read(&self) -> Result<State> {
        self.read_as()
    }

    fn read_as<T: DeserializeOwned>(&self) -> Result<T> {
        let path = self.state();
        let failed = || format!("read {}", path.display());
        let text = fs::read(&path).trying(failed)?;
        serde_json::from_slice(&text).map_err(std::io::Error::from).trying(failed)
    }

    /// The lab's init process: all that ending a lab needs, so that another version's lab can be ended as well.
    ///
    /// # Errors
    /// The state is missing or malformed.
    pub fn init(&self) -> Result<ProcessId> {
        #[derive(Deserialize)]
        struct Init {
            init: ProcessId,
        }
        self.read_as::<Init>().map(|state| state.init)
    }

    /// Writes the state, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec_pretty(state).map_err(std::io::Error::from).trying(|| "write the lab's state")?;
        write_private(&self.state(), &text)
    }

    /// Removes the directory and, when it was the last, those above it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        remove(&self.0)?;
        if let Some(labs) = self.0.parent() {
            // Others may be there, or come at this moment: then the directories stay, as they should.
            let _ = fs::remove_dir(labs);
            let _ = labs.parent().map(fs::remove_dir);
        }
        Ok(())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The kubeconfig for users on the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// What the supervisor and the nodes say.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The unix socket of a node's kubelet.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.sock"))
    }

    /// An empty directory for a machine to mount its root on.
    pub fn root_base(&self, machine: &str) -> PathBuf {
        self.0.join(format!("{machine}.root"))
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }
}

/// Writes a file that only its owner may read (mode 0600), whole or not at all.
///
/// # Errors
/// The directory is not writable, or full.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).trying(failed)?;
    file.write_all(contents).trying(failed)?;
    fs::rename(&new, path).trying(failed)
}

/// How long ago `since` was.
pub fn age(since: SystemTime) -> Duration {
    SystemTime::now().duration_since(since).unwrap_or_default()
}

/// Where labs keep their directories: `/run/podwire/lab` for root, below `$XDG_RUNTIME_DIR` for others.
fn base() -> Result<PathBuf> {
    if process::is_root() {
        return Ok("/run/podwire/lab".into());
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR")
        .ok_or_else(|| Error::Unavailable("a lab needs root: run podwire lab with sudo".into()))?;
    Ok(Path::new(&runtime).join("podwire/lab"))
}

fn already_running(name: &str) -> Error {
    Error::Invalid(format!("lab {name} is running already; stop it with: podwire lab down --name {name}"))
}

fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(directory).trying(|| format!("read {}", directory.display()))?;
    Ok(entries.next().is_none())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).trying(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> Directory {
        Directory(env::temp_dir().join(format!("podwire-state-{}-{name}/labs/x", std::process::id())))
    }

    fn clean(directory: &Directory) {
        directory.remove().unwrap();
        assert!(!directory.path().parent().unwrap().exists());
    }

    #[test]
    fn one_lab_of_a_name_at_a_time() {
        let directory = directory("lock");
        assert_eq!(directory.is_running().unwrap(), None);
        let lock = directory.claim("x").unwrap();
        assert_eq!(directory.is_running().unwrap(), Some(true));
        let error = directory.claim("x").unwrap_err();
        assert_eq!(error.to_string(), "lab x is running already; stop it with: podwire lab down --name x");
        drop(lock);
        assert_eq!(directory.is_running().unwrap(), Some(false));
        assert!(directory.read_running("x").unwrap_err().to_string().contains("podwire lab up --name x"));
        clean(&directory);
    }

    #[test]
    fn what_a_killed_lab_left_is_removed_by_the_next() {
        let directory = directory("left");
        drop(directory.claim("x").unwrap());
        fs::create_dir(directory.root_base("node1")).unwrap();
        fs::write(directory.kubeconfig(), "old").unwrap();
        let _lock = directory.claim("x").unwrap();
        assert!(is_empty(directory.path()).unwrap());
        clean(&directory);
    }

    #[test]
    fn state_survives_the_disk_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = directory("json");
        let _lock = directory.claim("x").unwrap();
        let machine = RunningMachine { machine: Options::stock("x").client(), pid: 7 };
        let state = State {
            options: Options::stock("x"),
            init: ProcessId::of(std::process::id()).unwrap(),
            started: SystemTime::now(),
            running: Some(Running {
                api_url: "https://127.0.0.1:1".into(),
                supervisor: 2,
                underlay: "fd/7".into(),
                machines: vec![machine],
            }),
        };
        directory.write(&state).unwrap();
        let read = directory.read_running("x").unwrap();
        assert_eq!((read.options, read.running), (state.options, state.running));
        assert!(read.init.open().is_some());
        assert!(ProcessId { start: read.init.start + 1, ..read.init }.open().is_none());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(directory.path()), mode(&directory.state())), (0o700, 0o600));
        clean(&directory);
    }
}
