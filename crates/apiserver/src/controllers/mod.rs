//! The small controllers that a lab's cluster needs, as plain clients of its API: they would work on any other.
//!
//! A controller is a row of [`CONTROLLERS`]: a pure function from the known objects to a [`Plan`] for one key, and one
//! that says which keys a change concerns. Neither reads a clock or does IO, and a plan depends on the current objects
//! only, never on the order in which they came. The shell (`shell`) is the same for all: one watch for each kind, one
//! queue of keys, the plans' actions carried out through the API.
//!
//! Reading order: `world` (what is known), `action` (what can be done), any controller, `shell`.

use ipnet::IpNet;
use podwire_k8s::k8s_openapi::jiff::Timestamp;

mod action;
mod apply;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod events;
mod garbage;
mod meta;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod nodes;
mod pod_gc;
mod pods;
mod queue;
mod replica_set;
mod scheduler;
mod shell;
#[cfg(test)]
mod tests;
mod world;

use action::Plan;
use world::{Change, Id, World};

pub use shell::run;

/// What the controllers cannot learn from the API.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pods' addresses: one range, or one of IPv4 and one of IPv6. The first is that of `spec.podCIDR`.
    pub pod_ranges: Vec<PodRange>,
    /// The certificate authority (PEM) that goes into every namespace as ConfigMap `kube-root-ca.crt`.
    pub root_ca: Option<String>,
}

/// A range of pods' addresses (`--cluster-cidr`), and how much of it a node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRange {
    /// For example `10.244.0.0/16`.
    pub range: IpNet,
    /// The prefix length of each node's part of it.
    pub node_mask: u8,
}

impl Config {
    /// A part of each range for each node, /24 (IPv4) or /64 (IPv6) as upstream.
    pub fn new(ranges: impl IntoIterator<Item = IpNet>) -> Self {
        let part = |range: IpNet| PodRange { range, node_mask: if range.addr().is_ipv4() { 24 } else { 64 } };
        Self { pod_ranges: ranges.into_iter().map(part).collect(), root_ca: None }
    }
}

/// What a pass is given besides the objects.
struct Context<'a> {
    config: &'a Config,
    now: Timestamp,
}

/// One controller.
struct Controller {
    /// The name in logs.
    name: &'static str,
    /// The keys that a change concerns. The world already contains the change.
    concerns: fn(&World, &Change) -> Vec<Id>,
    /// What to do for one key.
    plan: fn(&World, &Id, &Context<'_>) -> Plan,
}

/// Every controller.
const CONTROLLERS: &[Controller] = &[
    Controller { name: "node-ipam", concerns: node_ipam::concerns, plan: node_ipam::plan },
    Controller { name: "node-lifecycle", concerns: node_lifecycle::concerns, plan: node_lifecycle::plan },
    Controller { name: "daemonset", concerns: daemon_set::concerns, plan: daemon_set::plan },
    Controller { name: "deployment", concerns: deployment::concerns, plan: deployment::plan },
    Controller { name: "replicaset", concerns: replica_set::concerns, plan: replica_set::plan },
    Controller { name: "scheduler", concerns: scheduler::concerns, plan: scheduler::plan },
    Controller { name: "endpointslice", concerns: endpoints::concerns, plan: endpoint_slice::plan },
    Controller { name: "endpoints", concerns: endpoints::concerns, plan: endpoints::plan },
    Controller { name: "namespace", concerns: namespace::concerns, plan: namespace::plan },
    Controller { name: "garbage-collector", concerns: garbage::concerns, plan: garbage::plan },
    Controller { name: "pod-gc", concerns: pod_gc::concerns, plan: pod_gc::plan },
];
