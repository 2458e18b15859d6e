//! Owners and what they own: dependents follow their last owner, precede it (`foregroundDeletion`), or are let go
//! (`orphan`).

use podwire_k8s::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::{
    Context,
    action::{self, Deletion, Owner, Plan, Write},
    meta,
    world::{Change, Id, Kind, Object, World},
};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Objects that have owners or are being deleted, the owners of what is gone, the dependents of what is gone.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    let mut ids = Vec::new();
    if let Some(new) = &change.new
        && (has_owners(new) || new.meta().deletion_timestamp.is_some())
    {
        ids.push(new.id());
    }
    if let Some(new) = change.new.as_ref().filter(|new| new.meta().deletion_timestamp.is_some()) {
        ids.extend(world.owned_by(new.uid()).iter().map(Object::id));
    }
    let gone = change.old.as_ref().filter(|old| change.new.as_ref().is_none_or(|new| new.uid() != old.uid()));
    if let Some(gone) = gone {
        ids.extend(world.owned_by(gone.uid()).iter().map(Object::id));
        ids.extend(gone.meta().owner_references.iter().flatten().filter_map(|owner| owner_id(gone, owner)));
    }
    ids
}

fn has_owners(object: &Object) -> bool {
    object.meta().owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
}

/// The object that an owner reference means; `None` if its kind is not watched.
fn owner_id(dependent: &Object, owner: &OwnerReference) -> Option<Id> {
    let kind = Kind::named(&owner.api_version, &owner.kind)?;
    let namespace = if kind.namespaced() { dependent.meta().namespace.as_deref()? } else { "" };
    Some(Id::new(kind, namespace, &owner.name))
}

/// Lets dependents go or deletes them before an owner that waits; deletes what has no owner left.
pub(super) fn plan(world: &World, id: &Id, _: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = world.get(id) else { return plan };
    let meta = object.meta();
    if meta.deletion_timestamp.is_some() {
        if waits_for(meta, ORPHAN) {
            orphan(world, &object, &mut plan);
        } else if waits_for(meta, FOREGROUND) {
            foreground(world, &object, &mut plan);
        }
        return plan;
    }
    if has_owners(&object) {
        follow(world, &object, &mut plan);
    }
    plan
}

fn waits_for(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Lets every dependent go, then the owner.
fn orphan(world: &World, owner: &Object, plan: &mut Plan) {
    for dependent in world.owned_by(owner.uid()) {
        plan.push(disown(&dependent, &[owner.uid()]));
    }
    if plan.actions.is_empty() {
        plan.push(release(owner, ORPHAN));
    }
}

/// Deletes every dependent; once none is left that the owner must wait for, lets the owner go.
fn foreground(world: &World, owner: &Object, plan: &mut Plan) {
    let dependents = world.owned_by(owner.uid());
    let blocking = |dependent: &&Object| {
        let owners = dependent.meta().owner_references.iter().flatten();
        owners.into_iter().any(|o| o.uid == owner.uid() && o.block_owner_deletion == Some(true))
    };
    if !dependents.iter().any(|dependent| blocking(&dependent)) {
        plan.push(release(owner, FOREGROUND));
    }
    // Each dependent's own pass deletes it: it may have another owner that stays.
}

/// What to do with an object that has owners: some exist, some are gone, some wait for their dependents to go.
fn follow(world: &World, object: &Object, plan: &mut Plan) {
    let (mut gone, mut solid, mut waited_for) = (Vec::new(), false, false);
    for owner in object.meta().owner_references.iter().flatten() {
        let Some(id) = owner_id(object, owner) else {
            // An owner of a kind that is not watched counts as present: nothing is known against it.
            solid = true;
            continue;
        };
        match world.get(&id).filter(|found| found.uid() == owner.uid) {
            None => gone.push(Owner { id, uid: Some(owner.uid.clone()) }),
            Some(found) if found.meta().deletion_timestamp.is_some() && waits_for(found.meta(), FOREGROUND) => {
                waited_for = true;
            }
            Some(_) => solid = true,
        }
    }
    if solid || (gone.is_empty() && !waited_for) {
        // Its remaining owners keep it. References to owners that are gone are harmless and stay.
        return;
    }
    let deeper = !world.owned_by(object.uid()).is_empty();
    let mode = if waited_for && deeper { Deletion::Foreground } else { Deletion::Background };
    plan.push(Write::Delete { id: object.id(), uid: object.uid().to_owned(), mode, only_without: gone });
}

fn disown(dependent: &Object, uids: &[&str]) -> Write {
    let mut meta = dependent.meta().clone();
    for uid in uids {
        meta = meta::disowned(uid, &meta);
    }
    patch(dependent, json!({ "ownerReferences": meta.owner_references }))
}

fn release(object: &Object, finalizer: &str) -> Write {
    let left: Vec<&String> = object.meta().finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    patch(object, json!({ "finalizers": left }))
}

fn patch(object: &Object, mut metadata: Value) -> Write {
    metadata["resourceVersion"] = json!(object.meta().resource_version);
    Write::Patch { id: action::id(object.kind(), object.meta()), status: false, body: json!({ "metadata": metadata }) }
}
