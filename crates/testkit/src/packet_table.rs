//! What happens to a packet, as rows: the specification that every proxy mode is tested by.
//!
//! Executors: [`expected`] (this module's oracle: naive, written from the Kubernetes documentation, sharing no code
//! with the proxy), the tracer of each mode, and real packets in namespaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, IpNet, LoadBalancerIngress, Protocol, Service, ServiceType,
    TrafficPolicy,
};

use crate::build::{self, endpoint, ip, node_port_service, port, service, slice};

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Who sends it.
    pub from: IpAddr,
    /// Where to.
    pub to: SocketAddr,
    /// TCP or UDP.
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
    /// What becomes of it.
    pub outcome: Outcome,
}

/// Everything that decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// The node where the packet is looked at.
    pub node: &'static str,
    /// That node's own addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The pods' range.
    pub pods: IpNet,
    /// The Services.
    pub services: Vec<Service>,
    /// Their slices.
    pub slices: Vec<EndpointSlice>,
}

/// Pods of this node.
pub const POD_A: &str = "10.244.0.2";
/// The other pod of this node.
pub const POD_B: &str = "10.244.0.3";
/// A pod of another node.
pub const POD_C: &str = "10.244.1.2";
/// This node.
pub const NODE: &str = "172.25.2.1";
/// A machine that is neither a node nor a pod.
pub const OUTSIDE: &str = "172.25.2.250";

/// One Service for each policy.
pub fn world() -> World {
    let [a, b, c] = [format!("{POD_A}@node1"), format!("{POD_B}@node1"), format!("{POD_C}@node2")];
    let mut services = Vec::new();
    let mut slices = Vec::new();
    let mut add = |service: Service, endpoints: &[&str]| {
        let name = service.name.to_string();
        services.push(service);
        slices.push(slice(&name, 8080, endpoints));
    };
    add(service("plain", "10.96.0.10"), &[&a, &b, &c]);
    add(service("single", "10.96.0.11"), &[&c]);
    add(node_port_service("nodeport", "10.96.0.12", 30080), &[&a, &c]);
    add(service("none", "10.96.0.13"), &[]);
    let mut local = node_port_service("local", "10.96.0.14", 30081);
    local.external_policy = TrafficPolicy::Local;
    local.external_ips = vec![ip("192.0.2.14")];
    add(local, &[&b, &c]);
    let mut remote = node_port_service("remote", "10.96.0.15", 30082);
    remote.external_policy = TrafficPolicy::Local;
    add(remote, &[&c]);
    let mut inner = service("inner", "10.96.0.16");
    inner.internal_policy = TrafficPolicy::Local;
    add(inner, &[&a, &c]);
    let mut nowhere = service("nowhere", "10.96.0.17");
    nowhere.internal_policy = TrafficPolicy::Local;
    add(nowhere, &[&c]);
    let mut external = service("external", "10.96.0.18");
    external.external_ips = vec![ip("192.0.2.18")];
    add(external, &[&a, &c]);
    let mut sticky = service("sticky", "10.96.0.19");
    sticky.client_ip_affinity = Some(Duration::from_secs(10800));
    add(sticky, &[&c]);
    let mut balanced = node_port_service("balanced", "10.96.0.20", 30083);
    balanced.kind = ServiceType::LoadBalancer;
    balanced.load_balancer = vec![
        LoadBalancerIngress { ip: ip("192.0.2.20"), proxied: false },
        LoadBalancerIngress { ip: ip("192.0.2.21"), proxied: true },
    ];
    add(balanced, &[&c]);
    let mut dead = node_port_service("dead", "10.96.0.22", 30084);
    dead.external_policy = TrafficPolicy::Local;
    add(dead, &[]);

    let mut both = service("both", "10.96.0.21");
    both.ports = vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53)];
    let mut both_slice = slice("both", 0, &[&a, &c]);
    both_slice.ports = vec![
        EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: 8080 },
        EndpointPort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 8080 },
    ];
    services.push(both);
    slices.push(both_slice);

    services.push(service("draining", "10.96.0.23"));
    let mut draining = slice("draining", 8080, &[&a, &c]);
    draining.endpoints[0].ready = false;
    draining.endpoints[0].terminating = true;
    draining.endpoints[1] = Endpoint { ready: false, serving: false, ..endpoint(&c) };
    slices.push(draining);

    let node_addresses = vec![ip(NODE), ip("10.244.0.1")];
    World { node: "node1", node_addresses, pods: "10.244.0.0/16".parse().unwrap_or_default(), services, slices }
}

