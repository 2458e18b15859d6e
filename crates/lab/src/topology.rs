//! What a lab consists of: names and addresses, checked before anything is made.

use std::net::{IpAddr, Ipv4Addr};

use podwire_model::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The network between the nodes: a bridge in a namespace of its own.
pub const UNDERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 25, 2, 0), 24);
/// The bridge's own address: default gateway of the nodes, and where the API server listens.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 25, 2, 254);
/// The machine outside the cluster.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 25, 2, 250);
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

/// `node1` is 172.25.2.1; the last of them must stay below [`CLIENT`].
const MAX_NODES: u16 = 249;
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
}

/// One machine of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
}

impl Options {
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
        check_disjoint(pods, ("the nodes' network", UNDERLAY))?;
        check_disjoint(services, ("the nodes' network", UNDERLAY))?;
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
        Ok(())
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> Vec<Machine> {
        let first = u32::from(UNDERLAY.addr());
        (1..=self.nodes)
            .map(|n| Machine { name: format!("node{n}"), address: Ipv4Addr::from(first + u32::from(n)) })
            .collect()
    }

    /// The Service address of cluster DNS: the tenth of the range, as kubeadm picks it.
    pub fn cluster_dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 10)
    }
}

/// The machine outside the cluster.
pub fn client() -> Machine {
    Machine { name: CLIENT_NAME.to_owned(), address: CLIENT }
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
        Options {
            name: "demo".into(),
            nodes: 3,
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            upstream_dns: None,
        }
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
        assert!(largest.nodes().last().unwrap().address < CLIENT);
    }
}
