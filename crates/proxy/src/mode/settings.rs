use std::{net::IpAddr, time::Duration};

use podwire_model::{Family, IpNet};

/// What every mode is told once, at start. To change any of it, start the mode anew beside the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which traffic is that of pods of this node.
    pub detect_local: DetectLocal,
    /// Which of this node's addresses answer at node ports.
    pub node_port_addresses: NodePortAddresses,
    /// This node's own addresses, the primary one of each family first.
    pub node_ips: Vec<IpAddr>,
    /// The ranges that cluster IPs are allocated from (ServiceCIDR objects); traffic to addresses there that no
    /// Service has is dropped. Empty when they are not known.
    pub service_ranges: Vec<IpNet>,
    /// The packet mark that asks for masquerading; one bit (`masqueradeBit`, 14 by default).
    pub masquerade_mark: u32,
    /// Drop packets that connection tracking calls invalid (unless `tcpBeLiberal`).
    pub drop_invalid: bool,
    /// Node ports answer at 127.0.0.1 as well, in modes that can do it (`iptables.localhostNodePorts`).
    pub localhost_node_ports: bool,
    /// Settings of ipvs mode.
    pub ipvs: IpvsSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::Unknown,
            node_port_addresses: NodePortAddresses::All,
            node_ips: Vec::new(),
            service_ranges: Vec::new(),
            masquerade_mark: 1 << 14,
            drop_invalid: true,
            localhost_node_ports: true,
            ipvs: IpvsSettings::default(),
        }
    }
}

/// `detectLocalMode`: which traffic comes from pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// Nobody can tell: no traffic is masqueraded for coming from elsewhere.
    Unknown,
    /// By source address (ClusterCIDR, NodeCIDR). A family without a range is as [`DetectLocal::Unknown`].
    Ranges(Vec<IpNet>),
    /// What comes in by this interface (BridgeInterface).
    Interface(String),
    /// What comes in by interfaces whose names begin so (InterfaceNamePrefix).
    InterfacePrefix(String),
}

impl DetectLocal {
    /// The ranges of one family; none for the other ways.
    pub fn ranges(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        let ranges = if let Self::Ranges(ranges) = self { ranges.as_slice() } else { &[] };
        ranges.iter().filter(move |range| Family::of(&range.addr()) == family)
    }
}

/// `nodePortAddresses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of this node.
    All,
    /// The primary address of each family ([`Settings::node_ips`]).
    Primary,
    /// The node's addresses in these ranges.
    Ranges(Vec<IpNet>),
}

/// The section `ipvs` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsSettings {
    /// `scheduler`: the kernel's name, `rr` by default.
    pub scheduler: String,
    /// `excludeCIDRs`: virtual servers in these ranges are somebody else's.
    pub exclude: Vec<IpNet>,
    /// `strictARP`: do not answer ARP for addresses of `kube-ipvs0` (`arp_ignore` 1, `arp_announce` 2).
    pub strict_arp: bool,
    /// `tcpTimeout`, `tcpFinTimeout`, `udpTimeout`; zero leaves the kernel's.
    pub timeouts: [Duration; 3],
}

impl Default for IpvsSettings {
    fn default() -> Self {
        Self { scheduler: "rr".to_owned(), exclude: Vec::new(), strict_arp: false, timeouts: [Duration::ZERO; 3] }
    }
}
