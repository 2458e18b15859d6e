//! One Service for each policy, and what becomes of packets to it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, LoadBalancerIngress, Name, ObjectName, Protocol, Service,
    ServiceType, TrafficPolicy,
};

use super::{FAMILIES, NODE, NODE_INNER, OUTSIDE, Outcome, POD_A, POD_B, POD_C, Packet, Row, World, address, empty};
use crate::build::{endpoint, node_port_service, port, service};

/// Every protocol, with the names of their ports in these worlds.
pub const PROTOCOLS: [(Protocol, &str); 3] =
    [(Protocol::Tcp, "web-tcp"), (Protocol::Udp, "web-udp"), (Protocol::Sctp, "web-sctp")];

/// Where pods listen.
pub const TARGET: u16 = 8080;
/// Where they listen as well.
pub const OTHER_TARGET: u16 = 8081;

/// Adds Services to a world: each in both families and with all protocols at port 80 and at its node port.
pub struct Builder {
    /// What was built.
    pub world: World,
}

impl Builder {
    /// A Service with its endpoints, given as IPv4 ones; `edit` changes them. Every address that it has gets its
    /// counterpart of the other family.
    pub fn add(&mut self, service: Service, endpoints: &[&str], edit: impl Fn(&mut [Endpoint])) {
        self.add_slice(&service.name, "1", endpoints, edit);
        self.add_service(service);
    }

    /// The Service alone.
    pub fn add_service(&mut self, mut service: Service) {
        let both = |address: std::net::IpAddr| FAMILIES.map(|f| super::address(&address.to_string(), f));
        service.cluster_ips = service.cluster_ips.into_iter().flat_map(both).collect();
        service.external_ips = service.external_ips.into_iter().flat_map(both).collect();
        let ingress = service.load_balancer.into_iter();
        service.load_balancer =
            ingress.flat_map(|i| both(i.ip).map(|ip| LoadBalancerIngress { ip, proxied: i.proxied })).collect();
        if let [only] = service.ports.clone().as_slice() {
            let named = |(protocol, name): (Protocol, &str)| {
                let mut each = port(name, protocol, only.port);
                each.node_port = only.node_port;
                each
            };
            service.ports = PROTOCOLS.map(named).into();
        }
        self.world.services.push(service);
    }

    /// One more pair of slices for a Service, named after it and `suffix`.
    pub fn add_slice(
        &mut self,
        service: &ObjectName,
        suffix: &str,
        endpoints: &[&str],
        edit: impl Fn(&mut [Endpoint]),
    ) {
        for family in FAMILIES {
            let in_family = |text: &&str| {
                let mut built = endpoint(text);
                built.address = address(&built.address.to_string(), family);
                built
            };
            let mut endpoints: Vec<_> = endpoints.iter().map(in_family).collect();
            edit(&mut endpoints);
            let ports = PROTOCOLS.map(|(protocol, name)| EndpointPort { name: name.into(), protocol, port: TARGET });
            self.world.slices.push(EndpointSlice {
                name: ObjectName::new(service.namespace.clone(), format!("{}-{suffix}-{family:?}", service.name)),
                service: service.name.clone(),
                family,
                headless: false,
                ports: ports.into(),
                endpoints,
            });
        }
    }

    /// The two slices that were added last.
    pub fn last_slices(&mut self) -> &mut [EndpointSlice] {
        let first = self.world.slices.len().saturating_sub(2);
        &mut self.world.slices[first..]
    }
}

/// A LoadBalancer Service without a node port.
pub fn load_balancer(name: &str, cluster_ip: &str, address: &str) -> Service {
    let mut balanced = service(name, cluster_ip);
    balanced.kind = ServiceType::LoadBalancer;
    balanced.load_balancer = vec![LoadBalancerIngress { ip: crate::build::ip(address), proxied: false }];
    balanced
}

/// `service` with other policies: external, then internal.
pub fn with_policies(mut service: Service, external: TrafficPolicy, internal: TrafficPolicy) -> Service {
    service.external_policy = external;
    service.internal_policy = internal;
    service
}

const A: &str = "10.244.0.2@node1";
const B: &str = "10.244.0.3@node1";
const C: &str = "10.244.1.2@node2";

