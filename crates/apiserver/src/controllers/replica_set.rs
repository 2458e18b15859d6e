//! ReplicaSets: as many pods of a template as `spec.replicas` says.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::Pod,
    },
    jiff::Timestamp,
};

use super::{
    Context,
    action::{self, Deletion, Plan, Report},
    meta, pods,
    world::{Change, Id, Kind, Object, World},
};

const SOURCE: &str = "replicaset-controller";
/// A pod's annotation: among equals, the pod with the lower cost is deleted first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// ReplicaSets and their pods; a pod that nobody controls concerns every ReplicaSet that selects it.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        match object {
            Object::ReplicaSet(set) => ids.push(action::id(Kind::ReplicaSet, &set.metadata)),
            Object::Pod(pod) => ids.extend(sets_of(world, pod)),
            _ => {}
        }
    }
    ids
}

fn sets_of(world: &World, pod: &Pod) -> Vec<Id> {
    meta::claimants(Kind::ReplicaSet, &world.replica_sets, &pod.metadata, |set| Some(&set.spec.as_ref()?.selector))
}

/// Adopts, creates and deletes pods, and reports the status.
pub(super) fn plan(world: &World, id: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = world.replica_sets.get(&id.namespace, &id.name) else { return plan };
    let Some(spec) = &set.spec else { return plan };
    let claim = meta::claim(&set.metadata, &spec.selector, world.pods.in_namespace(&id.namespace).map(AsRef::as_ref));
    pods::settle(&claim, Kind::ReplicaSet, &set.metadata, &mut plan);
    let active: Vec<&Pod> = claim.owned.iter().chain(&claim.adopt).copied().filter(|pod| pods::active(pod)).collect();
    if set.metadata.deletion_timestamp.is_none() {
        scale(world, set, spec, &active, &mut plan);
    }
    let new = status(set, spec, &active, context.now);
    let old = set.status.clone().unwrap_or_default();
    if let Some(write) = action::update_status(Kind::ReplicaSet, set.as_ref(), &old, &new) {
        plan.push(write);
    }
    plan.look_again(pods::next_available(
        active.iter().copied(),
        spec.min_ready_seconds.unwrap_or_default(),
        context.now,
    ));
    plan
}

fn scale(world: &World, set: &ReplicaSet, spec: &ReplicaSetSpec, active: &[&Pod], plan: &mut Plan) {
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
    let about = meta::reference(Kind::ReplicaSet, &set.metadata);
    if let (Some(template), true) = (&spec.template, active.len() < wanted) {
        let pod = pods::from_template(template, Kind::ReplicaSet, &set.metadata);
        let write = action::create(Kind::Pod, &pod);
        for _ in active.len()..wanted {
            let report = Report::normal(SOURCE, about.clone(), "SuccessfulCreate", "Created pod: {name}".to_owned());
            plan.push(action::Action::from(write.clone()).reporting(report));
        }
    }
    let surplus = active.len().saturating_sub(wanted);
    for pod in deletion_order(active, &crowding(world, set)).into_iter().take(surplus) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let report = Report::normal(SOURCE, about.clone(), "SuccessfulDelete", format!("Deleted pod: {name}"));
        let write = action::delete(Kind::Pod, &pod.metadata, Deletion::Background);
        plan.push(action::Action::from(write).reporting(report));
    }
}

/// How many active pods of this ReplicaSet's owner (so of all its revisions) each node has.
fn crowding<'a>(world: &'a World, set: &ReplicaSet) -> BTreeMap<&'a str, usize> {
    let owner = meta::controller_of(&set.metadata).map(|owner| owner.uid.as_str());
    let siblings = owner.into_iter().flat_map(|uid| world.replica_sets.owned_by(uid));
    let mut uids: Vec<&str> = siblings.filter_map(|set| set.metadata.uid.as_deref()).collect();
    if owner.is_none() {
        uids.extend(set.metadata.uid.as_deref());
    }
    let mut crowding = BTreeMap::new();
    let related = uids.iter().flat_map(|uid| world.pods.owned_by(uid)).filter(|pod| pods::active(pod));
    for node in related.filter_map(|pod| pods::node(pod)) {
        *crowding.entry(node).or_default() += 1;
    }
    crowding
}

/// The pods in the order in which a scale-down deletes them, as upstream: unassigned, pending, not ready, cheap,
/// crowded, ready for a shorter time, often restarted, young.
fn deletion_order<'a>(active: &[&'a Pod], crowding: &BTreeMap<&str, usize>) -> Vec<&'a Pod> {
    use std::cmp::Reverse;
    let mut ordered = active.to_vec();
    ordered.sort_by_cached_key(|pod| {
        let phase = match pods::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost: i32 =
            meta::annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or_default();
        let crowd = pods::node(pod).and_then(|node| crowding.get(node)).copied().unwrap_or_default();
        let ready_since = pods::ready(pod).then(|| pods::ready_since(pod)).flatten();
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let restarts = statuses.map(|container| container.restart_count).max().unwrap_or_default();
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (
            (pods::node(pod).is_some(), phase, pods::ready(pod), cost),
            (Reverse(crowd), Reverse(ready_since), Reverse(restarts), Reverse(created)),
            pod.metadata.name.clone(),
        )
    });
    ordered
}

fn status(set: &ReplicaSet, spec: &ReplicaSetSpec, active: &[&Pod], now: Timestamp) -> ReplicaSetStatus {
    let count = |holds: &dyn Fn(&Pod) -> bool| {
        let number = active.iter().filter(|pod| holds(pod)).count();
        i32::try_from(number).unwrap_or(i32::MAX)
    };
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let fully_labeled = |pod: &Pod| template.is_none_or(|labels| meta::contains(pod.metadata.labels.as_ref(), labels));
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&fully_labeled)),
        ready_replicas: nonzero(count(&pods::ready)),
        available_replicas: nonzero(count(&|pod| pods::available(pod, min_ready, now))),
        observed_generation: set.metadata.generation,
        ..set.status.clone().unwrap_or_default()
    }
}

/// The API leaves counts of zero out.
fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}
