//! The scheduler: pods without a node get one. Those of one owner spread over the nodes; otherwise the least loaded node
//! takes the pod, the first by name among equals.

use std::collections::{BTreeMap, BTreeSet};

use podwire_k8s::k8s_openapi::{
    api::core::v1::{Node, Pod, PodCondition, PodSpec, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    Context,
    action::{self, Action, Plan, Report, Write},
    meta, nodes, pods,
    world::{Change, Id, Kind, Object, World},
};

const SOURCE: &str = "default-scheduler";
/// `spec.schedulerName` of the pods that are ours.
const NAME: &str = "default-scheduler";
/// The most pods on a node that states no limit itself.
const MAX_PODS: usize = 110;

/// All pods at once: whenever a pod waits or ends, or what a node takes has changed.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let relevant = match (&change.old, &change.new) {
        (_, Some(Object::Pod(pod))) if waits(pod) => true,
        (Some(Object::Pod(old)), new) => {
            let ended = match new {
                Some(Object::Pod(new)) => pods::finished(new) && !pods::finished(old),
                _ => true,
            };
            ended && world.pods.iter().any(|pod| waits(pod))
        }
        (old @ Some(Object::Node(_)), new) | (old, new @ Some(Object::Node(_))) => face(old) != face(new),
        _ => false,
    };
    if relevant { vec![Id::all(Kind::Pod)] } else { Vec::new() }
}

/// What the scheduler reads of a node: not its heartbeats.
#[derive(PartialEq)]
struct Face {
    taints: Vec<Taint>,
    labels: Option<meta::Labels>,
    max_pods: Option<usize>,
}

fn face(node: &Option<Object>) -> Option<Face> {
    let Some(Object::Node(node)) = node else { return None };
    Some(Face { taints: nodes::taints(node), labels: node.metadata.labels.clone(), max_pods: max_pods(node) })
}

fn waits(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(NAME);
    pods::node(pod).is_none() && pods::active(pod) && scheduler == NAME
}

fn max_pods(node: &Node) -> Option<usize> {
    node.status.as_ref()?.allocatable.as_ref()?.get("pods")?.0.parse().ok()
}

/// A node as the pods of this pass fill it.
struct Seat<'a> {
    node: &'a Node,
    name: &'a str,
    taints: Vec<Taint>,
    pods: usize,
    by_owner: BTreeMap<&'a str, usize>,
    host_ports: BTreeSet<(i32, &'a str)>,
}

impl<'a> Seat<'a> {
    fn take(&mut self, pod: &'a Pod) {
        self.pods += 1;
        // A pod on its way out takes a place, but says nothing of how its owner's pods will be spread.
        let stays = pod.metadata.deletion_timestamp.is_none();
        if let Some(owner) = meta::controller_of(&pod.metadata).filter(|_| stays) {
            *self.by_owner.entry(&owner.uid).or_default() += 1;
        }
        self.host_ports.extend(host_ports(pod));
    }

    /// Why the node does not take the pod; `None` if it does. In the words of the real scheduler.
    fn refusal(&self, pod: &Pod, spec: &PodSpec) -> Option<String> {
        let unschedulable = "node(s) were unschedulable".to_owned();
        if !nodes::selects(spec, self.node) {
            return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
        }
        if let Some(taint) = nodes::repelling(&self.taints, spec.tolerations.as_deref().unwrap_or_default()) {
            let value = taint.value.as_deref().unwrap_or_default();
            let untolerated = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
            return Some(if taint.key == nodes::UNSCHEDULABLE { unschedulable } else { untolerated });
        }
        if self.pods >= max_pods(self.node).unwrap_or(MAX_PODS) {
            return Some("Too many pods".to_owned());
        }
        let clash = host_ports(pod).any(|port| self.host_ports.contains(&port));
        clash.then(|| "node(s) didn't have free ports for the requested pod ports".to_owned())
    }

    fn load(&self, pod: &Pod) -> (usize, usize) {
        let owner = meta::controller_of(&pod.metadata).and_then(|owner| self.by_owner.get(owner.uid.as_str()));
        (owner.copied().unwrap_or_default(), self.pods)
    }
}

/// The ports of the node itself that the pod occupies, with their protocols. (The lab's nodes have one address each, so
/// `hostIP` does not tell them apart.)
fn host_ports(pod: &Pod) -> impl Iterator<Item = (i32, &str)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| Some((port.host_port.filter(|p| *p != 0)?, port.protocol.as_deref().unwrap_or("TCP"))))
}

