//! What happens to a packet, as rows: the specification that every proxy mode is tested by.
//!
//! [`tables`] are worlds (a node's settings, Services, endpoints) with rows of packets. Executors: [`expected`] (the
//! oracle: naive, written from the Kubernetes documentation, sharing no code with the proxy), the tracer of each mode, and
//! real packets in namespaces. Every row is there for IPv4 and IPv6, and most for TCP, UDP and SCTP.

mod oracle;
mod settings;
mod world;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use podwire_model::{EndpointSlice, Family, IpNet, ObjectName, Protocol, Service};

pub use oracle::{expected, expected_by, health_checks};
pub use world::{history, rows, world};

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Who sends it.
    pub from: IpAddr,
    /// Where to.
    pub to: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// What may become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No Service's business.
    Untouched,
    /// Refused at once.
    Rejected,
    /// Dropped.
    Dropped,
    /// Goes to one of these endpoints; with each, whether the source is replaced by the node's.
    Sent(BTreeSet<(SocketAddr, bool)>),
}

/// A row: a packet and a name that says what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it shows.
    pub name: String,
    /// The packet.
    pub packet: Packet,
    /// What becomes of it, written down by hand, in a mode with the default [`Abilities`].
    pub outcome: Outcome,
}

impl Row {
    /// What becomes of it in a mode with other abilities.
    pub fn outcome_by(&self, world: &World, abilities: &Abilities) -> Outcome {
        if *abilities == Abilities::default() {
            self.outcome.clone()
        } else {
            expected_by(world, &self.packet, abilities)
        }
    }
}

/// A world and what becomes of packets in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is about.
    pub name: &'static str,
    /// Everything that decides.
    pub world: World,
    /// The packets.
    pub rows: Vec<Row>,
}

/// Where modes legitimately differ. The default is that of nftables mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Endpoints see the client's address unless it is masqueraded. Otherwise they always see the node's.
    pub keeps_sources: bool,
    /// SCTP is carried. Otherwise what would go to an endpoint is refused.
    pub sctp: bool,
    /// Node ports answer at 127.0.0.1, where [`World::localhost_node_ports`] and [`World::node_ports`] allow it.
    pub localhost_v4: bool,
    /// Node ports answer at `::1`, in the same way.
    pub localhost_v6: bool,
    /// Node ports without endpoints are refused at loopback addresses, even where others do not answer.
    pub refuses_at_localhost: bool,
    /// All addresses of Services become the node's own, so ports that no Service has are refused at external ones too.
    pub owns_addresses: bool,
}

impl Default for Abilities {
    fn default() -> Self {
        Self {
            keeps_sources: true,
            sctp: true,
            localhost_v4: false,
            localhost_v6: false,
            refuses_at_localhost: false,
            owns_addresses: false,
        }
    }
}

/// Everything that decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// The node where the packet is looked at.
    pub node: &'static str,
    /// Its zone.
    pub zone: Option<&'static str>,
    /// That node's own addresses, the primary one of each family first.
    pub node_addresses: Vec<IpAddr>,
    /// How pods are told from others (`detectLocalMode`).
    pub pods: Pods,
    /// Which addresses answer at node ports (`nodePortAddresses`).
    pub node_ports: NodePorts,
    /// `iptables.localhostNodePorts`.
    pub localhost_node_ports: bool,
    /// The ranges of cluster IPs, where they are known.
    pub service_ranges: Vec<IpNet>,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
    /// The Services.
    pub services: Vec<Service>,
    /// Their slices.
    pub slices: Vec<EndpointSlice>,
}

/// How pods are told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pods {
    /// Not at all.
    Unknown,
    /// By their addresses.
    Ranges(Vec<IpNet>),
    /// By the interface that their packets come in by; see [`interface`].
    Interface(&'static str),
    /// By how its name begins.
    InterfacePrefix(&'static str),
}

/// Which of the node's addresses answer at node ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePorts {
    /// All.
    Everywhere,
    /// The primary one of each family.
    Primary,
    /// Those in ranges.
    Ranges(Vec<IpNet>),
}

/// A pod of this node.
pub const POD_A: &str = "10.244.0.2";
/// The other pod of this node.
pub const POD_B: &str = "10.244.0.3";
/// A pod of another node.
pub const POD_C: &str = "10.244.1.2";
/// This node.
pub const NODE: &str = "172.25.2.1";
/// This node's address on the way to its pods.
pub const NODE_INNER: &str = "10.244.0.1";
/// A machine that is neither a node nor a pod.
pub const OUTSIDE: &str = "172.25.2.250";

/// The interface of this node that packets of `from` come in by; `lo` for its own.
pub fn interface(from: &IpAddr) -> &'static str {
    let is = |name: &str| [Family::V4, Family::V6].iter().any(|family| address(name, *family) == *from);
    match () {
        () if is(POD_A) => "pod-a",
        () if is(POD_B) => "pod-b",
        () if is(POD_C) => "up-c",
        () if is(OUTSIDE) => "up-outside",
        () => "lo",
    }
}

/// An address of this module, or its counterpart of the other family: 10.244.0.2 is `fd00::10:244:0:2`.
///
/// # Panics
/// When `v4` is no IPv4 address.
pub fn address(v4: &str, family: Family) -> IpAddr {
    let v4: Ipv4Addr = v4.parse().unwrap_or_else(|error| panic!("{v4:?}: {error}"));
    match family {
        Family::V4 => v4.into(),
        Family::V6 if v4.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        Family::V6 => {
            let [a, b, c, d] = v4.octets();
            format!("fd00::{a}:{b}:{c}:{d}").parse().unwrap_or_else(|error| panic!("{v4}: {error}"))
        }
    }
}

