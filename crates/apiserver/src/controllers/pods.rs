//! What several controllers ask about a pod, and how they make one.

use podwire_k8s::k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    action::{self, Plan},
    meta::{self, Claim},
    world::Kind,
};

/// `status.phase`; a pod without one is `Pending`.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// The pod's containers have ended for good.
pub fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The pod is being deleted.
pub fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The pod counts towards its owner's replicas.
pub fn active(pod: &Pod) -> bool {
    !finished(pod) && !terminating(pod)
}

/// The node that the pod is assigned to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// A condition of the pod.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// The pod's `Ready` condition is `True`.
pub fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod's `Ready` condition has its value.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(condition(pod, "Ready")?.last_transition_time.as_ref()?.0)
}

/// The moment from which a ready pod counts as available; `None` if it is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    if !ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    ready_since(pod)?.checked_add(SignedDuration::from_secs(min_ready_seconds.into())).ok()
}

/// Whether the pod has been ready for long enough.
pub fn available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// The next moment after `now` at which one of the ready pods becomes available.
pub fn next_available<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Timestamp> {
    pods.filter_map(|pod| available_at(pod, min_ready_seconds)).filter(|at| *at > now).min()
}

/// A new pod of `template` that `owner` controls, with a name that the server completes.
pub fn from_template(template: &PodTemplateSpec, kind: Kind, owner: &ObjectMeta) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name.as_deref().unwrap_or_default())),
            namespace: owner.namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![meta::controller_ref(kind, owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Adds what a claim asks for to `plan`.
pub fn settle(claim: &Claim<'_, Pod>, kind: Kind, owner: &ObjectMeta, plan: &mut Plan) {
    let adopted = claim.adopt.iter().map(|pod| (*pod, meta::adopted(kind, owner, &pod.metadata)));
    let uid = owner.uid.as_deref().unwrap_or_default();
    let released = claim.release.iter().map(|pod| (*pod, meta::disowned(uid, &pod.metadata)));
    for (pod, metadata) in adopted.chain(released) {
        let new = Pod { metadata, ..pod.clone() };
        if let Some(write) = action::update(Kind::Pod, pod, &new) {
            plan.push(write);
        }
    }
}

/// The pod's status with one condition set; the transition time moves only with the value.
pub fn with_condition(pod: &Pod, condition: PodCondition) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(old) if old.status == condition.status => {
            *old = PodCondition { last_transition_time: old.last_transition_time.clone(), ..condition };
        }
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    status
}
