//! What a pod's status says, from what is known about its sandbox and containers. Pure: the clock comes in.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

/// How a container run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; 128 + n when signal n killed it.
    pub code: i32,
    /// More than the exit code says, for example why the program could not be started.
    pub message: Option<String>,
    /// `StartError`, or empty for `Completed` and `Error` by exit code.
    pub reason: Option<&'static str>,
    /// Id of the run.
    pub id: String,
    /// When the run started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// What a container does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not running, and not done: `ContainerCreating`, `PodInitializing`, `CrashLoopBackOff`, `ErrImagePull`…
    Waiting {
        /// One CamelCase word.
        reason: &'static str,
        /// For people.
        message: Option<String>,
    },
    /// Running since.
    Running {
        /// Id of the run.
        id: String,
        /// When it started.
        since: Timestamp,
    },
    /// Ended, and not to be started again as far as is known.
    Ended(Ended),
}

/// What is known about one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Now.
    pub state: State,
    /// The run before.
    pub last: Option<Ended>,
    /// How many times it was started again.
    pub restarts: i32,
    /// Running and its startup probe has succeeded.
    pub started: bool,
    /// Running and its readiness probe, where there is one, succeeds; an init container that has succeeded.
    pub ready: bool,
    /// What the image stands for; empty until resolved.
    pub image_id: String,
}

impl Record {
    /// A container that has not been started.
    pub fn waiting(reason: &'static str) -> Self {
        Self {
            state: State::Waiting { reason, message: None },
            last: None,
            restarts: 0,
            started: false,
            ready: false,
            image_id: String::new(),
        }
    }

    fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    fn succeeded(&self) -> bool {
        self.ended().is_some_and(|e| e.code == 0)
    }
}

/// Everything that a node knows about a pod of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// When the node took it over.
    pub start_time: Timestamp,
    /// The node's addresses; not empty.
    pub host_ips: Vec<String>,
    /// The pod's addresses; empty until the sandbox stands.
    pub pod_ips: Vec<String>,
    /// The sandbox stands and has its network.
    pub sandbox_ready: bool,
    /// By container name, init containers too.
    pub containers: BTreeMap<String, Record>,
    /// The node will not run the pod: reason and message.
    pub rejected: Option<(&'static str, String)>,
}

