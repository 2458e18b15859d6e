//! Processes: waiting for signals and children, process descriptors, terminals.

use std::{
    fmt::Display,
    fs, io, mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
    time::Duration,
};

pub use rustix::process::Signal;

use crate::{Error, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, PidfdFlags, WaitOptions},
    pty::OpenptFlags,
};

/// Turns an errno into an error that says what was tried.
pub(crate) fn tried(what: impl Display) -> impl FnOnce(Errno) -> Error {
    let what = what.to_string();
    move |errno| Error::refused(what, errno.raw_os_error())
}

/// Whether the calling process acts as user 0 of its user namespace.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Starts a session without a controlling terminal, led by the calling process.
///
/// # Errors
/// `EPERM` when it leads a process group already.
pub fn new_session() -> Result<()> {
    rustix::process::setsid().map(drop).map_err(tried("start a session"))
}

/// Sends `signal` to process `pid`.
///
/// # Errors
/// `ESRCH`: there is no such process; `EPERM`.
pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    rustix::process::kill_process(to_pid(pid)?, signal).map_err(tried(format_args!("signal process {pid}")))
}

/// When process `pid` started, in clock ticks since boot (`/proc/PID/stat` field 22): with the pid, this names one
/// process even after the pid was used again.
///
/// # Errors
/// There is no such process.
pub fn start_time(pid: u32) -> Result<u64> {
    let what = format!("read the start time of process {pid}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| Error::io(&what, error))?;
    // The command name, field 2, may hold blanks and parentheses: count from its end.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| Error::malformed(&what, "too few fields"))
}

/// A process by descriptor: never another one that got its number later.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens process `pid`.
    ///
    /// # Errors
    /// `ESRCH`: there is no such process.
    pub fn open(pid: u32) -> Result<Self> {
        rustix::process::pidfd_open(to_pid(pid)?, PidfdFlags::empty())
            .map(Self)
            .map_err(tried(format_args!("open process {pid}")))
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// `ESRCH`: it has ended; `EPERM`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::pidfd_send_signal(&self.0, signal).map_err(tried("signal a process"))
    }

    /// Waits until the process has ended; `false` when `timeout` passed before.
    ///
    /// # Errors
    /// Polling failed.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(rustix::event::poll(&mut fds, Some(&timeout)).map_err(tried("wait for a process"))? > 0)
    }
}

/// Signals that the calling process takes one by one instead of being interrupted: for a process without threads.
pub struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    /// Blocks `signals` in the calling thread. Children inherit that: see [`BlockedSignals::unblock_in`].
    ///
    /// # Errors
    /// None in practice.
    pub fn new(signals: &[Signal]) -> Result<Self> {
        // SAFETY: sigset_t is plain data; sigemptyset initialises it, sigaddset and pthread_sigmask only get pointers
        // to it that are valid for the calls.
        #[allow(unsafe_code)]
        let (set, result) = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, signal.as_raw());
            }
            (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))
        };
        if result == 0 { Ok(Self(set)) } else { Err(Error::refused("block signals", result)) }
    }

    /// Lets the program that `command` starts receive the signals again.
    pub fn unblock_in(&self, command: &mut Command) {
        let set = self.0;
        let unblock = move || {
            // SAFETY: the pointer is to a live, initialised set; pthread_sigmask is async-signal-safe.
            #[allow(unsafe_code)]
            match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) } {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        };
        // SAFETY: between fork and exec the closure only makes one async-signal-safe call and allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(unblock);
        }
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// None in practice.
    pub fn wait(&self) -> Result<Signal> {
        let mut number = 0;
        // SAFETY: both pointers are to live values of the right types.
        #[allow(unsafe_code)]
        let result = unsafe { libc::sigwait(&raw const self.0, &raw mut number) };
        if result != 0 {
            return Err(Error::refused("wait for a signal", result));
        }
        Signal::from_named_raw(number)
            .ok_or_else(|| Error::malformed("wait for a signal", format!("unexpected signal {number}")))
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The child.
    pub pid: u32,
    /// Its exit code; 128 + the signal's number when a signal killed it, as shells say it.
    pub code: i32,
}

