//! DaemonSets: one pod on every node that takes it. The pods are assigned to their nodes at once, without the
//! scheduler, so that the network's own agents start on nodes that are not ready yet.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus},
        core::v1::{Node, Pod, PodSpec, Taint, Toleration},
    },
    jiff::Timestamp,
};

use super::{
    Context,
    action::{self, Action, Deletion, Plan, Report},
    meta, nodes, pods,
    world::{Change, Id, Kind, Object, World},
};

const SOURCE: &str = "daemonset-controller";
const HASH: &str = "controller-revision-hash";
/// Taints that every daemon's pod tolerates, as upstream adds them: key, effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Tolerated by pods in the node's own network as well.
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// DaemonSets and their pods; a node concerns them all.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        match object {
            Object::DaemonSet(set) => ids.push(action::id(Kind::DaemonSet, &set.metadata)),
            Object::Node(_) => ids.extend(world.daemon_sets.iter().map(|s| action::id(Kind::DaemonSet, &s.metadata))),
            Object::Pod(pod) => ids.extend(sets_of(world, pod)),
            _ => {}
        }
    }
    ids
}

fn sets_of(world: &World, pod: &Pod) -> Vec<Id> {
    meta::claimants(Kind::DaemonSet, &world.daemon_sets, &pod.metadata, |set| Some(&set.spec.as_ref()?.selector))
}

/// One node, whether it should have the daemon, and the daemon's pods there.
struct Place<'a> {
    node: &'a str,
    wanted: bool,
    /// A daemon that runs there may stay: a taint that came later keeps new ones away only, unless it is `NoExecute`.
    kept: bool,
    /// Pods that are neither finished nor terminating.
    pods: Vec<&'a Pod>,
    /// Pods that are terminating: their successor waits, for they may hold the node's ports.
    leaving: bool,
}

/// A DaemonSet in the middle of a pass.
struct View<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    /// What a pod of the current template looks like, not assigned yet.
    pod: Pod,
    hash: String,
    now: Timestamp,
}

/// Adopts, creates, deletes and replaces pods, and reports the status.
pub(super) fn plan(world: &World, id: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = world.daemon_sets.get(&id.namespace, &id.name) else { return plan };
    let Some(spec) = &set.spec else { return plan };
    let claim = meta::claim(&set.metadata, &spec.selector, world.pods.in_namespace(&id.namespace).map(AsRef::as_ref));
    pods::settle(&claim, Kind::DaemonSet, &set.metadata, &mut plan);
    let owned: Vec<&Pod> = claim.owned.iter().chain(&claim.adopt).copied().collect();
    let hash = meta::template_hash(&spec.template, 0);
    let view = View { set, spec, pod: daemon_pod(set, spec, &hash), hash, now: context.now };
    let places = places(world, &view, &owned);
    if set.metadata.deletion_timestamp.is_none() {
        manage(&view, &places, &owned, &mut plan);
        update(&view, &places, &mut plan);
    }
    let old = set.status.clone().unwrap_or_default();
    if let Some(write) = action::update_status(Kind::DaemonSet, set.as_ref(), &old, &view.status(&places)) {
        plan.push(write);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    plan.look_again(pods::next_available(owned.into_iter(), min_ready, context.now));
    plan
}

fn daemon_pod(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str) -> Pod {
    let mut pod = pods::from_template(&spec.template, Kind::DaemonSet, &set.metadata);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let generation = set.metadata.generation.unwrap_or(1);
    labels.insert("pod-template-generation".to_owned(), generation.to_string());
    let spec = pod.spec.get_or_insert_default();
    let network = (spec.host_network == Some(true)).then_some(NETWORK_UNAVAILABLE);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        tolerations.push(Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        });
    }
    pod
}

fn places<'a>(world: &'a World, view: &View<'_>, owned: &[&'a Pod]) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in owned {
        by_node.entry(pods::node(pod).unwrap_or_default()).or_default().push(pod);
    }
    let place = |node: &'a std::sync::Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let here = by_node.remove(name).unwrap_or_default();
        let leaving = here.iter().any(|pod| pods::terminating(pod));
        let pods = here.into_iter().filter(|pod| pods::active(pod)).collect();
        let (wanted, kept) = takes(node, view.pod.spec.as_ref());
        Place { node: name, wanted, kept, pods, leaving }
    };
    world.nodes.iter().map(place).collect()
}

/// Whether a node takes a new daemon, and whether it keeps a running one.
fn takes(node: &Node, pod: Option<&PodSpec>) -> (bool, bool) {
    let Some(pod) = pod.filter(|pod| nodes::selects(pod, node)) else { return (false, false) };
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    let (lasting, all): (Vec<Taint>, Vec<Taint>) = {
        let all = nodes::taints(node);
        (all.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect(), all)
    };
    let fits = node.metadata.deletion_timestamp.is_none() && nodes::repelling(&all, tolerations).is_none();
    (fits, nodes::repelling(&lasting, tolerations).is_none())
}

