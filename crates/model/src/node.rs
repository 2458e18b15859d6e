use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::Name;

/// One Node (`v1.Node`), reduced to what networking reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's name.
    pub name: Name,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`; empty until one is allocated.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// `metadata.annotations`; flannel keeps its leases there.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}