/// One Service for each policy.
pub fn world() -> World {
    let mut builder = Builder { world: empty() };
    add_policies(&mut builder);
    add_external(&mut builder);
    add_selection(&mut builder);
    add_shapes(&mut builder);
    builder.world
}

fn add_policies(builder: &mut Builder) {
    use TrafficPolicy::{Cluster, Local};
    let as_they_are = |_: &mut [Endpoint]| {};
    let mut add = |service: Service, endpoints: &[&str]| builder.add(service, endpoints, as_they_are);
    add(service("plain", "10.96.0.10"), &[A, B, C]);
    add(service("single", "10.96.0.11"), &[C]);
    add(node_port_service("nodeport", "10.96.0.12", 30080), &[A, C]);
    add(with_policies(node_port_service("local", "10.96.0.14", 30081), Local, Cluster), &[B, C]);
    add(with_policies(node_port_service("remote", "10.96.0.15", 30082), Local, Cluster), &[C]);
    add(with_policies(node_port_service("inner", "10.96.0.16", 30086), Cluster, Local), &[A, C]);
    add(with_policies(service("nowhere", "10.96.0.17"), Cluster, Local), &[C]);
    add(with_policies(node_port_service("dead", "10.96.0.22", 30084), Local, Local), &[]);
    let mut sticky = service("sticky", "10.96.0.19");
    sticky.client_ip_affinity = Some(Duration::from_secs(10_800));
    add(sticky, &[C]);
    add(with_policies(node_port_service("unplaced", "10.96.0.40", 30088), Local, Cluster), &["10.244.0.3"]);
    // What has no endpoints needs no slice.
    let mut none = node_port_service("none", "10.96.0.13", 30085);
    none.external_ips = vec![crate::build::ip("192.0.2.13")];
    builder.add_service(none);
}

fn add_external(builder: &mut Builder) {
    use TrafficPolicy::{Cluster, Local};
    let as_they_are = |_: &mut [Endpoint]| {};
    let at = crate::build::ip;
    let mut external = service("external", "10.96.0.18");
    external.external_ips = vec![at("192.0.2.18")];
    builder.add(external, &[A, C], as_they_are);
    let mut local = with_policies(service("external-local", "10.96.0.24"), Local, Cluster);
    local.external_ips = vec![at("192.0.2.14")];
    builder.add(local, &[B, C], as_they_are);
    let mut balanced = load_balancer("balanced", "10.96.0.20", "192.0.2.20");
    balanced.ports[0].node_port = Some(30083);
    balanced.load_balancer.push(LoadBalancerIngress { ip: at("192.0.2.21"), proxied: true });
    builder.add(balanced, &[C], as_they_are);
    builder.add(load_balancer("portless", "10.96.0.25", "192.0.2.25"), &[C], as_they_are);
    let mut asked = with_policies(load_balancer("asked", "10.96.0.26", "192.0.2.26"), Local, Cluster);
    asked.health_check_node_port = Some(30190);
    builder.add(asked, &[A, B, C], |endpoints| {
        endpoints[1] = Endpoint { ready: false, terminating: true, ..endpoints[1].clone() };
    });
    let mut in_vain = with_policies(load_balancer("asked-in-vain", "10.96.0.27", "192.0.2.27"), Local, Cluster);
    in_vain.health_check_node_port = Some(30191);
    builder.add(in_vain, &[A, C], |endpoints| {
        endpoints[0] = Endpoint { ready: false, terminating: true, ..endpoints[0].clone() };
    });
    // Not of type LoadBalancer any more, with an address that nobody has taken back yet.
    let mut former = load_balancer("former", "10.96.0.28", "192.0.2.28");
    former.kind = ServiceType::ClusterIp;
    builder.add(former, &[C], as_they_are);
}