/// A missing pod on each node that should have one; none on the others; finished ones away.
fn manage(view: &View<'_>, places: &[Place<'_>], owned: &[&Pod], plan: &mut Plan) {
    for pod in owned.iter().filter(|pod| pods::finished(pod) && !pods::terminating(pod)) {
        plan.push(view.remove(pod));
    }
    for place in places {
        if !place.kept {
            place.pods.iter().for_each(|pod| plan.push(view.remove(pod)));
        } else if place.wanted && place.pods.is_empty() && !place.leaving {
            plan.push(view.create(place.node));
        } else {
            let (current, outdated): (Vec<&Pod>, Vec<&Pod>) = place.pods.iter().partition(|pod| view.current(pod));
            let keep_outdated = usize::from(current.is_empty() || view.surging());
            let surplus = oldest_first(current).into_iter().skip(1);
            let surplus = surplus.chain(oldest_first(outdated).into_iter().skip(keep_outdated));
            surplus.for_each(|pod| plan.push(view.remove(pod)));
        }
    }
}

fn oldest_first(mut pods: Vec<&Pod>) -> Vec<&Pod> {
    pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.metadata.name.clone()));
    pods
}

/// Replaces pods of an earlier template, as far as availability (or the surge) allows.
fn update(view: &View<'_>, places: &[Place<'_>], plan: &mut Plan) {
    let strategy = view.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let wanted: Vec<&Place<'_>> = places.iter().filter(|place| place.wanted).collect();
    let total = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
    let surge = meta::scaled(rolling.and_then(|r| r.max_surge.as_ref()), "0%", total, true);
    let unavailable = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        None if surge == 0 => 1,
        value => meta::scaled(value, "0%", total, true).max(i32::from(surge == 0)),
    };
    let lacking = wanted.iter().filter(|place| !view.served(place)).count();
    let mut may_go = unavailable - i32::try_from(lacking).unwrap_or(i32::MAX);
    let surging = wanted.iter().filter(|place| place.pods.len() > 1).count();
    let mut may_come = surge - i32::try_from(surging).unwrap_or(i32::MAX);
    for place in wanted {
        let outdated: Vec<&Pod> = place.pods.iter().copied().filter(|pod| !view.current(pod)).collect();
        let [old] = outdated.as_slice() else { continue };
        match place.pods.iter().find(|pod| view.current(pod)) {
            Some(successor) if view.surging() && view.available(successor) => plan.push(view.remove(old)),
            Some(_) => {}
            // The old pod serves nobody: nothing is lost.
            None if !view.available(old) => plan.push(view.remove(old)),
            None if surge > 0 && may_come > 0 => {
                may_come -= 1;
                plan.push(view.create(place.node));
            }
            None if surge == 0 && may_go > 0 => {
                may_go -= 1;
                plan.push(view.remove(old));
            }
            None => {}
        }
    }
}

impl View<'_> {
    fn available(&self, pod: &Pod) -> bool {
        pods::available(pod, self.spec.min_ready_seconds.unwrap_or_default(), self.now)
    }

    fn served(&self, place: &Place<'_>) -> bool {
        place.pods.iter().any(|pod| self.available(pod))
    }

    /// The pod was made from the current template.
    fn current(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)) == Some(&self.hash)
    }

    /// With `maxSurge`, a node has the old and the new pod for a while.
    fn surging(&self) -> bool {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        meta::scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "0%", 100, true) > 0
    }

    fn create(&self, node: &str) -> Action {
        let mut pod = self.pod.clone();
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        let about = meta::reference(Kind::DaemonSet, &self.set.metadata);
        let report = Report::normal(SOURCE, about, "SuccessfulCreate", "Created pod: {name}".to_owned());
        Action::from(action::create(Kind::Pod, &pod)).reporting(report)
    }

    fn remove(&self, pod: &Pod) -> Action {
        let about = meta::reference(Kind::DaemonSet, &self.set.metadata);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let report = Report::normal(SOURCE, about, "SuccessfulDelete", format!("Deleted pod: {name}"));
        Action::from(action::delete(Kind::Pod, &pod.metadata, Deletion::Background)).reporting(report)
    }

    fn status(&self, places: &[Place<'_>]) -> DaemonSetStatus {
        let count = |holds: &dyn Fn(&&Place<'_>) -> bool| {
            let number = places.iter().filter(holds).count();
            i32::try_from(number).unwrap_or(i32::MAX)
        };
        let nonzero = |count: i32| (count != 0).then_some(count);
        let desired = count(&|p| p.wanted);
        let available = count(&|p| p.wanted && self.served(p));
        DaemonSetStatus {
            current_number_scheduled: count(&|p| p.wanted && !p.pods.is_empty()),
            desired_number_scheduled: desired,
            number_available: nonzero(available),
            number_misscheduled: count(&|p| !p.wanted && !p.pods.is_empty()),
            number_ready: count(&|p| p.wanted && p.pods.iter().any(|pod| pods::ready(pod))),
            number_unavailable: nonzero(desired - available),
            observed_generation: self.set.metadata.generation,
            updated_number_scheduled: nonzero(count(&|p| p.wanted && p.pods.iter().any(|pod| self.current(pod)))),
            ..self.set.status.clone().unwrap_or_default()
        }
    }
}
