//! What a lab consists of: names and addresses, checked before anything is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_model::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    backend::Backend,
    error::{Error, Result},
};

/// A network that machines are on: a bridge of the underlay, which is its router.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment {
    /// The bridge's name.
    pub bridge: &'static str,
    /// The network.
    pub net: Ipv4Net,
    /// The network's IPv6 twin, in a lab with `--dual-stack`.
    pub net_v6: Ipv6Net,
}

/// The networks: the first is in every lab, the second with `--subnets 2`.
pub const SEGMENTS: [Segment; 2] = [segment("br0", 2), segment("br1", 3)];
/// The first network.
pub const UNDERLAY: Ipv4Net = SEGMENTS[0].net;
/// The first bridge's own address: default gateway of the nodes on it, and where the API server listens.
pub const GATEWAY: Ipv4Addr = SEGMENTS[0].gateway();
/// Both networks.
const UNDERLAYS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 25, 2, 0), 23);
/// The name of the machine outside the cluster.
pub const CLIENT_NAME: &str = "client";
/// What the network between the machines is called where a machine may be named.
pub const UNDERLAY_NAME: &str = "underlay";
/// The API server's port on the underlay.
pub const API_PORT: u16 = 6443;
/// The cluster's DNS domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Prefix length of the pod range of one node (kube-controller-manager's `--node-cidr-mask-size`).
pub const NODE_MASK: u8 = 24;
/// The pods' IPv6 addresses, in a lab with `--dual-stack`: the range that kind uses.
pub const POD_CIDR_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 56);
/// Prefix length of the IPv6 pod range of one node.
pub const NODE_MASK_V6: u8 = 64;
/// The Services' IPv6 addresses, in a lab with `--dual-stack`: the range that kind uses.
pub const SERVICE_CIDR_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);
/// Where DNS answers on every node alike, in a lab with `--node-local-dns` (NodeLocal DNSCache's usual address).
pub const NODE_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// As on a plain Ethernet; overlays subtract from it.
pub const MTU: u32 = 1500;

/// `node1` is 172.25.2.1; the last of them must stay below the client, .250.
const MAX_NODES: u16 = 249;
/// IPv6 needs 1280 bytes in a pod, and of what backends add, WireGuard's 80 are the most.
const MIN_MTU: u32 = 1360;
/// The most that a veth takes (ETH_MAX_MTU).
const MAX_MTU: u32 = 65535;
/// A name is part of a unix socket's path, which is at most 108 bytes long.
const MAX_NAME: usize = 32;

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// How many nodes.
    pub nodes: u16,
    /// Range of pod addresses; each node gets a /24 of it.
    pub pod_cidr: Ipv4Net,
    /// Range of Service addresses.
    pub service_cidr: Ipv4Net,
    /// Where names outside the cluster are resolved; nowhere when absent.
    pub upstream_dns: Option<IpAddr>,
    /// How pods of different nodes reach each other.
    pub backend: Backend,
    /// How many networks the nodes are on, 1 or 2.
    pub subnets: u8,
    /// Whether nodes, pods and Services have IPv6 addresses besides.
    pub dual_stack: bool,
    /// Whether cluster DNS runs on every node, besides its Deployment.
    pub node_local_dns: bool,
    /// The largest packet between nodes, in bytes.
    pub mtu: u32,
}

/// One machine of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// Its IPv6 address there, in a lab with `--dual-stack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<Ipv6Addr>,
}

const fn segment(bridge: &'static str, third: u8) -> Segment {
    let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x25, third as u16, 0, 0, 0, 0);
    let net = Ipv4Net::new_assert(Ipv4Addr::new(172, 25, third, 0), 24);
    Segment { bridge, net, net_v6: Ipv6Net::new_assert(v6, 64) }
}

impl Segment {
    /// The router's address: .254.
    pub const fn gateway(&self) -> Ipv4Addr {
        self.host(254)
    }

    /// The router's IPv6 address: ::254.
    pub const fn gateway_v6(&self) -> Ipv6Addr {
        self.host_v6(254)
    }

    /// The network's host number `number`.
    const fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.net.addr().octets();
        Ipv4Addr::new(a, b, c, number)
    }

    /// The IPv6 twin of [`Segment::host`]: its decimal digits are those of `number`, so that 172.25.2.250 is
    /// fd00:172:25:2::250.
    const fn host_v6(&self, number: u8) -> Ipv6Addr {
        let [a, b, c, d, ..] = self.net_v6.addr().segments();
        let number = number as u16;
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10)
    }
}

impl Machine {
    /// The network that the machine is on.
    pub fn segment(&self) -> &'static Segment {
        SEGMENTS.iter().find(|segment| segment.net.contains(&self.address)).unwrap_or(&SEGMENTS[0])
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(self.address.into()), self.address_v6.map(Into::into)].into_iter().flatten().collect()
    }
}