fn add_selection(builder: &mut Builder) {
    use TrafficPolicy::{Cluster, Local};
    builder.add(service("draining", "10.96.0.23"), &[A, C], |endpoints| {
        terminate(&mut endpoints[0]);
        endpoints[1].ready = false;
        endpoints[1].serving = false;
    });
    // For Cluster there is a ready one; on this node there is none.
    let separate = with_policies(node_port_service("separate", "10.96.0.30", 30087), Local, Local);
    builder.add(separate, &[A, C], |endpoints| terminate(&mut endpoints[0]));
    builder.add(service("unready", "10.96.0.31"), &[A, C], |endpoints| endpoints[0].ready = false);
    let names = |names: &[&str]| names.iter().map(|name| Name::from(*name)).collect::<Vec<_>>();
    let zones = |a: &'static [&'static str], c: &'static [&'static str]| {
        move |endpoints: &mut [Endpoint]| {
            (endpoints[0].hint_zones, endpoints[1].hint_zones) = (names(a), names(c));
        }
    };
    builder.add(service("same-zone", "10.96.0.32"), &[A, C], zones(&["zone-a"], &["zone-b"]));
    builder.add(service("half-hinted", "10.96.0.33"), &[A, C], zones(&["zone-a"], &[]));
    builder.add(service("other-zones", "10.96.0.34"), &[A, C], zones(&["zone-b"], &["zone-b", "zone-c"]));
    builder.add(service("same-node", "10.96.0.35"), &[A, C], |endpoints| {
        (endpoints[0].hint_nodes, endpoints[1].hint_nodes) = (names(&["node1"]), names(&["node2"]));
        (endpoints[0].hint_zones, endpoints[1].hint_zones) = (names(&["zone-a"]), names(&["zone-a"]));
    });
    builder.add(service("zone-then", "10.96.0.36"), &[A, C], |endpoints| {
        (endpoints[0].hint_nodes, endpoints[1].hint_nodes) = (names(&["node3"]), names(&["node2"]));
        (endpoints[0].hint_zones, endpoints[1].hint_zones) = (names(&["zone-b"]), names(&["zone-a"]));
    });
    // Unready ones need no hints, and Local policies ask for none.
    let hinted = with_policies(node_port_service("hinted-local", "10.96.0.37", 30089), Local, Cluster);
    builder.add(hinted, &[A, B, C], |endpoints| {
        endpoints[0].hint_zones = names(&["zone-b"]);
        endpoints[1].ready = false;
        endpoints[2].hint_zones = names(&["zone-a"]);
    });
}

fn terminate(endpoint: &mut Endpoint) {
    endpoint.ready = false;
    endpoint.terminating = true;
}

fn add_shapes(builder: &mut Builder) {
    let as_they_are = |_: &mut [Endpoint]| {};
    // `both` has the same port with two protocols and two targets, and no SCTP.
    let mut both = service("both", "10.96.0.21");
    both.ports = vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53)];
    builder.add(both, &[A, C], as_they_are);
    for slice in builder.last_slices() {
        slice.ports = vec![
            EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: TARGET },
            EndpointPort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: OTHER_TARGET },
        ];
    }
    // A named target port means another number in another pod: a slice for each number.
    let named = service("named", "10.96.0.41");
    builder.add_slice(&named.name, "2", &[C], as_they_are);
    for slice in builder.last_slices() {
        slice.ports.iter_mut().for_each(|port| port.port = OTHER_TARGET);
    }
    builder.add(named, &[A], as_they_are);
    // An endpoint on its way from one slice to another is in both.
    let several = service("several", "10.96.0.42");
    builder.add_slice(&several.name, "2", &[A, C], |endpoints| endpoints[0].ready = false);
    builder.add(several, &[A, B], as_they_are);
    // Somebody else's.
    let mut other = node_port_service("other-proxy", "10.96.0.43", 30091);
    other.other_proxy = true;
    builder.add(other, &[A], as_they_are);
    let labelled = service("labelled", "10.96.0.44");
    builder.add_slice(&labelled.name, "2", &[C], as_they_are);
    builder.last_slices().iter_mut().for_each(|slice| slice.headless = true);
    builder.add(labelled, &[A], as_they_are);
    let mut headless = service("headless", "10.96.0.45");
    headless.headless = true;
    headless.cluster_ips.clear();
    builder.add(headless, &[A], as_they_are);
}