/// The rows, with outcomes written down by hand.
pub fn rows() -> Vec<Row> {
    use Protocol::{Tcp, Udp};
    let mut rows = Vec::new();
    let mut row = |name: &str, from: &str, to: &str, protocol, outcome| {
        let to = to.parse().unwrap_or_else(|error| panic!("{to:?}: {error}"));
        rows.push(Row { name: name.to_owned(), packet: Packet { from: ip(from), to, protocol }, outcome });
    };
    let direct = |to: &[&str]| sent(to, false);
    let masked = |to: &[&str]| sent(to, true);

    let hairpin = Outcome::Sent([(POD_A, true), (POD_B, false), (POD_C, false)].map(backend).into());
    row("pod to cluster IP; itself masqueraded", POD_A, "10.96.0.10:80", Tcp, hairpin);
    row("node to cluster IP", NODE, "10.96.0.10:80", Tcp, masked(&[POD_A, POD_B, POD_C]));
    row("outside to cluster IP", OUTSIDE, "10.96.0.10:80", Tcp, masked(&[POD_A, POD_B, POD_C]));
    row("one endpoint", POD_A, "10.96.0.11:80", Tcp, direct(&[POD_C]));
    row("a port that no Service has", POD_A, "10.96.0.10:81", Tcp, Outcome::Rejected);
    row("a protocol that no Service has", POD_A, "10.96.0.10:80", Udp, Outcome::Rejected);
    row("an address that no Service has", POD_A, "10.96.7.7:80", Tcp, Outcome::Untouched);
    row("no endpoints", POD_A, "10.96.0.13:80", Tcp, Outcome::Rejected);
    row("no endpoints, from the node", NODE, "10.96.0.13:80", Tcp, Outcome::Rejected);
    row("node port from outside", OUTSIDE, "172.25.2.1:30080", Tcp, masked(&[POD_A, POD_C]));
    row("node port from a pod", POD_B, "172.25.2.1:30080", Tcp, masked(&[POD_A, POD_C]));
    row("node port from the node", NODE, "172.25.2.1:30080", Tcp, masked(&[POD_A, POD_C]));
    row("node port on the node's other address", POD_B, "10.244.0.1:30080", Tcp, masked(&[POD_A, POD_C]));
    row("a node port of nobody", OUTSIDE, "172.25.2.1:30099", Tcp, Outcome::Untouched);
    row("a node port of the other protocol", OUTSIDE, "172.25.2.1:30080", Udp, Outcome::Untouched);
    row("Local keeps the source", OUTSIDE, "172.25.2.1:30081", Tcp, direct(&[POD_B]));
    row("Local, external IP", OUTSIDE, "192.0.2.14:80", Tcp, direct(&[POD_B]));
    row("Local, from a pod: all endpoints", POD_A, "172.25.2.1:30081", Tcp, direct(&[POD_B, POD_C]));
    row("Local, from the node: all endpoints", NODE, "172.25.2.1:30081", Tcp, masked(&[POD_B, POD_C]));
    row("Local does not touch the cluster IP", OUTSIDE, "10.96.0.14:80", Tcp, masked(&[POD_B, POD_C]));
    row("Local and none local", OUTSIDE, "172.25.2.1:30082", Tcp, Outcome::Dropped);
    row("Local and none local, from a pod", POD_A, "172.25.2.1:30082", Tcp, direct(&[POD_C]));
    row("Local and none at all", OUTSIDE, "172.25.2.1:30084", Tcp, Outcome::Rejected);
    row("internal Local", POD_B, "10.96.0.16:80", Tcp, direct(&[POD_A]));
    row("internal Local and none local", POD_B, "10.96.0.17:80", Tcp, Outcome::Dropped);
    row("external IP", OUTSIDE, "192.0.2.18:80", Tcp, masked(&[POD_A, POD_C]));
    row("load balancer address", OUTSIDE, "192.0.2.20:80", Tcp, masked(&[POD_C]));
    row("load balancer address with ipMode Proxy", OUTSIDE, "192.0.2.21:80", Tcp, Outcome::Untouched);
    row("session affinity", POD_A, "10.96.0.19:80", Tcp, direct(&[POD_C]));
    row("UDP", POD_B, "10.96.0.21:53", Udp, direct(&[POD_A, POD_C]));
    row("TCP on the same port", POD_B, "10.96.0.21:53", Tcp, direct(&[POD_A, POD_C]));
    row("UDP from the node", NODE, "10.96.0.21:53", Udp, masked(&[POD_A, POD_C]));
    row("only a terminating endpoint serves", POD_B, "10.96.0.23:80", Tcp, direct(&[POD_A]));
    row("pod to pod", POD_A, "10.244.1.2:8080", Tcp, Outcome::Untouched);
    rows
}

