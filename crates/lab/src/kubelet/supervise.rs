//! One container's life: start, probe, restart with back-off, stop.

use std::{collections::BTreeMap, path::PathBuf, process::ExitStatus, time::Duration};

use k8s_openapi::{api::core::v1::Container, jiff::Timestamp};
use tokio::{
    process::Child,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    backoff::Backoff,
    checks::Checks,
    env::{Facts, Objects, Sources, expand},
    events::Severity,
    image::{self, Program},
    logs::LogWriter,
    pod::Context,
    process::{self, CommandLine, DRAIN},
    registry::Run,
    sandbox::Sandbox,
    status::{Ended, Record, State},
    volumes,
};
use crate::container::{Identity, Start};

/// Search path of a container that sets none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between attempts to make a container whose references are not there.
const CONFIG_RETRY: Duration = Duration::from_secs(2);
/// How long an image stays at `ErrImagePull` before it is `ImagePullBackOff`.
const PULL_ATTEMPT: Duration = Duration::from_secs(2);
/// What is left to a container after its `preStop` hook took the whole grace period.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// What a pod's containers are started with.
#[derive(Debug)]
pub struct Prepared {
    /// The network.
    pub sandbox: Sandbox,
    /// Where each volume is.
    pub volumes: BTreeMap<String, PathBuf>,
    /// What the pod refers to.
    pub objects: Objects,
    /// What the node adds.
    pub facts: Facts,
    /// Host name; `None` for the node's.
    pub hostname: Option<String>,
    /// `/etc/hosts` and the like.
    pub files: Vec<(PathBuf, String)>,
}

/// One container of a pod, under supervision.
pub struct Supervisor<'a> {
    pod: &'a Context,
    /// What its pod has.
    pub prepared: &'a Prepared,
    /// The container.
    pub container: &'a Container,
    /// It has to succeed before the pod's main containers start.
    pub is_init: bool,
}

/// A run under way.
struct Running {
    id: String,
    child: Child,
    pid: u32,
    since: Timestamp,
    program: Program,
    env: Vec<(String, String)>,
    log: JoinHandle<()>,
}

/// Why a container is not running, when its pod wants it to.
enum Obstacle {
    /// The image stands for nothing.
    Image(String),
    /// A reference leads nowhere, for now.
    Config(String),
    /// The command cannot be run.
    Start(String),
}

impl<'a> Supervisor<'a> {
    /// The supervisor of `container`, which may be an init container.
    pub fn new(pod: &'a Context, prepared: &'a Prepared, container: &'a Container, is_init: bool) -> Self {
        Self { pod, prepared, container, is_init }
    }

    /// Runs the container until it has ended for good: by itself, or because the pod is to stop.
    pub async fn run(&self) {
        let mut backoff = Backoff::default();
        let mut attempts = 0_u32..;
        loop {
            if self.pod.stop_deadline().is_some() {
                return;
            }
            let is_first = attempts.next() == Some(0);
            let ended = match self.start(is_first).await {
                Ok(running) => self.see_through(running).await,
                Err(Obstacle::Image(message)) => return self.never_pulled(message).await,
                Err(Obstacle::Config(message)) => {
                    self.event(Severity::Warning, "Failed", format!("Error: {message}"));
                    self.waiting("CreateContainerConfigError", Some(message));
                    if self.pod.stopped_within(CONFIG_RETRY).await {
                        return;
                    }
                    continue;
                }
                Err(Obstacle::Start(message)) => self.not_started(message),
            };
            let ran_for = ended.finished_at.duration_since(ended.started_at).unsigned_abs();
            let again = self.restarts_after(&ended);
            let succeeded = ended.code == 0;
            self.update(|r| {
                r.state = State::Ended(ended);
                r.started = false;
                r.ready = self.is_init && succeeded;
            });
            if self.pod.stop_deadline().is_some()
                || !again
                || self.waits_before_restart(backoff.after_exit(ran_for)).await
            {
                return;
            }
        }
    }

    fn restarts_after(&self, ended: &Ended) -> bool {
        match (self.pod.spec.restart_policy.as_deref().unwrap_or("Always"), self.is_init) {
            ("Never", _) => false,
            ("OnFailure", _) | (_, true) => ended.code != 0,
            _ => true,
        }
    }

