//! Starting, signalling and awaiting the processes of containers.

use std::{
    io,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use podwire_kernel::{
    ns::{self, Kind, Namespace},
    process::{self, Signal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    container::{Exec, Spec, Start},
    error::{Context, Error, Result},
};

/// The launcher: this executable, whatever it is called and wherever it was.
pub const LAUNCHER: &str = "/proc/self/exe";
/// How long output may still come after a command has ended: something that it left running may hold it open.
pub const DRAIN: Duration = Duration::from_millis(500);

/// A command and the environment it gets, complete.
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// All variables.
    pub env: Vec<(String, String)>,
}

/// Starts the first process of a container in the network namespace `net` (the node's where `None`) and in a PID
/// namespace of its own. Its stdout and stderr are piped. The process is killed when the value is dropped.
///
/// # Errors
/// Why the command does not run.
pub async fn start(net: Option<Arc<Namespace>>, spec: Start, line: &CommandLine) -> Result<Child, String> {
    let pair = UnixStream::pair().and_then(|(ours, theirs)| {
        let theirs = theirs.into_std()?;
        theirs.set_nonblocking(false)?;
        Ok((ours, theirs))
    });
    let (report, control) = pair.map_err(|e| format!("cannot make a socket pair: {e}"))?;
    let mut command = launcher(&Spec::Start(spec), line)?;
    command.stdin(OwnedFd::from(control)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let enter = move || {
        if let Some(net) = net {
            net.enter()?;
        }
        Ok(ns::unshare(&[Kind::Pid])?)
    };
    let mut child = spawn_after(enter, command).await.map_err(|e| e.to_string())?;
    match reported(report).await {
        Ok(()) => Ok(child),
        Err(reason) => {
            let _ = child.wait().await;
            Err(reason)
        }
    }
}

/// Waits for the launcher to become the command: the end of its report, or why not.
async fn reported(mut report: UnixStream) -> Result<(), String> {
    let _ = report.shutdown().await;
    let mut reason = String::new();
    match report.read_to_string(&mut reason).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(reason),
        Err(error) => Err(format!("lost the launcher: {error}")),
    }
}

/// Where a command's streams lead.
#[derive(Debug)]
pub struct Streams {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

/// Starts a command beside the first process of a container. The launcher reports on stderr what keeps the command from
/// running, with exit code 127 (not found) or 128. The process is killed when the value is dropped.
///
/// # Errors
/// The container has just ended.
pub async fn exec(spec: Exec, line: &CommandLine, streams: Streams) -> Result<Child, String> {
    let net = Namespace::of_process(spec.pid, Kind::Net).map_err(|e| e.to_string())?;
    let pid = Namespace::of_process(spec.pid, Kind::Pid).map_err(|e| e.to_string())?;
    let mut command = launcher(&Spec::Exec(spec), line)?;
    command.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
    let enter = move || {
        net.enter()?;
        Ok(pid.enter()?)
    };
    spawn_after(enter, command).await.map_err(|e| e.to_string())
}

fn launcher(spec: &Spec, line: &CommandLine) -> Result<Command, String> {
    let spec = serde_json::to_string(spec).map_err(|e| e.to_string())?;
    let mut command = Command::new(LAUNCHER);
    command.arg0("podwire").args(["container", &spec, "--"]).args(&line.argv);
    command.env_clear().envs(line.env.iter().map(|(k, v)| (k, v))).kill_on_drop(true);
    Ok(command)
}

/// Spawns `command` from a thread of its own after `enter`: namespaces are entered for good, and the thread ends.
async fn spawn_after(enter: impl FnOnce() -> Result<()> + Send + 'static, mut command: Command) -> Result<Child> {
    let (done, spawned) = oneshot::channel();
    let runtime = Handle::current();
    let spawn = move || {
        let _guard = runtime.enter();
        let child = enter().and_then(|()| command.spawn().trying(|| "start the container launcher"));
        let _ = done.send(child);
    };
    thread::Builder::new().name("spawn".into()).spawn(spawn).trying(|| "start a thread")?;
    spawned.await.unwrap_or_else(|_| Err(Error::Failed("the thread that starts containers ended".to_owned())))
}

/// An exit code; 128 + n when signal n killed the process.
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|n| 128 + n)).unwrap_or(-1)
}

/// Asks `child` to end, and kills it at `deadline`. Must not be called for a child that was already awaited.
pub async fn terminate(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    if deadline > Instant::now() {
        if let Some(pid) = child.id() {
            // The kernel drops the signal if the command, first process of its PID namespace, has no handler for it.
            let _ = process::kill(pid, Signal::TERM);
        }
        if let Ok(status) = timeout_at(deadline, child.wait()).await {
            return status;
        }
    }
    child.start_kill()?;
    child.wait().await
}

/// Runs a command to its end, or kills it after `limit`: exit code and output, both streams together.
///
/// # Errors
/// It could not be started, or took too long.
pub async fn run_to_end(spec: Exec, line: &CommandLine, limit: Duration) -> Result<(i32, String), String> {
    let streams = Streams { stdin: Stdio::null(), stdout: Stdio::piped(), stderr: Stdio::piped() };
    let mut child = exec(spec, line, streams).await?;
    let deadline = Instant::now() + limit;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = tokio::spawn(async move {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let read_out = async {
            if let Some(pipe) = stdout {
                let _ = pipe.take(4096).read_to_end(&mut first).await;
            }
        };
        let read_err = async {
            if let Some(pipe) = stderr {
                let _ = pipe.take(4096).read_to_end(&mut second).await;
            }
        };
        tokio::join!(read_out, read_err);
        first.extend(second);
        String::from_utf8_lossy(&first).into_owned()
    });
    let Ok(status) = timeout_at(deadline, child.wait()).await else {
        let _ = child.kill().await;
        return Err(format!("command {:?} timed out after {limit:?}", line.argv));
    };
    let output = tokio::time::timeout(DRAIN, output).await.ok().and_then(Result::ok).unwrap_or_default();
    status.map(|status| (exit_code(status), output)).map_err(|e| e.to_string())
}
