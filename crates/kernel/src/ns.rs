//! Namespaces: making, opening and entering them, as safe calls.
//!
//! A namespace lives as long as a process, a mount or an open file refers to it. A [`Namespace`] is such an open file:
//! nothing is pinned under `/run/netns`, so a killed owner leaves nothing behind.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic,
    path::Path,
    process, thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Error, Result, process::tried};

/// The kinds of namespaces that Podwire uses (`namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Interfaces, routes, rules, sockets.
    Net,
    /// The mount table.
    Mount,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Process ids. For `unshare` and `setns` it counts for children only.
    Pid,
    /// Control-group root.
    Cgroup,
    /// User ids and capabilities.
    User,
}

impl Kind {
    /// The file's name under `/proc/PID/ns`.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Mount => "mnt",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::User => "user",
        }
    }

    const fn flag(self) -> UnshareFlags {
        match self {
            Self::Net => UnshareFlags::NEWNET,
            Self::Mount => UnshareFlags::NEWNS,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Ipc => UnshareFlags::NEWIPC,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Cgroup => UnshareFlags::NEWCGROUP,
            Self::User => UnshareFlags::NEWUSER,
        }
    }
}

/// Moves the calling thread into new namespaces of `kinds`; later children follow (for [`Kind::Pid`], only children).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENOSPC` at a limit of `/proc/sys/user/max_*_namespaces`.
pub fn unshare(kinds: &[Kind]) -> Result<()> {
    let flags = kinds.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
    // SAFETY: only CLONE_FILES, which `Kind` cannot name, can invalidate file descriptors that other threads hold.
    #[allow(unsafe_code)]
    let done = unsafe { rustix::thread::unshare_unsafe(flags) };
    done.map_err(tried(format_args!("make new namespaces {kinds:?}")))
}

/// An open namespace: keeps it alive and is the way in.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Opens a namespace by path, for example `/proc/42/ns/net`.
    ///
    /// # Errors
    /// The path does not exist or may not be read.
    pub fn open(path: &Path) -> Result<Self> {
        File::open(path).map(Self).map_err(|error| Error::io(format_args!("open namespace {}", path.display()), error))
    }

    /// Opens the namespace of `kind` that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current(kind: Kind) -> Result<Self> {
        Self::open(&Path::new("/proc/thread-self/ns").join(kind.file_name()))
    }

    /// Opens the namespace of `kind` that process `pid` is in.
    ///
    /// # Errors
    /// There is no such process, or it may not be looked into.
    pub fn of_process(pid: u32, kind: Kind) -> Result<Self> {
        Self::open(&Path::new("/proc").join(pid.to_string()).join("ns").join(kind.file_name()))
    }

    /// Makes a new network namespace, without moving the caller: `lo` is there, down.
    ///
    /// # Errors
    /// As [`unshare`].
    pub fn new_net() -> Result<Self> {
        on_a_thread(|| {
            unshare(&[Kind::Net])?;
            Self::current(Kind::Net)
        })
    }

    /// Moves the calling thread into this namespace for good.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; `EINVAL` for a mount namespace when threads share the working directory.
    pub fn enter(&self) -> Result<()> {
        rustix::thread::move_into_link_name_space(self.0.as_fd(), None).map_err(tried("enter a namespace"))
    }

    /// Runs `f` on a thread of its own inside this namespace and returns what it returned. Sockets made there stay
    /// bound to this namespace wherever they are used.
    ///
    /// # Errors
    /// Entering failed, or `f` did. A panic of `f` goes on in the caller.
    pub fn run<T: Send, E: From<Error> + Send>(&self, f: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
        on_a_thread(|| {
            self.enter()?;
            f()
        })
    }

    /// Runs `f` on the calling thread inside this network namespace and comes back: for short work, several times sooner
    /// than [`Namespace::run`].
    ///
    /// # Errors
    /// It is no network namespace, entering it failed, or `f` did.
    pub fn visit<T, E: From<Error>>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        visit(self.0.as_fd(), f)
    }
}

impl From<OwnedFd> for Namespace {
    /// Takes over an open namespace.
    fn from(file: OwnedFd) -> Self {
        Self(file.into())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// See [`Namespace::visit`].
pub(crate) fn visit<T, E: From<Error>>(netns: BorrowedFd<'_>, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let _back = Back(Namespace::current(Kind::Net)?);
    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .map_err(tried("enter a network namespace"))?;
    f()
}

/// The way back, taken also when the visit ends in a panic.
struct Back(Namespace);

impl Drop for Back {
    fn drop(&mut self) {
        // It was here a moment ago and the file is open, so this does not fail. Should it ever, nothing that this thread
        // does next would be done where it should be.
        if self.0.enter().is_err() {
            process::abort();
        }
    }
}

/// Runs `f` on a thread of its own, whose namespaces go with it.
pub(crate) fn on_a_thread<T: Send, E: From<Error> + Send>(f: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().spawn_scoped(scope, f).map_err(|error| Error::io("start a thread", error))?;
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn here() -> PathBuf {
        fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn a_namespace_is_made_and_entered_without_moving_the_caller() {
        let before = here();
        let namespace = match Namespace::new_net() {
            Err(error) if error.is_not_permitted() && std::env::var_os("CI").is_none() => {
                eprintln!("skipped: {error}");
                return;
            }
            namespace => namespace.unwrap(),
        };
        let inside = namespace.run(|| Ok::<_, Error>(here())).unwrap();
        assert_ne!(inside, before);
        assert_eq!(namespace.run(|| Ok::<_, Error>(here())).unwrap(), inside, "it is the same one again");
        assert_eq!(namespace.visit(|| Ok::<_, Error>(here())).unwrap(), inside);
        assert_eq!(here(), before);
        let ended = panic::catch_unwind(|| namespace.visit(|| -> Result<()> { panic!("inside") }));
        assert!(ended.is_err() && here() == before, "a panic leads back too");
        let failed = namespace.run(|| Err::<(), _>(Error::invalid("try", "no")));
        assert_eq!(failed.unwrap_err().to_string(), "cannot try: no");
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        assert!(Namespace::open(Path::new("/proc/self/ns/none")).unwrap_err().is_not_found());
        let file = Namespace::open(Path::new("/proc/self/status")).unwrap();
        assert_eq!(file.run(|| Ok::<_, Error>(())).unwrap_err().errno(), Some(libc::EINVAL));
        assert_eq!(file.visit(|| Ok::<_, Error>(())).unwrap_err().errno(), Some(libc::EINVAL));
    }
}