impl Known {
    /// A pod of which nothing runs yet.
    pub fn new(pod: &Pod, host_ips: Vec<String>, now: Timestamp) -> Self {
        let mut containers = BTreeMap::new();
        if let Some(spec) = &pod.spec {
            let has_init = spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
            let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
            for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
                containers.insert(container.name.clone(), Record::waiting(reason));
            }
        }
        Self { start_time: now, host_ips, pod_ips: Vec::new(), sandbox_ready: false, containers, rejected: None }
    }

    /// The status of `pod`. Conditions of other owners are kept; a condition's transition time changes with its
    /// status only.
    pub fn status(&self, pod: &Pod, now: Timestamp) -> PodStatus {
        let old = pod.status.clone().unwrap_or_default();
        let Some(spec) = &pod.spec else { return old };
        let phase = self.phase(spec);
        let conditions = self.conditions(spec, phase, old.conditions.as_deref().unwrap_or_default(), now);
        let statuses = |list: &[Container]| list.iter().filter_map(|c| self.container(c)).collect::<Vec<_>>();
        let ips = || self.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect();
        PodStatus {
            phase: Some(phase.to_owned()),
            reason: self.rejected.as_ref().map(|(reason, _)| (*reason).to_owned()),
            message: self.rejected.as_ref().map(|(_, message)| message.clone()),
            conditions: Some(conditions),
            host_ip: self.host_ips.first().cloned(),
            host_ips: Some(self.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
            pod_ip: self.pod_ips.first().cloned(),
            pod_ips: (!self.pod_ips.is_empty()).then(ips),
            start_time: Some(Time(self.start_time)),
            init_container_statuses: spec.init_containers.as_deref().map(statuses),
            container_statuses: Some(statuses(&spec.containers)),
            observed_generation: pod.metadata.generation,
            qos_class: old.qos_class,
            ..PodStatus::default()
        }
    }

    /// `status.phase`, by the kubelet's rules (`getPhase` in its `kubelet_pods.go`).
    fn phase(&self, spec: &PodSpec) -> &'static str {
        if self.rejected.is_some() {
            return "Failed";
        }
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        if !self.initialized(spec) {
            let failed = self.of(spec.init_containers.as_deref()).any(|r| r.ended().is_some_and(|e| e.code != 0));
            return if failed && policy == "Never" { "Failed" } else { "Pending" };
        }
        let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
        for record in self.of(Some(&spec.containers)) {
            match &record.state {
                State::Running { .. } => running += 1,
                State::Waiting { .. } if record.last.is_some() => stopped += 1,
                State::Waiting { .. } => waiting += 1,
                State::Ended(_) => stopped += 1,
            }
            succeeded += usize::from(record.succeeded());
        }
        match (waiting, running, policy) {
            (1.., _, _) => "Pending",
            (0, 1.., _) | (0, 0, "Always") => "Running",
            _ if stopped == succeeded => "Succeeded",
            (0, 0, "Never") => "Failed",
            _ => "Running",
        }
    }

    fn initialized(&self, spec: &PodSpec) -> bool {
        self.of(spec.init_containers.as_deref()).all(Record::succeeded)
    }

    fn of<'a>(&'a self, containers: Option<&'a [Container]>) -> impl Iterator<Item = &'a Record> {
        containers.unwrap_or_default().iter().filter_map(|c| self.containers.get(&c.name))
    }

    fn conditions(&self, spec: &PodSpec, phase: &str, old: &[PodCondition], now: Timestamp) -> Vec<PodCondition> {
        let not_done =
            names(spec.init_containers.as_deref(), |name| !self.containers.get(name).is_some_and(Record::succeeded));
        let not_ready = names(Some(&spec.containers), |name| !self.containers.get(name).is_some_and(|r| r.ready));
        let initialized = match (phase, not_done.is_empty()) {
            ("Succeeded", _) => Verdict::yes_because("PodCompleted"),
            (_, true) => Verdict::yes(),
            _ => Verdict::no("ContainersNotInitialized", format!("containers with incomplete status: [{}]", not_done)),
        };
        let containers_ready = match (phase, not_ready.is_empty()) {
            ("Succeeded", _) => Verdict::no("PodCompleted", String::new()),
            ("Failed", _) => Verdict::no("PodFailed", String::new()),
            (_, true) => Verdict::yes(),
            _ => Verdict::no("ContainersNotReady", format!("containers with unready status: [{}]", not_ready)),
        };
        let is_true = |kind: &str| old.iter().any(|c| c.type_ == kind && c.status == "True");
        let missing_gate = spec.readiness_gates.iter().flatten().find(|gate| !is_true(&gate.condition_type));
        let ready = match missing_gate {
            Some(gate) if containers_ready.holds => Verdict::no(
                "ReadinessGatesNotReady",
                format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type),
            ),
            _ => containers_ready.clone(),
        };
        let sandbox = Verdict { holds: self.sandbox_ready, reason: "", message: String::new() };
        let mut conditions = vec![
            sandbox.condition("PodReadyToStartContainers", old, now),
            initialized.condition("Initialized", old, now),
            ready.condition("Ready", old, now),
            containers_ready.condition("ContainersReady", old, now),
            Verdict::yes().condition("PodScheduled", old, now),
        ];
        let foreign = old.iter().filter(|c| !conditions.iter().any(|own| own.type_ == c.type_)).cloned();
        let foreign: Vec<_> = foreign.collect();
        conditions.extend(foreign);
        conditions
    }

    fn container(&self, container: &Container) -> Option<ContainerStatus> {
        let record = self.containers.get(&container.name)?;
        let state = match &record.state {
            State::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting { reason: Some((*reason).to_owned()), message: message.clone() }),
                ..Default::default()
            },
            State::Running { since, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..Default::default()
            },
            State::Ended(ended) => terminated(ended),
        };
        let id = match &record.state {
            State::Running { id, .. } => Some(id),
            State::Ended(ended) => Some(&ended.id),
            State::Waiting { .. } => record.last.as_ref().map(|last| &last.id),
        };
        let image = container.image.clone().unwrap_or_default();
        Some(ContainerStatus {
            name: container.name.clone(),
            image,
            image_id: record.image_id.clone(),
            container_id: id.map(|id| container_id(id)),
            ready: record.ready,
            started: Some(record.started),
            restart_count: record.restarts,
            state: Some(state),
            last_state: Some(record.last.as_ref().map(terminated).unwrap_or_default()),
            ..ContainerStatus::default()
        })
    }
}

/// `status.containerStatuses[].containerID` of a run.
pub fn container_id(id: &str) -> String {
    format!("podwire://{id}")
}

fn terminated(ended: &Ended) -> ContainerState {
    let reason = ended.reason.unwrap_or(if ended.code == 0 { "Completed" } else { "Error" });
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(&ended.id)),
            exit_code: ended.code,
            message: ended.message.clone(),
            reason: Some(reason.to_owned()),
            started_at: Some(Time(ended.started_at)),
            finished_at: Some(Time(ended.finished_at)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn names(containers: Option<&[Container]>, wanted: impl Fn(&str) -> bool) -> String {
    let names: Vec<&str> =
        containers.unwrap_or_default().iter().map(|c| c.name.as_str()).filter(|name| wanted(name)).collect();
    names.join(" ")
}

#[derive(Debug, Clone)]
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self::yes_because("")
    }

    fn yes_because(reason: &'static str) -> Self {
        Self { holds: true, reason, message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }

    fn condition(&self, kind: &str, old: &[PodCondition], now: Timestamp) -> PodCondition {
        let status = if self.holds { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == kind && c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now));
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: set(self.reason),
            message: set(&self.message),
            last_transition_time: Some(since),
            ..Default::default()
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
