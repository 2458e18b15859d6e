//! Whether nodes are alive: a node whose Lease is stale is `Unknown`, and what a node's conditions say becomes taints.

use podwire_k8s::k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus, PodCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    Context,
    action::{self, Action, Plan, Report},
    meta, nodes, pods,
    world::{Change, Id, Kind, Object, World},
};

const SOURCE: &str = "node-controller";
/// The namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// How long a node may be silent (upstream's `--node-monitor-grace-period`, before 1.32).
const GRACE: SignedDuration = SignedDuration::from_secs(40);
/// The conditions that are `Unknown` once a node is silent.
const HEARD_FROM: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Nodes, their Leases, and pods that claim to be ready on a node of which nothing is known.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        match object {
            Object::Node(node) => ids.push(action::id(Kind::Node, &node.metadata)),
            Object::Pod(pod) if pods::ready(pod) => {
                let node = pods::node(pod).and_then(|name| world.nodes.get("", name));
                let unknown = node.filter(|node| nodes::condition(node, "Ready") == Some("Unknown"));
                ids.extend(unknown.map(|node| action::id(Kind::Node, &node.metadata)));
            }
            Object::Lease(lease) if lease.metadata.namespace.as_deref() == Some(LEASES) => {
                ids.push(Id::new(Kind::Node, "", lease.metadata.name.as_deref().unwrap_or_default()));
            }
            _ => {}
        }
    }
    ids
}

/// Declares a silent node unknown and its pods not ready; keeps the taints that follow from its conditions.
pub(super) fn plan(world: &World, id: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = world.nodes.get("", &id.name) else { return plan };
    if node.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let stale_at = last_heard(world, node).and_then(|heard| heard.checked_add(GRACE).ok());
    let silent = stale_at.is_some_and(|at| at <= context.now);
    if silent {
        plan.actions.extend(unready_pods(world, &id.name, context.now));
    } else {
        plan.look_again(stale_at);
    }
    let unknown = if silent { declare_unknown(node, context.now) } else { None };
    // One write to the node at a time: the taints follow once its conditions are known.
    plan.actions.extend(unknown.or_else(|| retaint(node, context.now)));
    plan
}

/// When the node last renewed its Lease; without a Lease, its last heartbeat, or its creation.
fn last_heard(world: &World, node: &Node) -> Option<Timestamp> {
    let lease = world.leases.get(LEASES, node.metadata.name.as_deref().unwrap_or_default());
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let heartbeat = conditions.filter_map(|c| c.last_heartbeat_time.as_ref()).map(|time| time.0).max();
    let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
    renewed.or(heartbeat).max(created)
}

fn declare_unknown(node: &Node, now: Timestamp) -> Option<Action> {
    let old = node.status.clone().unwrap_or_default();
    let mut new = NodeStatus { ..old.clone() };
    let conditions = new.conditions.get_or_insert_default();
    for kind in HEARD_FROM {
        if !conditions.iter().any(|c| c.type_ == kind) {
            conditions.push(NodeCondition { type_: kind.to_owned(), ..NodeCondition::default() });
        }
    }
    for condition in conditions.iter_mut().filter(|c| HEARD_FROM.contains(&c.type_.as_str()) && c.status != "Unknown") {
        condition.status = "Unknown".to_owned();
        condition.reason = Some("NodeStatusUnknown".to_owned());
        condition.message = Some("Kubelet stopped posting node status.".to_owned());
        condition.last_transition_time = Some(Time(now));
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Node {name} status is now: NodeNotReady");
    let report = Report::normal(SOURCE, meta::reference(Kind::Node, &node.metadata), "NodeNotReady", message);
    let write = action::update_status(Kind::Node, node, &old, &new)?;
    Some(Action::from(write).reporting(report))
}

/// Nobody on a silent node can say any more that a pod is ready.
fn unready_pods(world: &World, node: &str, now: Timestamp) -> Vec<Action> {
    let there = world.pods.iter().filter(|pod| pods::node(pod) == Some(node) && pods::ready(pod));
    let unready = there.filter_map(|pod| {
        let condition = PodCondition {
            type_: "Ready".to_owned(),
            status: "False".to_owned(),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        };
        let new = pods::with_condition(pod, condition);
        let write = action::update_status(Kind::Pod, pod.as_ref(), &pod.status.clone().unwrap_or_default(), &new)?;
        let about = meta::reference(Kind::Pod, &pod.metadata);
        Some(Action::from(write).reporting(Report::warning(SOURCE, about, "NodeNotReady", "Node is not ready".into())))
    });
    unready.collect()
}

/// Brings the taints that conditions imply in line with the conditions; leaves all others.
fn retaint(node: &Node, now: Timestamp) -> Option<Action> {
    let implied = nodes::implied_taints(node);
    let ours =
        |key: &str| key == nodes::UNSCHEDULABLE || nodes::CONDITION_TAINTS.iter().any(|(_, _, taint)| *taint == key);
    let mut new = node.clone();
    let taints = new.spec.get_or_insert_default().taints.get_or_insert_default();
    taints.retain(|t| t.effect != "NoSchedule" || !ours(&t.key) || implied.contains(&t.key.as_str()));
    for key in implied {
        if !taints.iter().any(|t| t.key == key && t.effect == "NoSchedule") {
            taints.push(Taint { time_added: Some(Time(now)), ..nodes::no_schedule(key) });
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default() == taints.as_slice() {
        return None;
    }
    if let Some(spec) = new.spec.as_mut().filter(|spec| spec.taints.as_ref().is_some_and(Vec::is_empty)) {
        spec.taints = None;
    }
    action::update(Kind::Node, node, &new).map(Into::into)
}
