//! Pods that no kubelet will ever end: those of nodes that are gone, and deleted ones that never had a node.

use super::{
    Context,
    action::{Deletion, Owner, Plan, Write},
    pods,
    world::{Change, Id, Kind, Object, World},
};

/// Pods with a node or being deleted, and pods of a node that is gone.
pub(super) fn concerns(world: &World, change: &Change) -> Vec<Id> {
    match (&change.old, &change.new) {
        (_, Some(object @ Object::Pod(pod))) if pods::node(pod).is_some() || pods::terminating(pod) => {
            vec![object.id()]
        }
        (Some(Object::Node(node)), None) => {
            let there = world.pods.iter().filter(|pod| pods::node(pod) == node.metadata.name.as_deref());
            there.map(|pod| Object::Pod(pod.clone()).id()).collect()
        }
        _ => Vec::new(),
    }
}

/// Deletes such a pod at once; a node that is only not known *yet* is asked for first.
pub(super) fn plan(world: &World, id: &Id, _: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = world.pods.get(&id.namespace, &id.name) else { return plan };
    let only_without = match pods::node(pod) {
        Some(node) if world.nodes.get("", node).is_some() => return plan,
        Some(node) => vec![Owner { id: Id::new(Kind::Node, "", node), uid: None }],
        None if !pods::terminating(pod) => return plan,
        None => Vec::new(),
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    plan.push(Write::Delete { id: id.clone(), uid, mode: Deletion::Force, only_without });
    plan
}
