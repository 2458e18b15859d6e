//! What a Deployment reports: counts and the conditions that `kubectl rollout status` and `kubectl wait` read.

use podwire_k8s::k8s_openapi::{
    api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{View, available, replicas, revision};
use crate::controllers::{
    action::{self, Plan},
    world::Kind,
};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Adds the write of the status to `plan`, if it changed, and the moment at which the rollout times out.
pub(super) fn report(view: &View<'_>, collisions: Option<i32>, now: Timestamp, plan: &mut Plan) {
    let mut status = counted(view);
    status.collision_count = collisions.or(status.collision_count);
    let conditions = conditions(view, &status, now);
    if let Some(deadline) = deadline(view, &conditions) {
        plan.look_again(Some(deadline).filter(|deadline| *deadline > now));
    }
    status.conditions = Some(conditions);
    let old = view.deployment.status.clone().unwrap_or_default();
    if let Some(write) = action::update_status(Kind::Deployment, view.deployment, &old, &status) {
        plan.push(write);
    }
}

/// The status with its counts brought up to date, its conditions as they were.
pub(super) fn counted(view: &View<'_>) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| view.all().map(of).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
    let nonzero = |count: i32| (count != 0).then_some(count);
    DeploymentStatus {
        available_replicas: nonzero(sum(available)),
        observed_generation: view.deployment.metadata.generation,
        ready_replicas: nonzero(sum(ready)),
        replicas: nonzero(sum(actual)),
        unavailable_replicas: nonzero((sum(replicas) - sum(available)).max(0)),
        updated_replicas: nonzero(view.new.map_or(0, actual)),
        ..view.deployment.status.clone().unwrap_or_default()
    }
}

/// Every wanted pod is of the current revision and available, and no old one is left.
pub(super) fn complete(view: &View<'_>, status: &DeploymentStatus) -> bool {
    let wanted = view.wanted();
    let all = [status.updated_replicas, status.replicas, status.available_replicas];
    all.iter().all(|count| count.unwrap_or_default() == wanted)
}

fn conditions(view: &View<'_>, status: &DeploymentStatus, now: Timestamp) -> Vec<DeploymentCondition> {
    let mut conditions = status.conditions.clone().unwrap_or_default();
    let (_, unavailable) = view.margins();
    let enough = status.available_replicas.unwrap_or_default() >= view.wanted() - unavailable;
    let availability = if enough {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut conditions, availability, now, false);
    if view.spec.progress_deadline_seconds.is_none_or(|seconds| seconds == i32::MAX) {
        conditions.retain(|c| c.type_ != PROGRESSING);
        return conditions;
    }
    let current = conditions.iter().find(|c| c.type_ == PROGRESSING);
    let reason = current.and_then(|c| c.reason.clone()).unwrap_or_default();
    if view.paused() {
        if reason != TIMED_OUT {
            set(&mut conditions, condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused"), now, false);
        }
        return conditions;
    }
    if reason == PAUSED {
        let resumed = condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed");
        set(&mut conditions, resumed, now, false);
        return conditions;
    }
    let settled = reason == COMPLETE && status.replicas == status.updated_replicas;
    if !settled && let Some((progress, moved)) = progress(view, status, &conditions, now) {
        set(&mut conditions, progress, now, moved);
    }
    conditions
}

/// The new `Progressing` condition if it changes, and whether it restarts the deadline.
fn progress(
    view: &View<'_>,
    status: &DeploymentStatus,
    conditions: &[DeploymentCondition],
    now: Timestamp,
) -> Option<(DeploymentCondition, bool)> {
    let name = view.new.and_then(|new| new.metadata.name.as_deref());
    let subject = name.map_or_else(
        || format!("Deployment {:?}", view.deployment.metadata.name.as_deref().unwrap_or_default()),
        |name| format!("ReplicaSet {name:?}"),
    );
    let known = conditions.iter().any(|c| c.type_ == PROGRESSING);
    match name {
        Some(name) if !known => {
            let message = format!("Found new replica set {name:?}");
            return Some((condition(PROGRESSING, "True", "FoundNewReplicaSet", &message), false));
        }
        None if !known || !view.recreate() => {
            let message = format!("Created new replica set {:?}", revision::name(view).0);
            return Some((condition(PROGRESSING, "True", "NewReplicaSetCreated", &message), false));
        }
        _ => {}
    }
    if view.new.is_some() && complete(view, status) {
        let message = format!("{subject} has successfully progressed.");
        return Some((condition(PROGRESSING, "True", COMPLETE, &message), false));
    }
    if moved_on(view, status) {
        return Some((
            condition(PROGRESSING, "True", "ReplicaSetUpdated", &format!("{subject} is progressing.")),
            true,
        ));
    }
    let due = deadline(view, conditions).is_some_and(|deadline| deadline <= now);
    due.then(|| (condition(PROGRESSING, "False", TIMED_OUT, &format!("{subject} has timed out progressing.")), false))
}

/// More pods updated, ready or available than last reported, or fewer old ones.
fn moved_on(view: &View<'_>, status: &DeploymentStatus) -> bool {
    let before = view.deployment.status.clone().unwrap_or_default();
    let old_pods = |s: &DeploymentStatus| s.replicas.unwrap_or_default() - s.updated_replicas.unwrap_or_default();
    status.updated_replicas > before.updated_replicas
        || old_pods(status) < old_pods(&before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas
}

/// When a rollout that makes no more progress counts as failed; `None` if it is complete, paused or already failed.
fn deadline(view: &View<'_>, conditions: &[DeploymentCondition]) -> Option<Timestamp> {
    let seconds = view.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let current = conditions.iter().find(|c| c.type_ == PROGRESSING)?;
    if matches!(current.reason.as_deref(), Some(COMPLETE | TIMED_OUT | PAUSED)) {
        return None;
    }
    current.last_update_time.as_ref()?.0.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: None,
        last_update_time: None,
    }
}

/// Sets a condition. One of the same value and reason stays as it is unless `refresh`; the transition time moves only
/// with the value.
fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition, now: Timestamp, refresh: bool) {
    new.last_update_time = Some(Time(now));
    new.last_transition_time = Some(Time(now));
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        None => conditions.push(new),
        Some(old) if old.status == new.status && old.reason == new.reason && !refresh => {}
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
    }
}