fn backend((address, masqueraded): (&str, bool)) -> (SocketAddr, bool) {
    (SocketAddr::new(ip(address), 8080), masqueraded)
}

fn sent(to: &[&str], masqueraded: bool) -> Outcome {
    Outcome::Sent(to.iter().map(|address| backend((address, masqueraded))).collect())
}

/// The oracle: what becomes of a packet in a world, by looking through all Services.
pub fn expected(world: &World, packet: &Packet) -> Outcome {
    let family = Family::of(&packet.to.ip());
    let from_node = world.node_addresses.contains(&packet.from);
    let from_pod = world.pods.contains(&packet.from) && !from_node;
    let at_node = world.node_addresses.contains(&packet.to.ip());
    let mut cluster_ip_seen = false;
    for service in world.services.iter().filter(|service| !service.headless) {
        let is_cluster_ip = service.cluster_ip(family) == Some(packet.to.ip());
        cluster_ip_seen |= is_cluster_ip;
        let balancer = service.load_balancer.iter().any(|ingress| !ingress.proxied && ingress.ip == packet.to.ip());
        let is_external = service.external_ips.contains(&packet.to.ip()) || balancer;
        for port in service.ports.iter().filter(|port| port.protocol == packet.protocol) {
            let at_address = (is_cluster_ip || is_external) && port.port == packet.to.port();
            let at_node_port = at_node && port.node_port == Some(packet.to.port());
            if !at_address && !at_node_port {
                continue;
            }
            let internal = is_cluster_ip && at_address;
            let external_local = service.external_policy == TrafficPolicy::Local;
            let (only_local, masquerade) = if internal {
                (service.internal_policy == TrafficPolicy::Local, !world.pods.contains(&packet.from))
            } else if external_local {
                (!from_pod && !from_node, from_node && !world.pods.contains(&packet.from))
            } else {
                (false, true)
            };
            return to_endpoints(world, service, (port.name.clone(), packet), (only_local, masquerade));
        }
    }
    if cluster_ip_seen { Outcome::Rejected } else { Outcome::Untouched }
}

fn to_endpoints(
    world: &World,
    service: &Service,
    (port, packet): (podwire_model::Name, &Packet),
    (only_local, masquerade): (bool, bool),
) -> Outcome {
    let slices = world.slices.iter().filter(|slice| slice.service_name() == service.name);
    let all: Vec<(SocketAddr, &Endpoint)> = slices
        .flat_map(|slice| {
            let ports = slice.ports.iter().filter(|p| p.name == port && p.protocol == packet.protocol);
            ports.flat_map(|p| slice.endpoints.iter().map(|e| (SocketAddr::new(e.address, p.port), e)))
        })
        .collect();
    let usable = |here: bool| {
        let here: Vec<_> = all.iter().filter(|(_, e)| !here || e.node.as_deref() == Some(world.node)).collect();
        let ready: Vec<_> = here.iter().filter(|(_, e)| e.ready).map(|(to, _)| *to).collect();
        let last: Vec<_> = here.iter().filter(|(_, e)| e.serving && e.terminating).map(|(to, _)| *to).collect();
        if ready.is_empty() { last } else { ready }
    };
    let chosen = usable(only_local);
    if chosen.is_empty() {
        return if usable(false).is_empty() { Outcome::Rejected } else { Outcome::Dropped };
    }
    Outcome::Sent(chosen.into_iter().map(|to| (to, masquerade || to.ip() == packet.from)).collect())
}

/// An empty world of the same node: for replays.
pub fn empty() -> World {
    World { services: Vec::new(), slices: Vec::new(), ..world() }
}

/// Every Service of `world`, one after the other, each scaled up and down on the way: states for a replay.
pub fn history() -> Vec<World> {
    let full = world();
    let mut states = Vec::new();
    let mut half = full.clone();
    half.services.truncate(full.services.len() / 2);
    states.push(half);
    let mut scaled = full.clone();
    for slice in &mut scaled.slices {
        slice.endpoints.push(build::endpoint("10.244.3.9@node3"));
        slice.endpoints.rotate_left(1);
    }
    states.push(scaled);
    let mut drained = full.clone();
    drained.slices.iter_mut().for_each(|slice| slice.endpoints.clear());
    states.push(drained);
    let mut policies = full.clone();
    for service in &mut policies.services {
        service.external_policy = TrafficPolicy::Local;
        service.client_ip_affinity = Some(Duration::from_secs(60));
    }
    states.push(policies);
    states.push(full);
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_agrees_with_what_was_written_by_hand() {
        let world = world();
        for row in rows() {
            assert_eq!(expected(&world, &row.packet), row.outcome, "{}", row.name);
        }
    }
}