/// Rows of one table.
#[derive(Default)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// The same row in every family and protocol. Addresses are IPv4 ones; endpoints are named by address and port.
    pub fn add(&mut self, name: &str, from: &str, to: &str, sent: &Sent) {
        for (protocol, _) in PROTOCOLS {
            self.add_for(protocol, name, (from, to), sent);
        }
    }

    /// The same row in every family.
    pub fn add_for(&mut self, protocol: Protocol, name: &str, (from, to): (&str, &str), sent: &Sent) {
        for family in FAMILIES {
            self.add_one((family, protocol), name, (from, to), sent);
        }
    }

    /// One row.
    pub fn add_one(&mut self, of: (Family, Protocol), name: &str, (from, to): (&str, &str), sent: &Sent) {
        let (family, protocol) = of;
        let socket = |text: &str, default: u16| match text.split_once(':') {
            Some((ip, port)) => SocketAddr::new(address(ip, family), port.parse().unwrap_or(default)),
            None => SocketAddr::new(address(text, family), default),
        };
        let outcome = match sent {
            Sent::To(endpoints) => {
                Outcome::Sent(endpoints.iter().map(|(to, masked)| (socket(to, TARGET), *masked)).collect())
            }
            Sent::Not(outcome) => outcome.clone(),
        };
        let family_name = if family == Family::V4 { "IPv4" } else { "IPv6" };
        self.0.push(Row {
            name: format!("{name} ({family_name} {protocol})"),
            packet: Packet { from: address(from, family), to: socket(to, 80), protocol },
            outcome,
        });
    }
}

