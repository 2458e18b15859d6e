//! Pod CIDRs: each node gets the lowest free block of the cluster's range.

use std::collections::BTreeSet;

use ipnet::IpNet;
use podwire_k8s::k8s_openapi::api::core::v1::Node;

use super::{
    Context,
    action::{self, Plan, Report},
    meta,
    world::{Change, Id, Kind, Object, World},
};

const SOURCE: &str = "cidrAllocator";

/// All nodes at once, when one comes, goes, or changes its blocks.
pub(super) fn concerns(_: &World, change: &Change) -> Vec<Id> {
    let blocks = |object: &Option<Object>| match object {
        Some(Object::Node(node)) => Some(blocks(node)),
        _ => None,
    };
    if blocks(&change.old) == blocks(&change.new) { Vec::new() } else { vec![Id::all(Kind::Node)] }
}

/// Gives every node without a block the lowest free one, the nodes that came first before the others.
pub(super) fn plan(world: &World, _: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let taken: BTreeSet<IpNet> = world.nodes.iter().flat_map(|node| blocks(node)).collect();
    let range = context.config.cluster_cidr;
    // The end of a range that is not divisible into blocks of this size is an error of the configuration: no blocks.
    let all = range.subnets(context.config.node_mask).ok().into_iter().flatten();
    let mut free = all.filter(|block| !taken.iter().any(|t| t.contains(block) || block.contains(t)));
    let mut waiting: Vec<&Node> = world.nodes.iter().map(AsRef::as_ref).filter(|node| needs_block(node)).collect();
    // Timestamps have whole seconds: among equals node9 goes before node10.
    waiting.sort_by_key(|node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        (node.metadata.creation_timestamp.as_ref().map(|t| t.0), name.len(), name)
    });
    for node in waiting {
        let Some(block) = free.next() else {
            let message = format!(
                "Node {} status is now: CIDRNotAvailable: no block of /{} is left in {range}",
                node.metadata.name.as_deref().unwrap_or_default(),
                context.config.node_mask
            );
            let about = meta::reference(Kind::Node, &node.metadata);
            plan.push(Report::warning(SOURCE, about, "CIDRNotAvailable", message));
            continue;
        };
        let mut new = node.clone();
        let spec = new.spec.get_or_insert_default();
        spec.pod_cidr = Some(block.to_string());
        spec.pod_cidrs = Some(vec![block.to_string()]);
        plan.actions.extend(action::update(Kind::Node, node, &new).map(Into::into));
    }
    plan
}

fn needs_block(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_none() && blocks(node).is_empty()
}

fn blocks(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|block| block.parse().ok()).collect()
}