    /// Sits the back-off out; `true` when the pod is to stop instead.
    async fn waits_before_restart(&self, pause: Duration) -> bool {
        let (name, pod) = (&self.container.name, self.pod.long_name());
        let message = (!pause.is_zero())
            .then(|| format!("back-off {}s restarting failed container={name} pod={pod}", pause.as_secs()));
        let before = self.record();
        self.update(|r| {
            let reason = if message.is_some() { "CrashLoopBackOff" } else { "ContainerCreating" };
            if let State::Ended(ended) =
                std::mem::replace(&mut r.state, State::Waiting { reason, message: message.clone() })
            {
                r.last = Some(ended);
            }
        });
        if message.is_some() {
            let text = format!("Back-off restarting failed container {name} in pod {pod}");
            self.event(Severity::Warning, "BackOff", text);
        }
        self.pod.node.registry.awaits_next(&self.pod.key(&self.container.name));
        let stopped = self.pod.stopped_within(pause).await;
        self.update(|r| match before {
            Some(before) if stopped => *r = before,
            _ => r.restarts += 1,
        });
        stopped
    }

    async fn never_pulled(&self, message: String) {
        self.event(Severity::Warning, "Failed", message.clone());
        self.event(Severity::Warning, "Failed", "Error: ErrImagePull".to_owned());
        self.waiting("ErrImagePull", Some(message.clone()));
        if self.pod.stopped_within(PULL_ATTEMPT).await {
            return;
        }
        let image = self.container.image.as_deref().unwrap_or_default();
        self.event(Severity::Normal, "BackOff", format!("Back-off pulling image {image:?}"));
        self.event(Severity::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
        self.waiting("ImagePullBackOff", Some(format!("Back-off pulling image {image:?}: ErrImagePull: {message}")));
        self.pod.stop_requested().await;
    }

    fn not_started(&self, message: String) -> Ended {
        self.event(Severity::Warning, "Failed", format!("Error: {message}"));
        let now = Timestamp::now();
        let (id, reason) = (super::random_id(), Some("StartError"));
        Ended { code: 128, message: Some(message), reason, id, started_at: now, finished_at: now }
    }

    async fn start(&self, is_first: bool) -> Result<Running, Obstacle> {
        let program = image::resolve(self.container).map_err(Obstacle::Image)?;
        let image = self.container.image.as_deref().unwrap_or_default();
        self.event(Severity::Normal, "Pulled", format!("Container image {image:?} already present on machine"));
        self.update(|r| r.image_id = program.image_id.clone());
        // What was there at first may have changed since, and what was missing may be there.
        let fresh = if is_first { None } else { Some(self.pod.objects().await.map_err(Obstacle::Config)?) };
        let objects = fresh.as_ref().unwrap_or(&self.prepared.objects);
        let sources = Sources { pod: &self.pod.pod, objects, facts: &self.prepared.facts };
        let mut env = self.base_env();
        env.extend(sources.environment(self.container).map_err(Obstacle::Config)?);
        let mounts = volumes::mounts(self.container, &self.prepared.volumes, &env).map_err(Obstacle::Config)?;
        let argv = program.argv.iter().map(|arg| expand(arg, &env)).collect();
        let line = CommandLine { argv, env };
        let spec = Start {
            hostname: self.prepared.hostname.clone(),
            base: self.pod.node.dirs.root.clone(),
            mounts,
            files: self.prepared.files.clone(),
            identity: self.identity(),
        };
        let name = &self.container.name;
        self.event(Severity::Normal, "Created", format!("Created container: {name}"));
        let started = process::start(self.prepared.sandbox.namespace(), spec, &line).await;
        let mut child = started.map_err(Obstacle::Start)?;
        let (log, pid) = self.register(&mut child, &line.env).map_err(|e| Obstacle::Start(e.to_string()))?;
        let (id, since) = (super::random_id(), Timestamp::now());
        self.update(|r| r.state = State::Running { id: id.clone(), since });
        self.event(Severity::Normal, "Started", format!("Started container {name}"));
        Ok(Running { id, child, pid, since, program, env: line.env, log })
    }

    /// Begins to copy the output, and lets `logs` and `exec` find the run.
    fn register(&self, child: &mut Child, env: &[(String, String)]) -> std::io::Result<(JoinHandle<()>, u32)> {
        let path = self.pod.log_dir().join(&self.container.name).join(format!("{}.log", self.restarts()));
        let writer = LogWriter::create(&path)?;
        let pid = child.id().ok_or_else(|| std::io::Error::other("the container ended at once"))?;
        let run = Run { pid, env: env.to_vec(), identity: self.identity() };
        self.pod.node.registry.began(&self.pod.key(&self.container.name), writer.log(), Some(run));
        let log = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => tokio::spawn(writer.copy(stdout, stderr)),
            _ => tokio::spawn(async {}),
        };
        Ok((log, pid))
    }