/// Assigns every waiting pod, the oldest first; says why where no node takes one.
pub(super) fn plan(world: &World, _: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut seats = seats(world);
    let mut waiting: Vec<&Pod> = world.pods.iter().map(AsRef::as_ref).filter(|pod| waits(pod)).collect();
    waiting.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(priority), created, &pod.metadata.namespace, &pod.metadata.name)
    });
    for pod in waiting {
        let Some(spec) = pod.spec.as_ref().filter(|spec| spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty))
        else {
            continue;
        };
        match choose(&mut seats, pod, spec) {
            Ok(seat) => {
                seat.take(pod);
                plan.push(bind(pod, seat.name));
            }
            Err(message) => plan.actions.extend(unschedulable(pod, message, context)),
        }
    }
    plan
}

fn seats(world: &World) -> Vec<Seat<'_>> {
    let living = world.nodes.iter().filter(|node| node.metadata.deletion_timestamp.is_none());
    let mut seats: Vec<Seat<'_>> = living
        .map(|node| Seat {
            node,
            name: node.metadata.name.as_deref().unwrap_or_default(),
            taints: nodes::taints(node),
            pods: 0,
            by_owner: BTreeMap::new(),
            host_ports: BTreeSet::new(),
        })
        .collect();
    for pod in world.pods.iter().filter(|pod| !pods::finished(pod)) {
        if let Some(seat) = seats.iter_mut().find(|seat| pods::node(pod) == Some(seat.name)) {
            seat.take(pod);
        }
    }
    seats
}

/// The best node for the pod, or why there is none.
fn choose<'s, 'a>(seats: &'s mut [Seat<'a>], pod: &Pod, spec: &PodSpec) -> Result<&'s mut Seat<'a>, String> {
    let total = seats.len();
    if total == 0 {
        return Err("no nodes available to schedule pods".to_owned());
    }
    if let Some(field) = unsupported(spec) {
        return Err(format!("0/{total} nodes are available: {field} is not supported by this scheduler."));
    }
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<&mut Seat<'a>> = None;
    for seat in seats {
        if let Some(refusal) = seat.refusal(pod, spec) {
            *refusals.entry(refusal).or_default() += 1;
        } else if best.as_ref().is_none_or(|best| seat.load(pod) < best.load(pod)) {
            best = Some(seat);
        }
    }
    best.ok_or_else(|| {
        let reasons: Vec<String> = refusals.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        format!("0/{total} nodes are available: {}.", reasons.join(", "))
    })
}

/// A hard demand that this scheduler cannot judge: better refused than ignored.
fn unsupported(spec: &PodSpec) -> Option<&'static str> {
    let affinity = spec.affinity.as_ref();
    let near =
        affinity.and_then(|a| a.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity
        .and_then(|a| a.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref());
    let mut spread = spec.topology_spread_constraints.iter().flatten();
    if near.is_some_and(|terms| !terms.is_empty()) {
        Some("required podAffinity")
    } else if far.is_some_and(|terms| !terms.is_empty()) {
        Some("required podAntiAffinity")
    } else if spread.any(|constraint| constraint.when_unsatisfiable == "DoNotSchedule") {
        Some("topologySpreadConstraints with whenUnsatisfiable DoNotSchedule")
    } else {
        None
    }
}

fn bind(pod: &Pod, node: &str) -> Action {
    let meta = &pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let message = format!("Successfully assigned {namespace}/{name} to {node}");
    let uid = meta.uid.clone().unwrap_or_default();
    let report = Report::normal(SOURCE, meta::reference(Kind::Pod, meta), "Scheduled", message);
    Action::from(Write::Bind { pod: action::id(Kind::Pod, meta), uid, node: node.to_owned() }).reporting(report)
}

/// The condition and Event that say why; nothing if the pod says so already.
fn unschedulable(pod: &Pod, message: String, context: &Context<'_>) -> Option<Action> {
    let known = pods::condition(pod, "PodScheduled").and_then(|c| c.message.as_deref());
    if known == Some(&message) {
        return None;
    }
    let condition = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.clone()),
        last_transition_time: Some(Time(context.now)),
        ..PodCondition::default()
    };
    let old = pod.status.clone().unwrap_or_default();
    let write = action::update_status(Kind::Pod, pod, &old, &pods::with_condition(pod, condition))?;
    let report = Report::warning(SOURCE, meta::reference(Kind::Pod, &pod.metadata), "FailedScheduling", message);
    Some(Action::from(write).reporting(report))
}
