//! Deployments: one ReplicaSet for each revision of the pod template, and the way from one to the next.
//!
//! - `revision`: which ReplicaSet is the template's, how it is made, what it is numbered;
//! - `rollout`: how many replicas each ReplicaSet should have now;
//! - `status`: what the Deployment reports.

use podwire_k8s::k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Context,
    action::{self, Action, Deletion, Plan, Report},
    meta, pods,
    world::{Change, Id, Kind, Object, World},
};

mod revision;
mod rollout;
mod status;

const SOURCE: &str = "deployment-controller";

/// Deployments, their ReplicaSets, and (for `Recreate`, which waits until they are gone) those ReplicaSets' pods.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    for object in change.states() {
        match object {
            Object::Deployment(deployment) => ids.push(action::id(Kind::Deployment, &deployment.metadata)),
            Object::ReplicaSet(set) => ids.extend(deployments_of(world, set)),
            Object::Pod(pod) if change.new.is_none() || pods::finished(pod) => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let owner = meta::controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet");
                let set = owner.and_then(|owner| world.replica_sets.get(namespace, &owner.name));
                ids.extend(set.into_iter().flat_map(|set| deployments_of(world, set)));
            }
            _ => {}
        }
    }
    ids
}

fn deployments_of(world: &World, set: &ReplicaSet) -> Vec<Id> {
    meta::claimants(Kind::Deployment, &world.deployments, &set.metadata, |d| Some(&d.spec.as_ref()?.selector))
}

/// A Deployment with its ReplicaSets, oldest first.
struct View<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    /// The ReplicaSet of the current template.
    new: Option<&'a ReplicaSet>,
    /// The ReplicaSets of earlier templates.
    old: Vec<&'a ReplicaSet>,
}

impl<'a> View<'a> {
    fn new(deployment: &'a Deployment, spec: &'a DeploymentSpec, mut sets: Vec<&'a ReplicaSet>) -> Self {
        sets.sort_by_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|t| t.0), revision::number(&set.metadata), &set.metadata.name)
        });
        let new = sets.iter().copied().find(|set| revision::same_template(set, spec));
        sets.retain(|set| new.is_none_or(|new| new.metadata.uid != set.metadata.uid));
        Self { deployment, spec, new, old: sets }
    }

    fn all(&self) -> impl Iterator<Item = &'a ReplicaSet> {
        self.old.iter().copied().chain(self.new)
    }

    /// `spec.replicas`, by default 1.
    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn paused(&self) -> bool {
        self.spec.paused == Some(true)
    }

    fn recreate(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }

    /// `maxSurge` and `maxUnavailable` in pods; zero for `Recreate`. They are never both zero for a rolling update.
    fn margins(&self) -> (i32, i32) {
        if self.recreate() {
            return (0, 0);
        }
        let rolling = self.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = meta::scaled(rolling.and_then(|r| r.max_surge.as_ref()), "25%", self.wanted(), true);
        let unavailable = meta::scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), "25%", self.wanted(), false);
        match (surge, unavailable.min(self.wanted())) {
            (0, 0) => (0, 1),
            margins => margins,
        }
    }
}

/// `spec.replicas` of a ReplicaSet.
fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `status.availableReplicas` of a ReplicaSet.
fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

/// Moves the ReplicaSets one step on, and reports.
pub(super) fn plan(world: &World, id: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(deployment) = world.deployments.get(&id.namespace, &id.name) else { return plan };
    let Some(spec) = &deployment.spec else { return plan };
    let sets = world.replica_sets.in_namespace(&id.namespace).map(AsRef::as_ref);
    let claim = meta::claim(&deployment.metadata, &spec.selector, sets);
    settle(&claim, &deployment.metadata, &mut plan);
    if !plan.actions.is_empty() {
        return plan;
    }
    let view = View::new(deployment, spec, claim.owned);
    let mut collisions = None;
    if deployment.metadata.deletion_timestamp.is_none() {
        if let Some(write) = revision::on_deployment(&view) {
            plan.push(write);
            return plan;
        }
        if view.new.is_none() && !view.paused() && !waits_for_old_pods(&view, world) {
            match revision::create(&view, world) {
                Ok(create) => plan.push(create),
                Err(collision) => collisions = Some(collision),
            }
        } else {
            step(&view, world, &mut plan);
        }
    }
    status::report(&view, collisions, context.now, &mut plan);
    plan
}

fn settle(claim: &meta::Claim<'_, ReplicaSet>, owner: &ObjectMeta, plan: &mut Plan) {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let adopted = claim.adopt.iter().map(|set| (*set, meta::adopted(Kind::Deployment, owner, &set.metadata)));
    let released = claim.release.iter().map(|set| (*set, meta::disowned(uid, &set.metadata)));
    for (set, metadata) in adopted.chain(released) {
        let new = ReplicaSet { metadata, ..set.clone() };
        if let Some(write) = action::update(Kind::ReplicaSet, set, &new) {
            plan.push(write);
        }
    }
}

/// `Recreate` starts the new revision only when no pod of an old one runs any more.
fn waits_for_old_pods(view: &View<'_>, world: &World) -> bool {
    let uids = view.old.iter().filter_map(|set| set.metadata.uid.as_deref());
    view.recreate() && uids.flat_map(|uid| world.pods.owned_by(uid)).any(|pod| !pods::finished(pod))
}

/// Scales the ReplicaSets and keeps their annotations; deletes those beyond the history limit.
fn step(view: &View<'_>, world: &World, plan: &mut Plan) {
    let sizes = if view.paused() || rollout::resized(view) {
        rollout::proportional(view)
    } else if view.recreate() {
        rollout::recreate(view, waits_for_old_pods(view, world))
    } else {
        rollout::rolling(view)
    };
    for (set, size) in view.all().zip(sizes) {
        let new = revision::wanted(view, set, size);
        if let Some(write) = action::update(Kind::ReplicaSet, set, &new) {
            let change = Action::from(write);
            plan.push(match scaled(view, set, size) {
                Some(report) => change.reporting(report),
                None => change,
            });
        }
    }
    if status::complete(view, &status::counted(view)) || view.paused() {
        for set in revision::beyond_history(view) {
            plan.push(action::delete(Kind::ReplicaSet, &set.metadata, Deletion::Background));
        }
    }
}

fn scaled(view: &View<'_>, set: &ReplicaSet, to: i32) -> Option<Report> {
    let from = replicas(set);
    let direction = match to.cmp(&from) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => "up",
        std::cmp::Ordering::Less => "down",
    };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
    let about = meta::reference(Kind::Deployment, &view.deployment.metadata);
    Some(Report::normal(SOURCE, about, "ScalingReplicaSet", message))
}
