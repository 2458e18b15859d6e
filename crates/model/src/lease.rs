use std::net::IpAddr;

use ipnet::IpNet;

use crate::Name;

/// What one node tells the others about its part of the overlay: flannel's node annotations as a value.
///
/// Source: flannel `pkg/subnet/kube/kube.go` (annotation keys `flannel.alpha.coreos.com/*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node that holds it.
    pub node: Name,
    /// The pod range of the node, for example `10.244.1.0/24`.
    pub subnet: IpNet,
    /// Annotation `public-ip` (or `public-ipv6`): where encapsulated packets are sent.
    pub public_ip: IpAddr,
    /// Annotation `backend-type`: `vxlan`, `host-gw`, `udp`, …
    pub backend: Name,
    /// Annotation `backend-data` (or `backend-v6-data`): JSON whose shape the backend defines, `null` where it has none.
    pub backend_data: Name,
}