/// Takes the exit status of any child that has ended; `None` when there is none (left) to take.
///
/// # Errors
/// None in practice.
pub fn reap() -> Result<Option<Ended>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => {
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            Ok(Some(Ended { pid: pid.as_raw_nonzero().get().cast_unsigned(), code: code.unwrap_or(-1) }))
        }
        Ok(None) | Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(tried("wait for children")(errno)),
    }
}

/// Sets the host name of the calling thread's UTS namespace.
///
/// # Errors
/// `EINVAL` for more than 64 bytes; `EPERM`.
pub fn set_hostname(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).map_err(tried(format_args!("set the host name to {name}")))
}

/// A new pseudo-terminal: the end that a program is run on, and the end that drives it.
#[derive(Debug)]
pub struct Pty {
    /// The driving end.
    pub controller: OwnedFd,
    /// The program's end, for its stdin, stdout and stderr.
    pub terminal: OwnedFd,
}

impl Pty {
    /// Opens a pair.
    ///
    /// # Errors
    /// No `/dev/ptmx`, or no pseudo-terminal left.
    pub fn open() -> Result<Self> {
        let failed = || tried("open a pseudo-terminal");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = rustix::pty::openpt(flags).map_err(failed())?;
        rustix::pty::unlockpt(&controller).map_err(failed())?;
        let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags).map_err(failed())?;
        Ok(Self { controller, terminal })
    }
}

/// Tells the kernel the size of a terminal, in characters; programs on it get SIGWINCH.
///
/// # Errors
/// `ENOTTY`.
pub fn resize_terminal(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).map_err(tried("resize a terminal"))
}

/// Makes `terminal` the controlling terminal of the session that the caller leads.
///
/// # Errors
/// `EPERM`: the caller leads no session, or the terminal controls another.
pub fn take_terminal(terminal: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal).map_err(tried("take a controlling terminal"))
}

fn to_pid(pid: u32) -> Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::invalid(format!("find process {pid}"), "not a process id"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        thread,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_process_is_known_by_its_descriptor_and_start_time() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        assert!(start >= start_time(std::process::id()).unwrap());
        let fd = PidFd::open(child.id()).unwrap();
        assert!(!fd.wait(Duration::ZERO).unwrap(), "it runs");
        fd.signal(Signal::TERM).unwrap();
        assert!(fd.wait(LONG).unwrap());
        child.wait().unwrap();
        assert!(fd.signal(Signal::TERM).unwrap_err().is_not_found());
        assert!(start_time(child.id()).is_err());
        assert!(PidFd::open(0).is_err());
    }

    #[test]
    fn signals_are_taken_one_by_one_and_not_withheld_from_children() {
        // On a thread of its own: the mask is a thread's, and a signal for a thread can be sent by its `kill` only.
        let child_ended = thread::spawn(|| {
            let signals = BlockedSignals::new(&[Signal::TERM]).unwrap();
            let mut command = Command::new("sleep");
            command.arg("60");
            signals.unblock_in(&mut command);
            let mut child = command.spawn().unwrap();
            kill(child.id(), Signal::TERM).unwrap();
            child.wait().unwrap()
        });
        let status = child_ended.join().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[test]
    fn what_is_written_on_one_end_of_a_terminal_is_read_on_the_other() {
        let pty = Pty::open().unwrap();
        resize_terminal(&pty.controller, 100, 30).unwrap();
        let size = rustix::termios::tcgetwinsize(&pty.terminal).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (100, 30));
        let (mut terminal, mut controller) = (File::from(pty.terminal), File::from(pty.controller));
        terminal.write_all(b"hello\n").unwrap();
        let mut text = [0; 7];
        controller.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello\r\n", "a terminal ends its lines so");
    }
}
