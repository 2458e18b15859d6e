//! Pod CIDRs: each node gets the lowest free block of each of the cluster's ranges.

use std::{collections::BTreeSet, iter::Peekable};

use ipnet::IpNet;
use podwire_k8s::k8s_openapi::api::core::v1::Node;

use super::{
    Context, PodRange,
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

/// Gives every node without blocks the lowest free one of each range, the nodes that came first before the others.
pub(super) fn plan(world: &World, _: &Id, context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let taken: BTreeSet<IpNet> = world.nodes.iter().flat_map(|node| blocks(node)).collect();
    let ranges = &context.config.pod_ranges;
    let mut free: Vec<_> = ranges.iter().map(|range| free_blocks(*range, &taken)).collect();
    let mut waiting: Vec<&Node> = world.nodes.iter().map(AsRef::as_ref).filter(|node| needs_block(node)).collect();
    // Timestamps have whole seconds: among equals node9 goes before node10.
    waiting.sort_by_key(|node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        (node.metadata.creation_timestamp.as_ref().map(|t| t.0), name.len(), name)
    });
    for node in waiting {
        // From every range or none: a node with one family of two would never get the other.
        if let Some(at) = free.iter_mut().position(|blocks| blocks.peek().is_none()) {
            let PodRange { range, node_mask } = ranges[at];
            let message = format!(
                "Node {} status is now: CIDRNotAvailable: no block of /{node_mask} is left in {range}",
                node.metadata.name.as_deref().unwrap_or_default()
            );
            let about = meta::reference(Kind::Node, &node.metadata);
            plan.push(Report::warning(SOURCE, about, "CIDRNotAvailable", message));
            continue;
        }
        let given: Vec<String> = free.iter_mut().filter_map(Iterator::next).map(|block| block.to_string()).collect();
        let mut new = node.clone();
        let spec = new.spec.get_or_insert_default();
        spec.pod_cidr = given.first().cloned();
        spec.pod_cidrs = Some(given);
        plan.actions.extend(action::update(Kind::Node, node, &new).map(Into::into));
    }
    plan
}

/// The blocks of a range that touch none of `taken`, lowest first.
fn free_blocks(
    PodRange { range, node_mask }: PodRange,
    taken: &BTreeSet<IpNet>,
) -> Peekable<impl Iterator<Item = IpNet>> {
    // A range that is not divisible into blocks of this size is an error of the configuration: no blocks.
    let all = range.subnets(node_mask).ok().into_iter().flatten();
    all.filter(|block| !taken.iter().any(|t| t.contains(block) || block.contains(t))).peekable()
}

fn needs_block(node: &Node) -> bool {
    node.metadata.deletion_timestamp.is_none() && blocks(node).is_empty()
}

fn blocks(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|block| block.parse().ok()).collect()
}
