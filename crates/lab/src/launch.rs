//! Starting and stopping a lab from the terminal's side.

use std::{
    env, fs,
    fs::File,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use podwire_kernel::{
    ns::{self, Kind},
    process::{PidFd, Signal},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
};

use crate::{
    error::{Context, Error, Result},
    node::Executables,
    preflight,
    progress::Progress,
    state::{Directory, ProcessId, Running, State},
    supervisor::Config,
    topology::Options,
};

/// How long a lab may take to end by itself before it is killed, and then to be gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long a lab may take from its beginning until it has written who it is.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How much of the log an error shows, in lines.
const LOG_TAIL: usize = 8;

/// Brings a lab up; `on_step` hears of each step that is done. When this returns an error, nothing is left.
///
/// The calling process must have one thread only, and can start no other thread afterwards: its further children belong to
/// the lab.
///
/// # Errors
/// [`Error::Invalid`] for options that cannot be and for a lab that runs already, [`Error::Unavailable`] for a
/// machine that cannot run one, and what the supervisor reports.
pub fn up(options: &Options, on_step: impl FnMut(&str)) -> Result<Running> {
    options.validate()?;
    let config = Config { options: options.clone(), executables: executables()? };
    let directory = Directory::of(&options.name)?;
    let lock = directory.claim(&options.name)?;
    let outcome = preflight::check(options.backend, directory.path()).and_then(|()| start(&config, &directory, lock));
    match outcome {
        Ok(starting) => starting.finish(&directory, on_step),
        Err(error) => {
            directory.remove()?;
            Err(error)
        }
    }
}

/// Ends a lab and removes its directory. Returns whether there was anything to end or remove.
///
/// # Errors
/// The lab would not end, or its directory could not be removed.
pub fn down(name: &str) -> Result<bool> {
    let directory = Directory::of(name)?;
    let begin = Instant::now();
    loop {
        match directory.is_running()? {
            None => return Ok(false),
            Some(false) => break,
            Some(true) => {}
        }
        match directory.init() {
            Ok(init) => {
                init.open().map_or(Ok(()), |init| end(&init))?;
                break;
            }
            // Nothing is written yet: it is starting, or about to end with an `up` that was cut off.
            Err(_) if begin.elapsed() < FIRST_WORD => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error),
        }
    }
    directory.remove()?;
    Ok(true)
}

/// `podwire` and `podwire-cni` as they are on the host: the latter is beside the former.
fn executables() -> Result<Executables> {
    let podwire = env::current_exe().trying(|| "find the running executable")?;
    let cni = podwire.with_file_name("podwire-cni");
    if !cni.is_file() {
        return Err(Error::Unavailable(format!(
            "{} is missing: it belongs beside podwire (cargo build builds both)",
            cni.display()
        )));
    }
    Ok(Executables { podwire, cni })
}

/// A lab whose processes run, and which may still fail to come up.
struct Starting {
    state: State,
    init: PidFd,
    progress: OwnedFd,
}

fn start(config: &Config, directory: &Directory, lock: File) -> Result<Starting> {
    let started = SystemTime::now();
    let log = File::create(directory.log()).trying(|| format!("create {}", directory.log().display()))?;
    let config_text = serde_json::to_string(config).map_err(std::io::Error::from).trying(|| "describe the lab")?;
    let (progress, writer) = std::io::pipe().trying(|| "open a pipe")?;
    ns::unshare(&[Kind::Pid])?;
    let pid = Command::new("/proc/self/exe")
        .arg0("podwire")
        .args(["lab-init", &config_text])
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| ["PATH", "RUST_LOG", "RUST_BACKTRACE"].iter().any(|kept| name == kept)))
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(lock)))
        .stdout(Stdio::from(OwnedFd::from(writer)))
        .stderr(Stdio::from(OwnedFd::from(log)))
        .spawn()
        .trying(|| "start the lab's init process")?
        .id();
    let state = State { options: config.options.clone(), init: ProcessId::of(pid)?, started, running: None };
    directory.write(&state)?;
    Ok(Starting { state, init: PidFd::open(pid)?, progress: progress.into() })
}

impl Starting {
    fn finish(mut self, directory: &Directory, on_step: impl FnMut(&str)) -> Result<Running> {
        let outcome = self.follow(directory, on_step).and_then(|running| {
            self.state.running = Some(running.clone());
            directory.write(&self.state)?;
            Ok(running)
        });
        if outcome.is_err() {
            self.init.signal(Signal::KILL).or_else(gone)?;
            self.init.wait(GRACE)?;
            directory.remove()?;
        }
        outcome
    }

    /// Passes progress on until the lab is up.
    fn follow(&self, directory: &Directory, mut on_step: impl FnMut(&str)) -> Result<Running> {
        let failed = || "follow the lab's progress";
        // Everything on this thread: the kernel lets a process whose children have another PID namespace start none.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().trying(failed)?;
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).trying(failed)?;
            let mut terminate = signal(SignalKind::terminate()).trying(failed)?;
            let mut hangup = signal(SignalKind::hangup()).trying(failed)?;
            let pipe = self.progress.try_clone().and_then(pipe::Receiver::from_owned_fd).trying(failed)?;
            let mut lines = BufReader::new(pipe).lines();
            loop {
                let line = tokio::select! {
                    line = lines.next_line() => line.trying(failed)?,
                    _ = interrupt.recv() => return Err(interrupted()),
                    _ = terminate.recv() => return Err(interrupted()),
                    _ = hangup.recv() => return Err(interrupted()),
                };
                let Some(line) = line else { return Err(with_log("the lab ended before it was up", &directory.log())) };
                match serde_json::from_str(&line).map_err(std::io::Error::from).trying(failed)? {
                    Progress::Step(step) => on_step(&step),
                    Progress::Ready(running) => return Ok(running),
                    Progress::Failed(why) => return Err(with_log(&why, &directory.log())),
                }
            }
        })
    }
}

fn interrupted() -> Error {
    Error::Failed("interrupted: the lab was taken down again".to_owned())
}

/// Asks the init process to end, then makes it.
fn end(init: &PidFd) -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        init.signal(signal).or_else(gone)?;
        if init.wait(GRACE)? {
            return Ok(());
        }
    }
    Err(Error::Failed("the lab's init process does not end, not even killed".to_owned()))
}

/// A process that has ended already is as good as signalled.
fn gone(error: podwire_kernel::Error) -> Result<(), podwire_kernel::Error> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

/// A failure with the end of the log, which is removed with the lab.
fn with_log(why: &str, log: &Path) -> Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
    if tail.is_empty() {
        return Error::Failed(why.to_owned());
    }
    Error::Failed(format!("{why}\nThe lab's log ended with:\n  {}", tail.join("\n  ")))
}

/// Where the running lab's kubeconfig is.
///
/// # Errors
/// [`Error::Invalid`] when the lab does not run.
pub fn kubeconfig(name: &str) -> Result<PathBuf> {
    let directory = Directory::of(name)?;
    directory.read_running(name)?;
    Ok(directory.kubeconfig())
}
