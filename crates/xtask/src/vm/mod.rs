//! An emulated machine with Debian's own kernel, for what the host's kernel may lack: IPVS, dummy links, ipset, SCTP.
//!
//! The machine has no disk, and a network card only for its virtual functions. It sees the host's root folder read-only, through 9p, under an overlay in
//! its own memory: every program of the host is there, and nothing that it writes outlives it. CONTRIBUTING.md tells how to use it.

mod initramfs;
mod kernel;
mod machine;
pub mod tests;

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{setup, shell};
use machine::Job;

/// How long `cargo xtask vm -- COMMAND` may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(1800);

/// Fetches the kernel, unless it is there.
pub fn prepare() -> Result<()> {
    kernel::ready().map(drop)
}

/// `cargo xtask vm -- COMMAND…`: runs a command in a new machine; an error unless it succeeds.
pub fn run(args: &[&str]) -> Result<()> {
    let command = match args {
        ["--", command @ ..] | command if !command.is_empty() => command,
        _ => bail!("which command? cargo xtask vm -- uname -a"),
    };
    setup::run()?;
    let mut script = OsString::from("exec");
    for word in command {
        script.push(" ");
        script.push(quoted(word));
    }
    script.push("\n");
    let status = machine::run(&kernel::ready()?, &Job { script, folder: shell::root(), limit: COMMAND_LIMIT })?;
    if status == 0 { Ok(()) } else { bail!("{} failed in the machine: exit status {status}", command.join(" ")) }
}

/// `word` as one word of a shell's command line.
fn quoted(word: impl AsRef<OsStr>) -> OsString {
    let mut quoted = OsString::from("'");
    for (n, part) in word.as_ref().as_encoded_bytes().split(|b| *b == b'\'').enumerate() {
        if n > 0 {
            quoted.push(r"'\''");
        }
        quoted.push(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(part));
    }
    quoted.push("'");
    quoted
}