impl Options {
    /// The stock lab, as `podwire lab up` makes it, called `name`.
    pub fn stock(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 3,
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12),
            upstream_dns: None,
            backend: Backend::default(),
            subnets: 1,
            dual_stack: false,
            node_local_dns: false,
            mtu: MTU,
        }
    }

    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the flag and what is wrong with its value.
    pub fn validate(&self) -> Result<()> {
        check_name(&self.name)?;
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(Error::Invalid(format!("--nodes {}: expected 1 to {MAX_NODES}", self.nodes)));
        }
        let pods = ("--pod-cidr", self.pod_cidr);
        let services = ("--service-cidr", self.service_cidr);
        check_cidr(pods)?;
        check_cidr(services)?;
        check_disjoint(pods, services)?;
        let underlay = if self.subnets == 1 { UNDERLAY } else { UNDERLAYS };
        check_disjoint(pods, ("the nodes' network", underlay))?;
        check_disjoint(services, ("the nodes' network", underlay))?;
        if self.pod_cidr.prefix_len() > NODE_MASK || node_subnets(self.pod_cidr) < u32::from(self.nodes) {
            return Err(Error::Invalid(format!(
                "--pod-cidr {}: too small for {} nodes, each of which gets a /{NODE_MASK}",
                self.pod_cidr, self.nodes
            )));
        }
        if self.service_cidr.prefix_len() > 28 {
            return Err(Error::Invalid(format!(
                "--service-cidr {}: too small; a /28 is the smallest that holds cluster DNS (its tenth address)",
                self.service_cidr
            )));
        }
        self.validate_underlay()
    }

    fn validate_underlay(&self) -> Result<()> {
        if !(1..=2).contains(&self.subnets) {
            return Err(Error::Invalid(format!("--subnets {}: expected 1 or 2", self.subnets)));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(Error::Invalid(format!("--mtu {}: expected {MIN_MTU} to {MAX_MTU}", self.mtu)));
        }
        if self.backend == Backend::HostGw && self.segments().len() > 1 && self.nodes > 1 {
            return Err(Error::Invalid(
                "--backend host-gw: needs all nodes on one network, so not --subnets 2; --backend vxlan-direct routes \
                 where it can"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// The networks of this lab.
    pub fn segments(&self) -> &'static [Segment] {
        &SEGMENTS[..usize::from(self.subnets).clamp(1, SEGMENTS.len())]
    }

    /// The nodes, in order. With two networks odd nodes are on the first, even ones on the second.
    pub fn nodes(&self) -> Vec<Machine> {
        let machine = |number: u8| {
            let segments = self.segments();
            let segment = &segments[usize::from(number - 1) % segments.len()];
            self.machine(format!("node{number}"), segment, number)
        };
        (1..=u8::try_from(self.nodes).unwrap_or(u8::MAX)).map(machine).collect()
    }

    /// The machine outside the cluster, on the first network.
    pub fn client(&self) -> Machine {
        self.machine(CLIENT_NAME.to_owned(), &SEGMENTS[0], 250)
    }

    /// The nodes, then the client.
    pub fn machines(&self) -> Vec<Machine> {
        self.nodes().into_iter().chain([self.client()]).collect()
    }

    fn machine(&self, name: String, segment: &Segment, number: u8) -> Machine {
        Machine { name, address: segment.host(number), address_v6: self.dual_stack.then(|| segment.host_v6(number)) }
    }

    /// The pod ranges of the node `index`, from 0, IPv4 first: they are given out in the order of nodes.
    pub fn pod_ranges(&self, index: usize) -> Vec<IpNet> {
        let v4 = self.pod_cidr.subnets(NODE_MASK).ok().and_then(|mut all| all.nth(index)).map(IpNet::from);
        let v6 = POD_CIDR_V6.subnets(NODE_MASK_V6).ok().and_then(|mut all| all.nth(index)).map(IpNet::from);
        v4.into_iter().chain(v6.filter(|_| self.dual_stack)).collect()
    }

    /// The Service address of cluster DNS: the tenth of the range, as kubeadm picks it.
    pub fn cluster_dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 10)
    }
}

/// Checks that `name` can name a lab: a DNS label, and short.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = !name.is_empty() && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-');
    if is_label && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "--name {name:?}: expected at most {MAX_NAME} lower-case letters, digits and dashes, no dash at either end"
    )))
}

fn check_cidr((flag, cidr): (&str, Ipv4Net)) -> Result<()> {
    if cidr.network() != cidr.addr() {
        return Err(Error::Invalid(format!("{flag} {cidr}: has host bits set; did you mean {}?", cidr.trunc())));
    }
    let reserved = [
        ("loopback", Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        ("link-local", Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
        ("multicast and reserved", Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3)),
        ("\"this\" network", Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8)),
    ];
    match reserved.iter().find(|(_, range)| overlap(cidr, *range)) {
        Some((what, range)) => Err(Error::Invalid(format!("{flag} {cidr}: overlaps {what} addresses, {range}"))),
        None => Ok(()),
    }
}

