//! The ipsets: kube-proxy's names and types, and four of our own for what kube-proxy cannot do.

use podwire_kernel::ipset::{Kind, Set};
use podwire_model::{Family, Protocol};

/// One of the sets. In the order in which entries are added; they are removed in the opposite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Every address that this mode holds: their other ports are refused.
    Addresses,
    /// Frontend and one source that may enter.
    SourceIp,
    /// Frontend and a range of sources that may enter.
    SourceCidr,
    /// Frontends with `loadBalancerSourceRanges`.
    Firewall,
    /// Endpoint to itself: masqueraded.
    LoopBack,
    /// Cluster IPs: masqueraded unless a pod sends.
    ClusterIp,
    /// Addresses from outside: masqueraded.
    ExternalIp,
    /// The same with `externalTrafficPolicy: Local`.
    ExternalIpLocal,
    /// Load-balancer addresses with source ranges: masqueraded unless they are in the next one too.
    LoadBalancer,
    /// Those with `externalTrafficPolicy: Local`.
    LoadBalancerLocal,
    /// TCP node ports: masqueraded unless they are in the next one too.
    NodePortTcp,
    /// Those with `externalTrafficPolicy: Local`.
    NodePortLocalTcp,
    /// UDP node ports.
    NodePortUdp,
    /// Those with `externalTrafficPolicy: Local`.
    NodePortLocalUdp,
    /// SCTP node ports, with the node's addresses.
    NodePortSctp,
    /// Those with `externalTrafficPolicy: Local`.
    NodePortLocalSctp,
    /// Frontends whose traffic is dropped.
    Drop,
    /// Frontends with `externalTrafficPolicy: Local` and the mark that traffic of pods and this node gets: it leads to a
    /// virtual server with all endpoints.
    Inside,
    /// Frontends whose traffic is dropped unless it has such a mark.
    DropOutside,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Addresses,
        Self::SourceIp,
        Self::SourceCidr,
        Self::Firewall,
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::NodePortTcp,
        Self::NodePortLocalTcp,
        Self::NodePortUdp,
        Self::NodePortLocalUdp,
        Self::NodePortSctp,
        Self::NodePortLocalSctp,
        Self::Drop,
        Self::Inside,
        Self::DropOutside,
    ];

    /// Sets that only kube-proxy makes: removed by a cleanup.
    pub const KUBE_PROXYS: [&str; 1] = ["KUBE-HEALTH-CHECK-NODE-PORT"];

    /// The set of a protocol's node ports.
    pub const fn node_ports(protocol: Protocol, local: bool) -> Self {
        match (protocol, local) {
            (Protocol::Tcp, false) => Self::NodePortTcp,
            (Protocol::Tcp, true) => Self::NodePortLocalTcp,
            (Protocol::Udp, false) => Self::NodePortUdp,
            (Protocol::Udp, true) => Self::NodePortLocalUdp,
            (Protocol::Sctp, false) => Self::NodePortSctp,
            (Protocol::Sctp, true) => Self::NodePortLocalSctp,
        }
    }

    const fn ipv4(self) -> &'static str {
        match self {
            Self::Addresses => "KUBE-IPVS-IPS",
            Self::SourceIp => "KUBE-LOAD-BALANCER-SOURCE-IP",
            Self::SourceCidr => "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            Self::Firewall => "KUBE-LOAD-BALANCER-FW",
            Self::LoopBack => "KUBE-LOOP-BACK",
            Self::ClusterIp => "KUBE-CLUSTER-IP",
            Self::ExternalIp => "KUBE-EXTERNAL-IP",
            Self::ExternalIpLocal => "KUBE-EXTERNAL-IP-LOCAL",
            Self::LoadBalancer => "KUBE-LOAD-BALANCER",
            Self::LoadBalancerLocal => "KUBE-LOAD-BALANCER-LOCAL",
            Self::NodePortTcp => "KUBE-NODE-PORT-TCP",
            Self::NodePortLocalTcp => "KUBE-NODE-PORT-LOCAL-TCP",
            Self::NodePortUdp => "KUBE-NODE-PORT-UDP",
            Self::NodePortLocalUdp => "KUBE-NODE-PORT-LOCAL-UDP",
            Self::NodePortSctp => "KUBE-NODE-PORT-SCTP-HASH",
            Self::NodePortLocalSctp => "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
            Self::Drop => "KUBE-IPVS-DROP",
            Self::Inside => "KUBE-IPVS-INSIDE",
            Self::DropOutside => "KUBE-IPVS-DROP-OUTSIDE",
        }
    }

    /// The set's name in the kernel; at most 31 bytes.
    pub fn name(self, family: Family) -> String {
        in_family(self.ipv4(), family)
    }

    /// What its entries are.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Addresses => Kind::HashIp,
            Self::SourceIp | Self::LoopBack => Kind::HashIpPortIp,
            Self::SourceCidr => Kind::HashIpPortNet,
            Self::NodePortTcp | Self::NodePortLocalTcp | Self::NodePortUdp | Self::NodePortLocalUdp => Kind::BitmapPort,
            _ => Kind::HashIpPort,
        }
    }

    /// What packets are looked up by in it.
    pub const fn directions(self) -> &'static str {
        match self.kind() {
            Kind::HashIp | Kind::BitmapPort => "dst",
            Kind::HashIpPort => "dst,dst",
            Kind::HashIpPortIp | Kind::HashIpPortNet => "dst,dst,src",
        }
    }

    /// The set as the kernel is told of it.
    pub fn set(self, family: Family) -> Set {
        Set { marks: self == Self::Inside, ..Set::new(self.name(family), self.kind(), family) }
    }
}

/// kube-proxy's way to name sets of IPv6; it cuts what is longer than the kernel takes.
pub fn in_family(name: &str, family: Family) -> String {
    const LONGEST: usize = 31;
    match family {
        Family::V4 => name.to_owned(),
        Family::V6 => name.replacen("KUBE-", "KUBE-6-", 1).chars().take(LONGEST).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let both = [Family::V4, Family::V6];
        let mut names: Vec<_> = both.iter().flat_map(|family| Name::ALL.map(|set| set.name(*family))).collect();
        assert!(names.iter().all(|name| name.len() <= 31), "{names:?}");
        assert!(names.contains(&"KUBE-6-LOAD-BALANCER-SOURCE-CID".to_owned()), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 2 * Name::ALL.len());
    }
}
