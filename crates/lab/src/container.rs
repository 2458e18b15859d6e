//! The hidden launcher of a container: turns itself into the container's first process, or into a command beside it.
//!
//! The kubelet starts `podwire container SPEC -- COMMAND…` with the container's environment. For [`Spec::Start`] the
//! process is already in the pod's network namespace and the first of a new PID namespace; it makes its mount and
//! UTS namespaces, builds the root and becomes the command. For [`Spec::Exec`] it is already in the container's
//! network and PID namespaces and enters the other two. It has one thread throughout, so nothing is shared.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use podwire_kernel::{
    ns::{self, Kind, Namespace},
    process,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Result},
    rootfs::Rootfs,
};

/// The exit code of a launcher that could not become the command, as `docker run` has it.
const NOT_STARTED: u8 = 128;
/// The exit code for a command that is not there, as shells have it.
const NOT_FOUND: u8 = 127;

/// What the launcher is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Spec {
    /// Become the first process of a new container. Standard input is a socket: it is closed when the command runs, or
    /// carries the reason why it does not.
    Start(Start),
    /// Become a command in a running container.
    Exec(Exec),
}

/// A new container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Host name, in a UTS namespace of its own; `None` keeps the node's.
    pub hostname: Option<String>,
    /// A directory to build the root on; the kubelet owns it.
    pub base: PathBuf,
    /// What to mount over the root, in order.
    pub mounts: Vec<Mount>,
    /// Files of `/etc` to put in place of the host's: path and contents.
    pub files: Vec<(PathBuf, String)>,
    /// Whom to run as.
    pub identity: Identity,
}

/// One volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// A file or directory of the node.
    pub source: PathBuf,
    /// Where the container sees it.
    pub target: PathBuf,
    /// Whether the container may not write it.
    pub read_only: bool,
}

/// A command beside the first process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container's first process, in the node's PID namespace.
    pub pid: u32,
    /// Standard input is a terminal, to be the controlling one.
    pub tty: bool,
    /// Whom to run as.
    pub identity: Identity,
}

/// Whom to run a command as, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id; root where `None`.
    pub uid: Option<u32>,
    /// Group id; root's where `None`.
    pub gid: Option<u32>,
    /// Working directory; `/` where `None`.
    pub directory: Option<PathBuf>,
}

/// The arguments of the hidden subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A [`Spec`] as JSON.
    spec: String,
    /// What to become.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Why the launcher did not become the command.
struct Failure {
    exit_code: u8,
    reason: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { exit_code: NOT_STARTED, reason: error.to_string() }
    }
}

impl From<podwire_kernel::Error> for Failure {
    fn from(error: podwire_kernel::Error) -> Self {
        Error::from(error).into()
    }
}

/// Becomes the command; comes back only when it could not. Must be called while the process has one thread.
pub fn run(args: &Args) -> ExitCode {
    let spec = serde_json::from_str(&args.spec).map_err(io::Error::from).trying(|| "read a container's description");
    let Failure { exit_code, reason } = match spec {
        Ok(Spec::Start(start)) => return start_or_report(start, &args.command),
        Ok(Spec::Exec(exec)) => match become_exec(&exec, &args.command) {
            Err(failure) => failure,
        },
        Err(error) => error.into(),
    };
    let _ = writeln!(io::stderr(), "{reason}");
    ExitCode::from(exit_code)
}

fn start_or_report(start: Start, command: &[String]) -> ExitCode {
    // The kubelet's end sees the end of file when exec closes this copy, which is close-on-exec.
    let report = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).map(File::from);
    let Err(Failure { exit_code, reason }) = become_container(start, command);
    let _ = match report {
        Ok(mut report) => report.write_all(reason.as_bytes()),
        Err(_) => writeln!(io::stderr(), "{reason}"),
    };
    ExitCode::from(exit_code)
}

fn become_container(start: Start, command: &[String]) -> Result<Infallible, Failure> {
    let null = File::open("/dev/null").trying(|| "open /dev/null")?;
    rustix::stdio::dup2_stdin(null).map_err(io::Error::from).trying(|| "redirect standard input")?;
    process::new_session()?;
    ns::unshare(&[Kind::Mount])?;
    if let Some(hostname) = &start.hostname {
        ns::unshare(&[Kind::Uts])?;
        process::set_hostname(hostname)?;
    }
    let mut root = Rootfs::container();
    for (path, contents) in start.files {
        root = root.file(path, contents);
    }
    for mount in start.mounts {
        root = match mount.read_only {
            true => root.bind_read_only(mount.source, mount.target),
            false => root.bind(mount.source, mount.target),
        };
    }
    root.enter(&start.base)?;
    start.identity.become_command(command)
}

fn become_exec(exec: &Exec, command: &[String]) -> Result<Infallible, Failure> {
    // Both are opened before the mount namespace changes what /proc shows.
    let namespaces = [Namespace::of_process(exec.pid, Kind::Uts)?, Namespace::of_process(exec.pid, Kind::Mount)?];
    for namespace in &namespaces {
        namespace.enter()?;
    }
    process::new_session()?;
    if exec.tty {
        process::take_terminal(io::stdin())?;
    }
    exec.identity.become_command(command)
}

impl Identity {
    fn become_command(&self, argv: &[String]) -> Result<Infallible, Failure> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(Error::Invalid("no command to run".to_owned()).into());
        };
        let directory = self.directory.clone().unwrap_or_else(|| "/".into());
        std::env::set_current_dir(&directory)
            .trying(|| format!("enter the working directory {}", directory.display()))?;
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(gid) = self.gid {
            command.gid(gid);
        }
        if let Some(uid) = self.uid {
            command.uid(uid);
        }
        let error = command.exec();
        let missing = error.kind() == io::ErrorKind::NotFound;
        let reason = match missing && !program.contains('/') {
            true => "executable file not found in $PATH".to_owned(),
            false => error.to_string(),
        };
        let exit_code = if missing { NOT_FOUND } else { NOT_STARTED };
        Err(Failure { exit_code, reason: format!("exec: {program:?}: {reason}") })
    }
}
