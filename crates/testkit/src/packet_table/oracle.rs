//! The oracle: what becomes of a packet in a world, found by looking through all Services.

use std::net::{IpAddr, SocketAddr};

use podwire_model::{
    Endpoint, Family, LoadBalancerIngress, Name, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

use super::{Abilities, HealthChecks, NodePorts, Outcome, Packet, Pods, World, interface};

/// What becomes of a packet in a mode with the default abilities.
pub fn expected(world: &World, packet: &Packet) -> Outcome {
    expected_by(world, packet, &Abilities::default())
}

/// What becomes of a packet in a mode with these abilities.
pub fn expected_by(world: &World, packet: &Packet, abilities: &Abilities) -> Outcome {
    let to = packet.to.ip();
    let family = Family::of(&to);
    let mut services: Vec<_> = world.services.iter().filter(|service| is_served(service)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    for service in services.iter().filter(|service| service.cluster_ip(family).is_some()) {
        for port in service.ports.iter().filter(|port| port.protocol == packet.protocol) {
            match at_port(world, (service, port), packet, abilities) {
                Some(Outcome::Sent(_)) if port.protocol == Protocol::Sctp && !abilities.sctp => {
                    return Outcome::Rejected;
                }
                Some(outcome) => return outcome,
                None => {}
            }
        }
    }
    let is_external = |service: &Service| {
        service.cluster_ip(family).is_some()
            && (service.external_ips.contains(&to) || load_balancers(service).any(|ingress| ingress.ip == to))
    };
    let owned = abilities.owns_addresses && services.iter().any(|service| is_external(service));
    if owned || services.iter().any(|service| service.cluster_ips.contains(&to)) {
        Outcome::Rejected
    } else if world.service_ranges.iter().any(|range| range.contains(&to)) {
        Outcome::Dropped
    } else {
        Outcome::Untouched
    }
}

/// What becomes of a packet at one port of a Service; `None` if it is not for it.
fn at_port(
    world: &World,
    (service, port): (&Service, &ServicePort),
    packet: &Packet,
    abilities: &Abilities,
) -> Option<Outcome> {
    let to = packet.to.ip();
    let here = packet.to.port() == port.port;
    if here && service.cluster_ip(Family::of(&to)) == Some(to) {
        return Some(enter(world, (service, port), packet, Door::ClusterIp, abilities));
    }
    let external = || enter(world, (service, port), packet, Door::External, abilities);
    if here && load_balancers(service).any(|ingress| ingress.ip == to) {
        return Some(if may_enter(world, service, packet) { external() } else { Outcome::Dropped });
    }
    let is_node_port = port.node_port == Some(packet.to.port());
    if here && service.external_ips.contains(&to) || is_node_port && answers(world, &to, abilities) {
        return Some(external());
    }
    let refused = is_node_port && to.is_loopback() && abilities.refuses_at_localhost && external() == Outcome::Rejected;
    refused.then_some(Outcome::Rejected)
}

/// What load balancers are told.
pub fn health_checks(world: &World) -> HealthChecks {
    let asked = world.services.iter().filter(|service| {
        is_served(service)
            && service.kind == ServiceType::LoadBalancer
            && service.external_policy == TrafficPolicy::Local
    });
    let count = |service: &Service, family| {
        let slices =
            world.slices.iter().filter(|s| s.service_name() == service.name && s.family == family && !s.headless);
        let ready = slices.flat_map(|s| &s.endpoints).filter(|e| e.ready && e.node.as_deref() == Some(world.node));
        ready.map(|endpoint| endpoint.address).collect::<std::collections::BTreeSet<_>>().len()
    };
    let check = |service: &Service| {
        let local = count(service, Family::V4).max(count(service, Family::V6));
        Some((service.health_check_node_port?, (service.name.clone(), local)))
    };
    asked.filter_map(check).collect()
}

fn is_served(service: &Service) -> bool {
    !service.headless && !service.other_proxy && !matches!(service.kind, ServiceType::ExternalName(_))
}

fn load_balancers(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let ingress = service.load_balancer.iter().filter(|ingress| !ingress.proxied);
    ingress.filter(|_| service.kind == ServiceType::LoadBalancer)
}

/// `loadBalancerSourceRanges` of the packet's family; the node's own traffic may also come from the address itself.
fn may_enter(world: &World, service: &Service, packet: &Packet) -> bool {
    let family = Family::of(&packet.from);
    let ranges: Vec<_> = service.source_ranges.iter().filter(|range| Family::of(&range.addr()) == family).collect();
    let allowed = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    ranges.is_empty()
        || allowed(&packet.from)
        || packet.from == packet.to.ip() && world.node_addresses.iter().any(allowed)
}

/// Whether the node answers at node ports of an address.
fn answers(world: &World, to: &IpAddr, abilities: &Abilities) -> bool {
    if to.is_loopback() {
        let able = if to.is_ipv4() { abilities.localhost_v4 } else { abilities.localhost_v6 };
        let allowed = match &world.node_ports {
            NodePorts::Everywhere => true,
            NodePorts::Primary => false,
            NodePorts::Ranges(ranges) => ranges.iter().any(|range| range.contains(to)),
        };
        return able && allowed && world.localhost_node_ports;
    }
    let mut of_family = world.node_addresses.iter().filter(|address| Family::of(address) == Family::of(to));
    match &world.node_ports {
        NodePorts::Everywhere => of_family.any(|address| address == to),
        NodePorts::Primary => of_family.next() == Some(to),
        NodePorts::Ranges(ranges) => {
            of_family.any(|address| address == to) && ranges.iter().any(|range| range.contains(to))
        }
    }
}

/// Where a packet enters a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    ClusterIp,
    External,
}

/// Whether `from` looks like a pod to this node; `None` if nobody can tell.
fn looks_like_a_pod(world: &World, from: &IpAddr) -> Option<bool> {
    match &world.pods {
        Pods::Unknown => None,
        Pods::Ranges(ranges) => Some(ranges.iter().any(|range| range.contains(from))),
        Pods::Interface(name) => Some(interface(from) == *name),
        Pods::InterfacePrefix(prefix) => Some(interface(from).starts_with(prefix)),
    }
}

fn enter(
    world: &World,
    (service, port): (&Service, &ServicePort),
    packet: &Packet,
    door: Door,
    abilities: &Abilities,
) -> Outcome {
    let from_node = packet.from.is_loopback() || world.node_addresses.contains(&packet.from);
    let pod = looks_like_a_pod(world, &packet.from);
    let (policy, masquerade) = match door {
        Door::ClusterIp => (service.internal_policy, world.masquerade_all || pod == Some(false)),
        Door::External if service.external_policy == TrafficPolicy::Cluster => (TrafficPolicy::Cluster, true),
        // What comes from inside takes the short way, to all endpoints.
        Door::External if from_node => (TrafficPolicy::Cluster, pod == Some(false)),
        Door::External if pod == Some(true) => (TrafficPolicy::Cluster, false),
        Door::External => (TrafficPolicy::Local, false),
    };
    let endpoints = endpoints(world, service, port, Family::of(&packet.to.ip()));
    let chosen = match policy {
        TrafficPolicy::Cluster => for_cluster(world, &endpoints),
        TrafficPolicy::Local => for_local(world, &endpoints),
    };
    if chosen.is_empty() {
        return if for_cluster(world, &endpoints).is_empty() { Outcome::Rejected } else { Outcome::Dropped };
    }
    let masked = |to: SocketAddr| masquerade || to.ip() == packet.from || !abilities.keeps_sources;
    Outcome::Sent(chosen.into_iter().map(|to| (to, masked(to))).collect())
}

type Endpoints<'a> = Vec<(SocketAddr, &'a Endpoint)>;

