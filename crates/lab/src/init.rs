//! Process 1 of a lab: everything else of the lab lives in its PID namespace and ends when it does.
//!
//! It makes the lab's mount namespace, starts the supervisor, takes the exit status of orphans, passes SIGTERM on, and
//! exits when the supervisor does. Its standard input is the lab's locked directory: the lock goes when it goes.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use podwire_kernel::{
    mount,
    ns::{self, Kind},
    process::{self, BlockedSignals, Signal},
};

use crate::error::{Context, Result};

/// Runs as process 1 and returns the supervisor's exit code. `config` is handed on to the supervisor.
///
/// # Errors
/// The namespace cannot be set up, or the supervisor not started.
pub fn run(config: &str) -> Result<u8> {
    process::new_session()?;
    ns::unshare(&[Kind::Mount])?;
    mount::make_private()?;
    mount::proc("/proc".as_ref())?;
    let signals = BlockedSignals::new(&[Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP])?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("podwire").args(["lab-supervisor", config]).stdin(Stdio::null());
    signals.unblock_in(&mut command);
    let supervisor = command.spawn().trying(|| "start the lab's supervisor")?.id();
    loop {
        let signal = signals.wait()?;
        if signal != Signal::CHILD {
            // It may have ended just now: its SIGCHLD is next.
            let _ = process::kill(supervisor, signal);
            continue;
        }
        while let Some(ended) = process::reap()? {
            if ended.pid == supervisor {
                return Ok(u8::try_from(ended.code).unwrap_or(u8::MAX));
            }
        }
    }
}
