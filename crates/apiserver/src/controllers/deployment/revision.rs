//! Which ReplicaSet belongs to a template, and what is written on it.

use podwire_k8s::k8s_openapi::{
    api::{
        apps::v1::{DeploymentSpec, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{SOURCE, View, replicas, rollout};
use crate::controllers::{
    action::{self, Action, Report, Write},
    meta::{self, Labels},
    world::{Kind, World},
};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
];

/// The revision that an object's annotation gives; 0 without one.
pub(super) fn number(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or_default()
}

/// The number of replicas for which `set` was last scaled, and the most there could be then.
pub(super) fn scaled_for(set: &ReplicaSet) -> (Option<i32>, Option<i32>) {
    let count = |key| meta::annotation(&set.metadata, key).and_then(|value| value.parse().ok());
    (count(DESIRED), count(MAX))
}

/// Whether `set` is the one for the Deployment's template: equal but for the hash label.
pub(super) fn same_template(set: &ReplicaSet, spec: &DeploymentSpec) -> bool {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    template.is_some_and(|template| without_hash(template) == without_hash(&spec.template))
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// The revision of the current template: one more than every older one.
fn current(view: &View<'_>) -> i64 {
    let older = view.old.iter().map(|set| number(&set.metadata)).max().unwrap_or_default();
    view.new.map_or(older + 1, |set| number(&set.metadata).max(older + 1))
}

/// The Deployment carries its current revision too; `None` if it does already.
pub(super) fn on_deployment(view: &View<'_>) -> Option<Write> {
    view.new?;
    let mut wanted = view.deployment.clone();
    wanted.metadata.annotations.get_or_insert_default().insert(REVISION.to_owned(), current(view).to_string());
    action::update(Kind::Deployment, view.deployment, &wanted)
}

/// The name of the ReplicaSet for the current template, and the hash in it.
pub(super) fn name(view: &View<'_>) -> (String, String) {
    let hash = meta::template_hash(&view.spec.template, collisions(view));
    (format!("{}-{hash}", view.deployment.metadata.name.as_deref().unwrap_or_default()), hash)
}

fn collisions(view: &View<'_>) -> i32 {
    view.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or_default()
}

/// A new ReplicaSet for the current template.
///
/// # Errors
/// Its name is taken by something else: the next `status.collisionCount`, which gives another name.
pub(super) fn create(view: &View<'_>, world: &World) -> Result<Action, i32> {
    let owner = &view.deployment.metadata;
    let (name, hash) = name(view);
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    if world.replica_sets.get(namespace, &name).is_some() {
        return Err(collisions(view) + 1);
    }
    let hashed = |labels: Option<&Labels>| {
        let mut labels = labels.cloned().unwrap_or_default();
        labels.insert(HASH.to_owned(), hash.clone());
        Some(labels)
    };
    let mut template = view.spec.template.clone();
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels = hashed(metadata.labels.as_ref());
    let size = rollout::initial(view);
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: owner.namespace.clone(),
            labels: metadata.labels.clone(),
            owner_references: Some(vec![meta::controller_ref(Kind::Deployment, owner)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: view.spec.min_ready_seconds,
            replicas: Some(size),
            selector: LabelSelector {
                match_labels: hashed(view.spec.selector.match_labels.as_ref()),
                match_expressions: view.spec.selector.match_expressions.clone(),
            },
            template: Some(template),
        }),
        status: None,
    };
    let create = Action::from(action::create(Kind::ReplicaSet, &annotated(view, set, true)));
    if size == 0 {
        return Ok(create);
    }
    let about = meta::reference(Kind::Deployment, owner);
    let message = format!("Scaled up replica set {name} from 0 to {size}");
    Ok(create.reporting(Report::normal(SOURCE, about, "ScalingReplicaSet", message)))
}

/// `set` as it should be: of this size, and if it is the current one, with the Deployment's annotations.
pub(super) fn wanted(view: &View<'_>, set: &ReplicaSet, size: i32) -> ReplicaSet {
    let is_current = view.new.is_some_and(|new| new.metadata.uid == set.metadata.uid);
    let mut wanted = set.clone();
    if let Some(spec) = &mut wanted.spec {
        spec.replicas = Some(size);
        if is_current {
            spec.min_ready_seconds = view.spec.min_ready_seconds;
        }
    }
    if is_current || size > 0 || replicas(set) > 0 { annotated(view, wanted, is_current) } else { wanted }
}

fn annotated(view: &View<'_>, mut set: ReplicaSet, is_current: bool) -> ReplicaSet {
    let (surge, _) = view.margins();
    let before = meta::annotation(&set.metadata, REVISION).map(str::to_owned);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), view.wanted().to_string());
    annotations.insert(MAX.to_owned(), (view.wanted() + surge).to_string());
    if is_current {
        let inherited = view.deployment.metadata.annotations.iter().flatten();
        let inherited = inherited.filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str()));
        annotations.extend(inherited.map(|(key, value)| (key.clone(), value.clone())));
        let revision = current(view).to_string();
        if let Some(before) = before.filter(|before| *before != revision) {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            *history = if history.is_empty() { before } else { format!("{history},{before}") };
        }
        annotations.insert(REVISION.to_owned(), revision);
    }
    set
}

/// Old ReplicaSets without pods beyond `revisionHistoryLimit` (by default 10), the oldest revisions first.
pub(super) fn beyond_history<'a>(view: &View<'a>) -> Vec<&'a ReplicaSet> {
    let limit = usize::try_from(view.spec.revision_history_limit.unwrap_or(10)).unwrap_or_default();
    let surplus = view.old.len().saturating_sub(limit);
    let mut oldest_first = view.old.clone();
    oldest_first.sort_by_key(|set| number(&set.metadata));
    let unused = |set: &&ReplicaSet| {
        let left = set.status.as_ref().map_or(0, |status| status.replicas);
        replicas(set) == 0 && left == 0 && set.metadata.deletion_timestamp.is_none()
    };
    oldest_first.into_iter().take(surplus).filter(unused).collect()
}