fn endpoints<'a>(world: &'a World, service: &Service, port: &ServicePort, family: Family) -> Endpoints<'a> {
    let slices = world.slices.iter().filter(|slice| slice.service_name() == service.name && !slice.headless);
    let slices = slices.filter(|slice| slice.family == family);
    let all = slices.flat_map(|slice| {
        let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol && p.port != 0);
        ports.flat_map(|p| slice.endpoints.iter().map(|e| (SocketAddr::new(e.address, p.port), e)))
    });
    all.filter(|(to, _)| Family::of(&to.ip()) == family).collect()
}

/// Ready ones, near ones preferred; else those that serve while they terminate.
fn for_cluster(world: &World, all: &Endpoints) -> Vec<SocketAddr> {
    let ready: Endpoints = all.iter().filter(|(_, endpoint)| endpoint.ready).copied().collect();
    if ready.is_empty() {
        return last_resort(all);
    }
    let node: &[Name] = &[world.node.into()];
    let zone: &[Name] = &world.zone.map(Name::from).into_iter().collect::<Vec<_>>();
    for (hints, mine) in [(node_hints as fn(&Endpoint) -> &[Name], node), (zone_hints, zone)] {
        let near: Endpoints =
            ready.iter().filter(|(_, e)| hints(e).iter().any(|hint| mine.contains(hint))).copied().collect();
        if ready.iter().all(|(_, endpoint)| !hints(endpoint).is_empty()) && !near.is_empty() {
            return addresses(&near);
        }
    }
    addresses(&ready)
}

/// Those of this node: ready ones, else those that serve while they terminate.
fn for_local(world: &World, all: &Endpoints) -> Vec<SocketAddr> {
    let here: Endpoints = all.iter().filter(|(_, e)| e.node.as_deref() == Some(world.node)).copied().collect();
    let ready: Endpoints = here.iter().filter(|(_, endpoint)| endpoint.ready).copied().collect();
    if ready.is_empty() { last_resort(&here) } else { addresses(&ready) }
}

fn last_resort(all: &Endpoints) -> Vec<SocketAddr> {
    addresses(&all.iter().filter(|(_, e)| e.serving && e.terminating).copied().collect())
}

fn addresses(endpoints: &Endpoints) -> Vec<SocketAddr> {
    endpoints.iter().map(|(to, _)| *to).collect()
}

fn node_hints(endpoint: &Endpoint) -> &[Name] {
    &endpoint.hint_nodes
}

fn zone_hints(endpoint: &Endpoint) -> &[Name] {
    &endpoint.hint_zones
}