/// An outcome before it is spelt in a family.
pub enum Sent {
    /// To endpoints; with each whether it is masqueraded.
    To(BTreeSet<(&'static str, bool)>),
    /// Nowhere.
    Not(Outcome),
}

/// To endpoints that see the client.
pub fn direct(to: &[&'static str]) -> Sent {
    Sent::To(to.iter().map(|to| (*to, false)).collect())
}

/// To endpoints that see the node.
pub fn masked(to: &[&'static str]) -> Sent {
    Sent::To(to.iter().map(|to| (*to, true)).collect())
}

/// Left alone.
pub const UNTOUCHED: Sent = Sent::Not(Outcome::Untouched);
/// Refused.
pub const REJECTED: Sent = Sent::Not(Outcome::Rejected);
/// Dropped.
pub const DROPPED: Sent = Sent::Not(Outcome::Dropped);

/// The rows of [`world`], with outcomes written down by hand.
pub fn rows() -> Vec<Row> {
    let mut rows = Rows::default();
    cluster_ip_rows(&mut rows);
    node_port_rows(&mut rows);
    external_rows(&mut rows);
    selection_rows(&mut rows);
    shape_rows(&mut rows);
    rows.0
}

fn cluster_ip_rows(rows: &mut Rows) {
    let hairpin = Sent::To([(POD_A, true), (POD_B, false), (POD_C, false)].into());
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("pod to cluster IP; itself masqueraded", POD_A, "10.96.0.10", hairpin);
    row("node to cluster IP", NODE, "10.96.0.10", masked(&[POD_A, POD_B, POD_C]));
    row("outside to cluster IP", OUTSIDE, "10.96.0.10", masked(&[POD_A, POD_B, POD_C]));
    row("one endpoint", POD_A, "10.96.0.11", direct(&[POD_C]));
    row("a port that no Service has", POD_A, "10.96.0.10:81", REJECTED);
    row("a port that no Service has, from outside", OUTSIDE, "10.96.0.10:81", REJECTED);
    row("a node port at a cluster IP", POD_A, "10.96.0.12:30080", REJECTED);
    row("an address that no Service has", POD_A, "10.96.7.7", UNTOUCHED);
    row("no endpoints", POD_A, "10.96.0.13", REJECTED);
    row("no endpoints, from the node", NODE, "10.96.0.13", REJECTED);
    row("no endpoints, from outside", OUTSIDE, "10.96.0.13", REJECTED);
    row("internal Local", POD_B, "10.96.0.16", direct(&[POD_A]));
    row("internal Local, from the node", NODE, "10.96.0.16", masked(&[POD_A]));
    row("internal Local, from outside", OUTSIDE, "10.96.0.16", masked(&[POD_A]));
    row("internal Local and none local", POD_B, "10.96.0.17", DROPPED);
    row("internal Local and none local, from the node", NODE, "10.96.0.17", DROPPED);
    row("internal Local and none at all", POD_B, "10.96.0.22", REJECTED);
    row("external Local does not touch the cluster IP", OUTSIDE, "10.96.0.14", masked(&[POD_B, POD_C]));
    row("session affinity", POD_A, "10.96.0.19", direct(&[POD_C]));
    row("pod to pod", POD_A, "10.244.1.2:8080", UNTOUCHED);
}

fn node_port_rows(rows: &mut Rows) {
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("node port from outside", OUTSIDE, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("node port from a pod", POD_B, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("node port from the node", NODE, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("node port on the node's other address", POD_B, "10.244.0.1:30080", masked(&[POD_A, POD_C]));
    row("node port at the loopback address", "127.0.0.1", "127.0.0.1:30080", UNTOUCHED);
    row("a node port of nobody", OUTSIDE, "172.25.2.1:30099", UNTOUCHED);
    row("a node port of another machine", POD_A, "172.25.2.250:30080", UNTOUCHED);
    row("node port without endpoints", OUTSIDE, "172.25.2.1:30085", REJECTED);
    row("node port without endpoints, from the node", NODE, "172.25.2.1:30085", REJECTED);
    row("Local keeps the source", OUTSIDE, "172.25.2.1:30081", direct(&[POD_B]));
    row("Local, from a pod: all endpoints", POD_A, "172.25.2.1:30081", direct(&[POD_B, POD_C]));
    row("Local, from a pod to itself", POD_B, "172.25.2.1:30081", Sent::To([(POD_B, true), (POD_C, false)].into()));
    let itself = Sent::To([(POD_B, false), (POD_C, true)].into());
    row("Local, from a pod of another node to itself", POD_C, "172.25.2.1:30081", itself);
    row("Local, from the node: all endpoints", NODE, "172.25.2.1:30081", masked(&[POD_B, POD_C]));
    row("Local and none local", OUTSIDE, "172.25.2.1:30082", DROPPED);
    row("Local and none local, from a pod", POD_A, "172.25.2.1:30082", direct(&[POD_C]));
    row("Local and none local, from the node", NODE, "172.25.2.1:30082", masked(&[POD_C]));
    row("Local and none at all", OUTSIDE, "172.25.2.1:30084", REJECTED);
    row("internal Local does not touch the node port", OUTSIDE, "172.25.2.1:30086", masked(&[POD_A, POD_C]));
    row("Local and an endpoint that does not say where it is", OUTSIDE, "172.25.2.1:30088", DROPPED);
    row("an endpoint that does not say where it is", POD_A, "10.96.0.40", direct(&[POD_B]));
}

fn external_rows(rows: &mut Rows) {
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("external IP", OUTSIDE, "192.0.2.18", masked(&[POD_A, POD_C]));
    row("external IP from a pod", POD_B, "192.0.2.18", masked(&[POD_A, POD_C]));
    row("external IP from the node", NODE, "192.0.2.18", masked(&[POD_A, POD_C]));
    row("a port that no Service has at an external IP", OUTSIDE, "192.0.2.18:81", UNTOUCHED);
    row("external IP without endpoints", OUTSIDE, "192.0.2.13", REJECTED);
    row("Local, external IP", OUTSIDE, "192.0.2.14", direct(&[POD_B]));
    row("Local, external IP from a pod", POD_A, "192.0.2.14", direct(&[POD_B, POD_C]));
    row("Local, external IP from the node", NODE, "192.0.2.14", masked(&[POD_B, POD_C]));
    row("load balancer address", OUTSIDE, "192.0.2.20", masked(&[POD_C]));
    row("load balancer address from a pod", POD_A, "192.0.2.20", masked(&[POD_C]));
    row("load balancer address from the node", NODE, "192.0.2.20", masked(&[POD_C]));
    row("node port of a load balancer", OUTSIDE, "172.25.2.1:30083", masked(&[POD_C]));
    row("load balancer address with ipMode Proxy", OUTSIDE, "192.0.2.21", UNTOUCHED);
    row("load balancer without node ports", OUTSIDE, "192.0.2.25", masked(&[POD_C]));
    row("Local, load balancer address", OUTSIDE, "192.0.2.26", direct(&[POD_A]));
    row("Local, load balancer address from a pod", POD_B, "192.0.2.26", direct(&[POD_A, POD_C]));
    row("Local, load balancer address, only a terminating endpoint here", OUTSIDE, "192.0.2.27", direct(&[POD_A]));
    row("address of a former load balancer", OUTSIDE, "192.0.2.28", UNTOUCHED);
}

fn selection_rows(rows: &mut Rows) {
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("only a terminating endpoint serves", POD_B, "10.96.0.23", direct(&[POD_A]));
    row("Cluster has a ready endpoint", POD_B, "172.25.2.1:30087", direct(&[POD_C]));
    row("Local has only a terminating one", OUTSIDE, "172.25.2.1:30087", direct(&[POD_A]));
    row("internal Local has only a terminating one", POD_B, "10.96.0.30", direct(&[POD_A]));
    row("unready endpoints get nothing", POD_B, "10.96.0.31", direct(&[POD_C]));
    row("PreferSameZone", POD_B, "10.96.0.32", direct(&[POD_A]));
    row("PreferSameZone and an endpoint without hints", POD_B, "10.96.0.33", direct(&[POD_A, POD_C]));
    row("PreferSameZone and none for this zone", POD_B, "10.96.0.34", direct(&[POD_A, POD_C]));
    row("PreferSameNode", POD_B, "10.96.0.35", direct(&[POD_A]));
    row("PreferSameNode and none for this node, but for the zone", POD_B, "10.96.0.36", direct(&[POD_C]));
    row("hints and policy Cluster", POD_A, "172.25.2.1:30089", direct(&[POD_C]));
    row("hints and policy Local", OUTSIDE, "172.25.2.1:30089", direct(&[POD_A]));
}

fn shape_rows(rows: &mut Rows) {
    use Protocol::{Sctp, Tcp, Udp};
    rows.add_for(Udp, "UDP", (POD_B, "10.96.0.21:53"), &direct(&[POD_A, POD_C]));
    rows.add_for(
        Tcp,
        "TCP on the same port",
        (POD_B, "10.96.0.21:53"),
        &direct(&["10.244.0.2:8081", "10.244.1.2:8081"]),
    );
    rows.add_for(Udp, "UDP from the node", (NODE, "10.96.0.21:53"), &masked(&[POD_A, POD_C]));
    rows.add_for(Sctp, "a protocol that no Service has", (POD_A, "10.96.0.21:53"), &REJECTED);
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("named target port", POD_B, "10.96.0.41", direct(&[POD_A, "10.244.1.2:8081"]));
    row("several slices", NODE, "10.96.0.42", masked(&[POD_A, POD_B, POD_C]));
    row("a Service of another proxy", POD_B, "10.96.0.43", UNTOUCHED);
    row("node port of another proxy", OUTSIDE, "172.25.2.1:30091", UNTOUCHED);
    row("slices labelled headless", POD_B, "10.96.0.44", direct(&[POD_A]));
    row("a headless Service", POD_B, "10.96.0.45", UNTOUCHED);
    row("the node's other address as a source", NODE_INNER, "10.96.0.12", direct(&[POD_A, POD_C]));
}

/// Some Services of [`world`] in other states, and the whole of it at last: for replays.
pub fn history() -> Vec<World> {
    let full = world();
    let mut some = full.clone();
    let mut number = 0;
    some.services.retain(|_| {
        number += 1;
        number % 3 == 0
    });
    some.slices.retain(|slice| some.services.iter().any(|service| service.name == slice.service_name()));
    let mut half = some.clone();
    half.services.truncate(some.services.len() / 2);
    let mut scaled = some.clone();
    for slice in &mut scaled.slices {
        let mut new = endpoint("10.244.3.9@node3");
        new.address = address("10.244.3.9", slice.family);
        slice.endpoints.push(new);
        slice.endpoints.rotate_left(1);
    }
    let mut drained = some.clone();
    drained.slices.iter_mut().for_each(|slice| slice.endpoints.clear());
    let mut policies = some;
    for service in &mut policies.services {
        service.external_policy = TrafficPolicy::Local;
        service.client_ip_affinity = Some(Duration::from_secs(60));
    }
    vec![half, scaled, drained, policies, full]
}