/// A range of IPv4 addresses with a length of whole octets, and its counterpart.
///
/// # Panics
/// When `v4` is no such range.
pub fn range(v4: &str, family: Family) -> IpNet {
    let (start, length) = v4.split_once('/').unwrap_or_else(|| panic!("{v4:?} is no range"));
    let length: u8 = length.parse().unwrap_or_else(|error| panic!("{v4:?}: {error}"));
    let length = match family {
        Family::V4 => length,
        Family::V6 if length == 0 => 0,
        Family::V6 => 64 + length * 2,
    };
    IpNet::new(address(start, family), length).unwrap_or_else(|error| panic!("{v4:?}: {error}"))
}

/// Both families, for loops.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The range of all pods, in both families.
pub fn pod_ranges() -> Vec<IpNet> {
    FAMILIES.map(|family| range("10.244.0.0/16", family)).into()
}

/// An empty world of the same node: for replays.
pub fn empty() -> World {
    let node_addresses = [NODE, NODE_INNER].into_iter().flat_map(|a| FAMILIES.map(|family| address(a, family)));
    World {
        node: "node1",
        zone: Some("zone-a"),
        node_addresses: node_addresses.collect(),
        pods: Pods::Ranges(pod_ranges()),
        node_ports: NodePorts::Everywhere,
        localhost_node_ports: true,
        service_ranges: Vec::new(),
        masquerade_all: false,
        services: Vec::new(),
        slices: Vec::new(),
    }
}

/// All tables. The first is about Services; the others about settings, and about what needs some.
pub fn tables() -> Vec<Table> {
    let mut tables = vec![Table { name: "policies", world: world(), rows: rows() }];
    tables.extend(settings::tables());
    tables
}

/// A small part of the first table, for tests that go through it again and again: some Services, and packets of one family
/// and protocol to them.
pub fn brief() -> Table {
    const KEPT: &[&str] = &["plain", "nodeport", "local", "remote", "none", "nowhere", "external", "both"];
    let mut world = world();
    world.services.retain(|service| KEPT.contains(&&*service.name.name));
    world.slices.retain(|slice| KEPT.contains(&&*slice.service));
    let mut rows = rows();
    rows.retain(|row| row.packet.to.is_ipv4() && row.packet.protocol == Protocol::Tcp);
    // Those about other Services: nothing happens to their packets here.
    rows.retain(|row| row.outcome != Outcome::Untouched && row.outcome == expected(&world, &row.packet));
    Table { name: "brief", world, rows }
}

/// A Service and how many of its ready endpoints are on this node, by the port where load balancers ask.
pub type HealthChecks = std::collections::BTreeMap<u16, (ObjectName, usize)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_agrees_with_what_was_written_by_hand() {
        for table in tables() {
            for row in &table.rows {
                assert_eq!(expected(&table.world, &row.packet), row.outcome, "{}: {}", table.name, row.name);
            }
        }
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        for table in tables() {
            let names: BTreeSet<_> = table.rows.iter().map(|row| &row.name).collect();
            assert_eq!(names.len(), table.rows.len(), "{}", table.name);
        }
    }

    #[test]
    fn addresses_have_counterparts() {
        assert_eq!(address(POD_A, Family::V6).to_string(), "fd00::10:244:0:2");
        assert_eq!(range("10.244.0.0/16", Family::V6).to_string(), "fd00::10:244:0:0/96");
        assert!(range("10.244.0.0/16", Family::V6).contains(&address(POD_C, Family::V6)));
        assert_eq!(interface(&address(POD_B, Family::V6)), "pod-b");
    }

    #[test]
    fn abilities_change_what_they_say() {
        let world = world();
        let row = |name: &str| rows().into_iter().find(|row| row.name == name).unwrap();
        let local = row("Local keeps the source (IPv4 TCP)");
        let userspace = Abilities {
            keeps_sources: false,
            sctp: false,
            localhost_v4: true,
            localhost_v6: true,
            ..Abilities::default()
        };
        let masked = Outcome::Sent([(SocketAddr::new(address(POD_B, Family::V4), 8080), true)].into());
        assert_eq!(local.outcome_by(&world, &userspace), masked);
        let sctp = row("Local keeps the source (IPv4 SCTP)");
        assert_eq!(sctp.outcome_by(&world, &userspace), Outcome::Rejected);
        let localhost = row("node port at the loopback address (IPv6 UDP)");
        assert_eq!(localhost.outcome, Outcome::Untouched);
        assert!(matches!(localhost.outcome_by(&world, &userspace), Outcome::Sent(to) if to.len() == 2));
        let iptables = Abilities { localhost_v4: true, ..Abilities::default() };
        assert_eq!(localhost.outcome_by(&world, &iptables), Outcome::Untouched);
    }

    #[test]
    fn health_checks_count_ready_endpoints_of_this_node() {
        let checks = health_checks(&world());
        assert_eq!(checks[&30190], (ObjectName::new("default", "asked"), 1));
        assert_eq!(checks[&30191], (ObjectName::new("default", "asked-in-vain"), 0));
    }
}
