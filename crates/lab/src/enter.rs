//! `podwire lab exec`: a command on a machine of the lab, from the host.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use podwire_kernel::{
    ns::{Kind, Namespace},
    process::{self, BlockedSignals, Signal},
};

use crate::{
    error::{Context, Error, Result},
    node::KUBECONFIG,
    state::{Directory, ProcessId, State},
    topology::UNDERLAY_NAME,
};

/// The exit code for a command that is not there, as shells have it.
const NOT_FOUND: u8 = 127;

/// Runs `command` on `machine` with the caller's terminal, environment and, where it exists there, working directory;
/// returns its exit code (128 + n when signal n killed it).
///
/// The calling process must have one thread only, and stays in the machine's namespaces.
///
/// # Errors
/// [`Error::Invalid`] when the lab does not run, has no such machine, or the command is not there.
pub fn exec(lab: &str, machine: &str, command: &[String]) -> Result<u8> {
    let state = Directory::of(lab)?.read_running(lab)?;
    let spaces = namespaces(&state, machine)?;
    let working_directory = env::current_dir().ok();
    for space in &spaces {
        space.enter()?;
    }
    if let Some(directory) = working_directory {
        // The machine may not have it (a directory under /tmp, say): then the command starts in /.
        let _ = env::set_current_dir(directory);
    }
    run(machine, command)
}

/// The namespaces of a machine, or of the underlay (whose mounts are the supervisor's, so the host's files are there). The
/// mount namespace is last: entering it changes what paths mean.
fn namespaces(state: &State, machine: &str) -> Result<Vec<Namespace>> {
    let lab = &state.options.name;
    let running = state
        .running
        .as_ref()
        .ok_or_else(|| Error::Invalid(format!("lab {lab} is still starting; wait for podwire lab up to end")))?;
    let process = |pid: u32| lab_proc(state.init).join(pid.to_string());
    if machine == UNDERLAY_NAME {
        let supervisor = process(running.supervisor);
        let spaces = [supervisor.join(&running.underlay), supervisor.join("ns/pid"), supervisor.join("ns/mnt")];
        return spaces.iter().map(|path| Ok(Namespace::open(path)?)).collect();
    }
    let Some(found) = running.machines.iter().find(|candidate| candidate.machine.name == machine) else {
        let names: Vec<_> = running.machines.iter().map(|machine| machine.machine.name.as_str()).collect();
        let names = names.join(", ");
        return Err(Error::Invalid(format!("lab {lab} has no {machine:?}; it has {names}, {UNDERLAY_NAME}")));
    };
    let directory = process(found.pid).join("ns");
    if !directory.exists() {
        return Err(Error::Failed(format!(
            "the process of {machine} has ended, and no machine is started again; for a whole lab: podwire lab down \
             --name {lab}, then podwire lab up --name {lab}"
        )));
    }
    [Kind::Net, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Mount]
        .into_iter()
        .map(|kind| Ok(Namespace::open(&directory.join(kind.file_name()))?))
        .collect()
}

/// The lab's `/proc`, as the host sees it.
pub(crate) fn lab_proc(init: ProcessId) -> PathBuf {
    Path::new("/proc").join(init.pid.to_string()).join("root/proc")
}

/// Runs the command as a child, since only children are in another PID namespace; passes signals on.
fn run(machine: &str, command: &[String]) -> Result<u8> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| Error::Invalid("name a command after --".to_owned()))?;
    let signals = BlockedSignals::new(&[Signal::CHILD, Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT])?;
    let mut child = Command::new(program);
    child.args(arguments).env("KUBECONFIG", KUBECONFIG);
    signals.unblock_in(&mut child);
    let child = match child.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("podwire: {program}: not found on {machine}");
            return Ok(NOT_FOUND);
        }
        child => child.trying(|| format!("run {program} on {machine}"))?,
    };
    loop {
        match signals.wait()? {
            Signal::CHILD => {
                while let Some(ended) = process::reap()? {
                    if ended.pid == child.id() {
                        return Ok(u8::try_from(ended.code).unwrap_or(u8::MAX));
                    }
                }
            }
            // The terminal sends these to the command itself.
            Signal::INT | Signal::QUIT => {}
            signal => {
                let _ = process::kill(child.id(), signal);
            }
        }
    }
}