    fn base_env(&self) -> Vec<(String, String)> {
        let hostname = self.prepared.hostname.as_ref().unwrap_or(&self.pod.node.config.name);
        [("PATH", PATH), ("HOME", "/root"), ("HOSTNAME", hostname)].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec()
    }

    /// Whom the container runs as.
    pub fn identity(&self) -> Identity {
        let own = self.container.security_context.as_ref();
        let pod = self.pod.spec.security_context.as_ref();
        let id = |own: Option<i64>, pod: Option<i64>| own.or(pod).and_then(|id| u32::try_from(id).ok());
        Identity {
            uid: id(own.and_then(|s| s.run_as_user), pod.and_then(|s| s.run_as_user)),
            gid: id(own.and_then(|s| s.run_as_group), pod.and_then(|s| s.run_as_group)),
            directory: self.container.working_dir.as_ref().filter(|d| !d.is_empty()).map(Into::into),
        }
    }

    /// Watches a run to its end, and ends it when the pod is to stop or a probe says so.
    async fn see_through(&self, mut running: Running) -> Ended {
        let Running { child, pid, program, env, .. } = &mut running;
        let checks = Checks { of: self, pid: *pid, env };
        let reason = tokio::select! {
            status = child.wait() => Err(status),
            () = self.pod.stop_requested() => Ok(format!("Stopping container {}", self.container.name)),
            unhealthy = checks.until_unhealthy(program) => Ok(unhealthy),
        };
        let status = match reason {
            Err(status) => status,
            Ok(message) => {
                self.event(Severity::Normal, "Killing", message);
                self.stop(child, &checks).await
            }
        };
        let finished_at = Timestamp::now();
        self.pod.node.registry.ended(&self.pod.key(&self.container.name));
        // The output's end comes with the container's: nothing of it is left to hold the pipes for long.
        let _ = timeout(DRAIN, running.log).await;
        let (code, message) = match status {
            Ok(status) => (process::exit_code(status), None),
            Err(error) => (-1, Some(format!("lost the container: {error}"))),
        };
        Ended { code, message, reason: None, id: running.id, started_at: running.since, finished_at }
    }

    /// `preStop`, SIGTERM, and SIGKILL when the grace period is over; it may be cut short meanwhile.
    async fn stop(&self, child: &mut Child, checks: &Checks<'_>) -> std::io::Result<ExitStatus> {
        let grace = u64::try_from(self.pod.spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or(0);
        let own = Instant::now() + Duration::from_secs(grace);
        let mut stops = self.pod.stop.clone();
        let mut deadline = stops.borrow_and_update().unwrap_or(own);
        let hook = self.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        if let Some(hook) = hook.filter(|_| deadline > Instant::now()) {
            tokio::select! {
                outcome = timeout_at(deadline, checks.hook(hook)) => {
                    if let Ok(Err(error)) = outcome {
                        self.event(Severity::Warning, "FailedPreStopHook", format!("PreStopHook failed: {error}"));
                    }
                    deadline = deadline.max(Instant::now() + LAST_GRACE);
                }
                earlier = next_before(&mut stops, deadline) => deadline = earlier,
            }
        }
        loop {
            tokio::select! {
                status = process::terminate(child, deadline) => return status,
                earlier = next_before(&mut stops, deadline) => deadline = earlier,
            }
        }
    }

    fn record(&self) -> Option<Record> {
        self.pod.known.borrow().containers.get(&self.container.name).cloned()
    }

    fn restarts(&self) -> i32 {
        self.record().map_or(0, |r| r.restarts)
    }

    fn waiting(&self, reason: &'static str, message: Option<String>) {
        self.update(|r| r.state = State::Waiting { reason, message });
    }

    /// Changes what is known about the container.
    pub fn update(&self, change: impl FnOnce(&mut Record)) {
        self.pod.known.send_modify(|known| {
            if let Some(record) = known.containers.get_mut(&self.container.name) {
                change(record);
            }
        });
    }

    /// Reports about the container.
    pub fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.pod.event(Some(&self.container.name), severity, (reason, message));
    }
}

/// Waits until the pod's end is moved to before `deadline`.
async fn next_before(stops: &mut watch::Receiver<Option<Instant>>, deadline: Instant) -> Instant {
    while stops.changed().await.is_ok() {
        if let Some(earlier) = stops.borrow_and_update().filter(|stop| *stop < deadline) {
            return earlier;
        }
    }
    std::future::pending().await
}