fn check_disjoint((flag, cidr): (&str, Ipv4Net), (what, other): (&str, Ipv4Net)) -> Result<()> {
    if overlap(cidr, other) {
        return Err(Error::Invalid(format!("{flag} {cidr}: overlaps {what}, {other}")));
    }
    Ok(())
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn node_subnets(pods: Ipv4Net) -> u32 {
    1 << (NODE_MASK - pods.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::stock("demo")
    }

    fn refusal(change: impl FnOnce(&mut Options)) -> String {
        let mut options = options();
        change(&mut options);
        options.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_stock_lab_is_valid_and_has_the_addresses_of_the_seed() {
        let options = options();
        options.validate().unwrap();
        let nodes: Vec<_> = options.nodes().into_iter().map(|node| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(nodes, ["node1 172.25.2.1", "node2 172.25.2.2", "node3 172.25.2.3"]);
        assert_eq!(options.cluster_dns().to_string(), "10.96.0.10");
    }

    #[test]
    fn with_two_networks_nodes_take_turns() {
        let options = Options { subnets: 2, dual_stack: true, ..options() };
        options.validate().unwrap();
        let lines: Vec<_> = options
            .machines()
            .into_iter()
            .map(|machine| {
                let [v4, v6] = machine.addresses()[..] else { panic!("{machine:?}") };
                format!("{} {v4} {v6} by {}", machine.name, machine.segment().gateway_v6())
            })
            .collect();
        let expected = [
            "node1 172.25.2.1 fd00:172:25:2::1 by fd00:172:25:2::254",
            "node2 172.25.3.2 fd00:172:25:3::2 by fd00:172:25:3::254",
            "node3 172.25.2.3 fd00:172:25:2::3 by fd00:172:25:2::254",
            "client 172.25.2.250 fd00:172:25:2::250 by fd00:172:25:2::254",
        ];
        assert_eq!(lines, expected);
        let ranges: Vec<_> = options.pod_ranges(2).iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.244.2.0/24", "fd00:10:244:2::/64"]);
    }

    #[test]
    fn what_the_underlay_cannot_be_is_refused() {
        assert_eq!(refusal(|o| o.subnets = 3), "--subnets 3: expected 1 or 2");
        assert_eq!(refusal(|o| o.mtu = 1280), "--mtu 1280: expected 1360 to 65535");
        let host_gw = refusal(|o| (o.subnets, o.backend) = (2, Backend::HostGw));
        assert!(host_gw.contains("host-gw: needs all nodes on one network"), "{host_gw}");
        let pods = refusal(|o| (o.subnets, o.pod_cidr) = (2, "172.25.3.0/24".parse().unwrap()));
        assert_eq!(pods, "--pod-cidr 172.25.3.0/24: overlaps the nodes' network, 172.25.2.0/23");
    }

    #[test]
    fn ranges_that_meet_are_refused() {
        let pods = |cidr: &'static str| refusal(move |o| o.pod_cidr = cidr.parse().unwrap());
        assert_eq!(pods("172.25.0.0/16"), "--pod-cidr 172.25.0.0/16: overlaps the nodes' network, 172.25.2.0/24");
        assert_eq!(pods("172.25.2.0/24"), "--pod-cidr 172.25.2.0/24: overlaps the nodes' network, 172.25.2.0/24");
        assert_eq!(pods("10.100.0.0/16"), "--pod-cidr 10.100.0.0/16: overlaps --service-cidr, 10.96.0.0/12");
        assert_eq!(pods("127.0.0.0/16"), "--pod-cidr 127.0.0.0/16: overlaps loopback addresses, 127.0.0.0/8");
        assert_eq!(pods("10.244.1.1/16"), "--pod-cidr 10.244.1.1/16: has host bits set; did you mean 10.244.0.0/16?");
        assert_eq!(pods("10.244.0.0/23"), "--pod-cidr 10.244.0.0/23: too small for 3 nodes, each of which gets a /24");
        assert_eq!(pods("10.244.0.0/25"), "--pod-cidr 10.244.0.0/25: too small for 3 nodes, each of which gets a /24");
        let services = refusal(|o| o.service_cidr = "172.16.0.0/12".parse().unwrap());
        assert_eq!(services, "--service-cidr 172.16.0.0/12: overlaps the nodes' network, 172.25.2.0/24");
        assert!(refusal(|o| o.service_cidr = "10.96.0.0/29".parse().unwrap()).contains("too small"));
    }

    #[test]
    fn names_and_counts_out_of_range_are_refused() {
        for name in ["", "-a", "a-", "A", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(refusal(|o| o.name = name.to_owned()).starts_with("--name"), "{name:?}");
        }
        assert_eq!(refusal(|o| o.nodes = 0), "--nodes 0: expected 1 to 249");
        assert_eq!(refusal(|o| o.nodes = 250), "--nodes 250: expected 1 to 249");
        let mut largest = options();
        (largest.nodes, largest.pod_cidr) = (249, "10.240.0.0/12".parse().unwrap());
        largest.validate().unwrap();
        assert!(largest.nodes().last().unwrap().address < largest.client().address);
    }
}
