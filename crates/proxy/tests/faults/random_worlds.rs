//! Random worlds and the events that lead from one to another. Names, addresses and ports are few, so that Services
//! meet: they collide, take each other's addresses, and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, ObjectName, Protocol, Service, ServiceType,
    TrafficPolicy,
};
use podwire_testkit::{
    build::{self, endpoint, ip, name},
    packet_table::{self, NODE, OUTSIDE, POD_A, POD_B, POD_C, Packet, World},
    random::Random,
};

const NAMES: &[&str] = &["a", "b", "c", "d", "other/e", "other/f"];
const CLUSTER_IPS: &[&str] = &["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6"];
const EXTERNAL_IPS: &[&str] = &["192.0.2.1", "192.0.2.2", "192.0.2.3"];
const NODE_PORTS: &[u16] = &[30080, 30081, 30082];
const ENDPOINTS: &[&str] = &[
    "10.244.0.2@node1",
    "10.244.0.3@node1",
    "10.244.1.2@node2",
    "10.244.1.3@node2",
    "10.244.2.2@node3",
    "10.244.2.3@node3",
    "10.244.3.2",
];
/// Names and ports of Services. The endpoint's ports are other ones: see [`target`].
const PORTS: &[(&str, Protocol, u16)] = &[
    ("web", Protocol::Tcp, 80),
    ("dns", Protocol::Udp, 53),
    ("dns-tcp", Protocol::Tcp, 53),
    ("sctp", Protocol::Sctp, 132),
];

/// One thing that happens to a proxy.
#[derive(Debug, Clone)]
pub enum Event {
    /// A Service came or changed.
    Service(Box<Service>),
    /// A Service went.
    ServiceGone(ObjectName),
    /// A slice came or changed.
    Slice(Box<EndpointSlice>),
    /// A slice went.
    SliceGone(ObjectName),
    /// The event in it was lost: the watch broke.
    Lost(Box<Event>),
    /// The watch is back with complete lists.
    Listed,
    /// What is known is applied.
    Apply,
    /// What is unused is removed.
    Tidy,
    /// The proxy ends and another one starts.
    Restart,
}

/// The current objects, sorted by name.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub services: BTreeMap<ObjectName, Service>,
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
}

impl Objects {
    /// What an event does to them.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Service(service) => drop(self.services.insert(service.name.clone(), (**service).clone())),
            Event::ServiceGone(name) => drop(self.services.remove(name)),
            Event::Slice(slice) => drop(self.slices.insert(slice.name.clone(), (**slice).clone())),
            Event::SliceGone(name) => drop(self.slices.remove(name)),
            Event::Lost(event) => self.take(event),
            Event::Listed | Event::Apply | Event::Tidy | Event::Restart => {}
        }
    }

    /// For the oracle, which looks at Services in order: the first by name wins.
    pub fn world(&self) -> World {
        World {
            services: self.services.values().filter(|service| !service.other_proxy).cloned().collect(),
            slices: self.slices.values().cloned().collect(),
            ..packet_table::empty()
        }
    }
}

/// A sequence of up to `length` events.
pub fn events(random: &mut Random, length: usize) -> Vec<Event> {
    let length = 1 + random.below(length);
    (0..length).map(|_| event(random)).collect()
}

fn event(random: &mut Random) -> Event {
    match random.below(20) {
        0..5 => Event::Service(Box::new(service(random))),
        5..7 => Event::ServiceGone(name(random.pick(NAMES))),
        7..12 => Event::Slice(Box::new(slice(random))),
        12..14 => Event::SliceGone(slice_name(random)),
        14 => Event::Lost(Box::new(event(random))),
        15 => Event::Listed,
        16..18 => Event::Apply,
        18 => Event::Tidy,
        _ => Event::Restart,
    }
}

fn service(random: &mut Random) -> Service {
    let mut service = build::service(random.pick(NAMES), random.pick(CLUSTER_IPS));
    service.ports =
        random.some(PORTS).into_iter().map(|(name, protocol, number)| build::port(name, protocol, number)).collect();
    match random.below(8) {
        0 => (service.headless, service.cluster_ips) = (true, Vec::new()),
        1 => service.other_proxy = true,
        2..4 => service.kind = ServiceType::NodePort,
        4..6 => service.kind = ServiceType::LoadBalancer,
        _ => {}
    }
    if matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer) {
        for port in &mut service.ports {
            port.node_port = Some(random.pick(NODE_PORTS));
        }
        // The API server gives a node port to one port of a protocol only.
        let mut given = BTreeSet::new();
        service.ports.retain(|port| given.insert((port.node_port, port.protocol)));
    }
    if service.kind == ServiceType::LoadBalancer {
        let ingress = |address: &&str| LoadBalancerIngress { ip: ip(address), proxied: random.one_in(4) };
        service.load_balancer = EXTERNAL_IPS[..2].iter().map(ingress).collect();
    }
    if random.one_in(3) {
        service.external_ips = random.some(EXTERNAL_IPS).into_iter().map(ip).collect();
    }
    if random.one_in(3) {
        service.internal_policy = TrafficPolicy::Local;
    }
    if random.one_in(3) {
        service.external_policy = TrafficPolicy::Local;
    }
    if random.one_in(4) {
        service.client_ip_affinity = Some(Duration::from_secs(random.pick(&[60, 10800])));
    }
    service
}

fn slice_name(random: &mut Random) -> ObjectName {
    let service = name(random.pick(NAMES));
    ObjectName::new(service.namespace, format!("{}-{}", service.name, 1 + random.below(2)))
}

fn slice(random: &mut Random) -> EndpointSlice {
    let name = slice_name(random);
    // Mostly of the Service that its name says; some change hands.
    let service = if random.one_in(10) { build::name(random.pick(NAMES)).name } else { name.name[..1].into() };
    let ports = random.some(PORTS).into_iter();
    EndpointSlice {
        name,
        service,
        family: Family::V4,
        headless: false,
        ports: ports.map(|port| target(random, port)).collect(),
        endpoints: random.some(ENDPOINTS).into_iter().map(|text| random_endpoint(random, text)).collect(),
    }
}

fn target(random: &mut Random, (name, protocol, _): (&str, Protocol, u16)) -> EndpointPort {
    EndpointPort { name: name.into(), protocol, port: random.pick(&[8080, 8081]) }
}

fn random_endpoint(random: &mut Random, text: &str) -> Endpoint {
    let (ready, serving, terminating) = random.pick(&[
        (true, true, false),
        (true, true, false),
        (true, true, false),
        (false, false, false),
        (false, true, true),
        (false, false, true),
    ]);
    Endpoint { ready, serving, terminating, ..endpoint(text) }
}

/// Some packets that could be anyone's business.
pub fn packets(random: &mut Random, count: usize) -> Vec<Packet> {
    let addresses: Vec<&str> = [CLUSTER_IPS, EXTERNAL_IPS].concat();
    let packet = |_| {
        let from = ip(random.pick(&[POD_A, POD_B, NODE, OUTSIDE]));
        let (_, protocol, port) = random.pick(PORTS);
        let to: SocketAddr = match random.below(4) {
            0 => (ip(random.pick(&[NODE, "10.244.0.1"])), random.pick(NODE_PORTS)).into(),
            1 => (ip(POD_C), 8080).into(),
            _ => (ip(random.pick(&addresses)), port).into(),
        };
        Packet { from, to, protocol }
    };
    (0..count).map(packet).collect()
}
