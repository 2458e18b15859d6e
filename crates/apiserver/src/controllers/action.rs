//! What a controller wants done: plain values, carried out by the shell.

use podwire_k8s::k8s_openapi::{
    Metadata, api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::world::{Id, Kind};

/// What one look at one key asks for.
///
/// The actions of a plan are independent and run at the same time. Where a second step needs the first, a plan holds
/// the first only: its result is a change, which brings the key up again.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Plan {
    /// What to do now.
    pub actions: Vec<Action>,
    /// When to look again even if nothing changes.
    pub again_at: Option<Timestamp>,
}

impl Plan {
    /// Adds an action.
    pub fn push(&mut self, action: impl Into<Action>) {
        self.actions.push(action.into());
    }

    /// Looks again at `when` or earlier.
    pub fn look_again(&mut self, when: Option<Timestamp>) {
        self.again_at = self.again_at.into_iter().chain(when).min();
    }
}

/// A write, a report about it, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// The change of the API's state.
    pub write: Option<Write>,
    /// The Event to record once the write has succeeded.
    pub report: Option<Report>,
}

impl Action {
    /// Records `report` when the write succeeds.
    pub fn reporting(mut self, report: Report) -> Self {
        self.report = Some(report);
        self
    }
}

impl From<Write> for Action {
    fn from(write: Write) -> Self {
        Self { write: Some(write), report: None }
    }
}

impl From<Report> for Action {
    fn from(report: Report) -> Self {
        Self { write: None, report: Some(report) }
    }
}

/// One request that changes the API's state.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Creates an object; `body` may have `metadata.generateName` instead of a name.
    Create {
        /// The kind of the new object.
        kind: Kind,
        /// Its namespace; empty for a cluster-scoped kind.
        namespace: String,
        /// The whole object without `apiVersion` and `kind`.
        body: Value,
    },
    /// Merges `body` (RFC 7396) into the object, or into its status. It carries the `resourceVersion` that the decision
    /// was made from: if the object has changed since, nothing is written and the key comes up again.
    Patch {
        /// The object.
        id: Id,
        /// The `status` subresource instead of the object itself.
        status: bool,
        /// The merge patch.
        body: Value,
    },
    /// Deletes an object if it still is the one with this `uid`.
    Delete {
        /// The object.
        id: Id,
        /// Its `metadata.uid`.
        uid: String,
        /// `propagationPolicy` and `gracePeriodSeconds`.
        mode: Deletion,
        /// Objects that must be gone, asked from the API itself just before: a cache may not know them *yet*.
        only_without: Vec<Owner>,
    },
    /// Assigns a pod to a node.
    Bind {
        /// The pod.
        pod: Id,
        /// Its `metadata.uid`.
        uid: String,
        /// The node's name.
        node: String,
    },
    /// Declares an empty namespace finished: removes `spec.finalizers`.
    Finalize {
        /// The namespace's name.
        namespace: String,
    },
}

/// How an object is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The object goes first (a pod after its grace period), its dependents follow.
    Background,
    /// The object's dependents go first.
    Foreground,
    /// At once, without a grace period.
    Force,
}

/// Another object that an action depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The object.
    pub id: Id,
    /// The `metadata.uid` that is meant; `None`: any object of this name.
    pub uid: Option<String>,
}

/// An Event about an object, as `kubectl describe` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The object that the Event is about.
    pub about: ObjectReference,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// `reason`, one word in CamelCase.
    pub reason: &'static str,
    /// The text; `{name}` stands for the name of the object that the write created.
    pub message: String,
    /// The component that reports, for example `replicaset-controller`.
    pub source: &'static str,
}

impl Report {
    /// A `Normal` Event.
    pub fn normal(source: &'static str, about: ObjectReference, reason: &'static str, message: String) -> Self {
        Self { about, warning: false, reason, message, source }
    }

    /// A `Warning` Event.
    pub fn warning(source: &'static str, about: ObjectReference, reason: &'static str, message: String) -> Self {
        Self { about, warning: true, reason, message, source }
    }
}

/// Creates `object`.
pub fn create<K>(kind: Kind, object: &K) -> Write
where
    K: Metadata<Ty = ObjectMeta> + Serialize,
{
    let namespace = object.metadata().namespace.clone().unwrap_or_default();
    Write::Create { kind, namespace, body: to_json(object) }
}

/// Changes `old` into `new`, status aside. `None` if they are equal.
pub fn update<K>(kind: Kind, old: &K, new: &K) -> Option<Write>
where
    K: Metadata<Ty = ObjectMeta> + Serialize,
{
    let (mut old_json, mut new_json) = (to_json(old), to_json(new));
    for json in [&mut old_json, &mut new_json] {
        if let Some(fields) = json.as_object_mut() {
            fields.remove("status");
        }
    }
    patch(kind, old.metadata(), false, merge_diff(&old_json, &new_json)?)
}

/// Changes the status of `old` into `status`. `None` if it is so already.
pub fn update_status<K, S>(kind: Kind, object: &K, old: &S, new: &S) -> Option<Write>
where
    K: Metadata<Ty = ObjectMeta>,
    S: Serialize,
{
    let diff = merge_diff(&to_json(old), &to_json(new))?;
    patch(kind, object.metadata(), true, json!({ "status": diff }))
}

/// Deletes the object that `meta` describes.
pub fn delete(kind: Kind, meta: &ObjectMeta, mode: Deletion) -> Write {
    Write::Delete { id: id(kind, meta), uid: meta.uid.clone().unwrap_or_default(), mode, only_without: Vec::new() }
}

/// The identity of the object that `meta` describes.
pub fn id(kind: Kind, meta: &ObjectMeta) -> Id {
    Id::new(kind, meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn patch(kind: Kind, meta: &ObjectMeta, status: bool, mut body: Value) -> Option<Write> {
    let metadata = body.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    metadata.as_object_mut()?.insert("resourceVersion".into(), json!(meta.resource_version));
    Some(Write::Patch { id: id(kind, meta), status, body })
}

/// The value as JSON; `Null` for what JSON cannot express, which no API type contains.
pub fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// The smallest RFC 7396 merge patch from `old` to `new`; `None` if they are equal.
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match old.get(name) {
            None => patch.insert(name.clone(), value.clone()),
            Some(before) => merge_diff(before, value).and_then(|diff| patch.insert(name.clone(), diff)),
        };
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..3i32).prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_the_difference_gives_the_new_value(old in value(), new in value()) {
            let mut merged = old.clone();
            if let Some(patch) = merge_diff(&old, &new) {
                json_patch::merge(&mut merged, &patch);
            }
            prop_assert_eq!(merged, new);
        }
    }
}
