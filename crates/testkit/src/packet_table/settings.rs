//! Worlds with other settings than the usual.

use podwire_model::{IpNet, LoadBalancerIngress, TrafficPolicy};

use super::{
    FAMILIES, NODE, NodePorts, OUTSIDE, POD_A, POD_B, POD_C, Pods, Table, World, empty, range,
    world::{Builder, DROPPED, REJECTED, Rows, Sent, UNTOUCHED, direct, load_balancer, masked, with_policies},
};
use crate::build::{ip, node_port_service, service};

const A: &str = "10.244.0.2@node1";
const C: &str = "10.244.1.2@node2";

/// One table for each setting.
pub fn tables() -> Vec<Table> {
    vec![
        source_ranges(),
        masquerade_all(),
        pods_by("pods by interface prefix", Pods::InterfacePrefix("pod-"), true),
        pods_by("pods by interface", Pods::Interface("pod-a"), false),
        pods_unknown(),
        primary_node_ports(),
        ranges_of_node_ports(),
        no_localhost(),
        service_ranges(),
    ]
}

fn both(v4: &str) -> Vec<IpNet> {
    FAMILIES.map(|family| range(v4, family)).into()
}

fn source_ranges() -> Table {
    let mut builder = Builder { world: empty() };
    let mut add = |name, cluster_ip, address, ranges: Vec<IpNet>, endpoints: &[&str]| {
        let mut balanced = load_balancer(name, cluster_ip, address);
        balanced.source_ranges = ranges;
        builder.add(balanced, endpoints, |_| {});
    };
    add("neighbours", "10.96.0.10", "192.0.2.10", both("172.25.2.0/24"), &[A, C]);
    add("pods", "10.96.0.11", "192.0.2.11", both("10.244.0.0/16"), &[A, C]);
    add("all", "10.96.0.12", "192.0.2.12", [both("10.0.0.0/8"), both("0.0.0.0/0")].concat(), &[A, C]);
    add("overlapping", "10.96.0.13", "192.0.2.13", [both("10.244.0.0/24"), both("10.244.0.0/16")].concat(), &[C]);
    add("empty", "10.96.0.14", "192.0.2.14", both("172.25.2.0/24"), &[]);
    let mut node_port = node_port_service("node-port", "10.96.0.15", 30100);
    node_port.kind = podwire_model::ServiceType::LoadBalancer;
    node_port.load_balancer = vec![LoadBalancerIngress { ip: ip("192.0.2.15"), proxied: false }];
    // One address is both.
    node_port.external_ips = vec![ip("192.0.2.15"), ip("192.0.2.115")];
    node_port.source_ranges = both("10.244.0.0/16");
    builder.add(node_port, &[A, C], |_| {});
    let local =
        with_policies(load_balancer("local", "10.96.0.16", "192.0.2.16"), TrafficPolicy::Local, TrafficPolicy::Cluster);
    builder.add(podwire_model::Service { source_ranges: both("172.25.2.0/24"), ..local }, &[A, C], |_| {});

    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("a source in range", OUTSIDE, "192.0.2.10", masked(&[POD_A, POD_C]));
    row("the node, its address in range", NODE, "192.0.2.10", masked(&[POD_A, POD_C]));
    row("a pod that is not in range", POD_B, "192.0.2.10", DROPPED);
    row("not in range, cluster IP", POD_B, "10.96.0.10", direct(&[POD_A, POD_C]));
    row("a pod in range", POD_B, "192.0.2.11", masked(&[POD_A, POD_C]));
    row("a source that is not in range", OUTSIDE, "192.0.2.11", DROPPED);
    row("the node, its address not in range", NODE, "192.0.2.11", DROPPED);
    row("a range of all", OUTSIDE, "192.0.2.12", masked(&[POD_A, POD_C]));
    row("overlapping ranges", POD_C, "192.0.2.13", masked(&[POD_C]));
    row("overlapping ranges, not in them", OUTSIDE, "192.0.2.13", DROPPED);
    row("in range, no endpoints", OUTSIDE, "192.0.2.14", REJECTED);
    row("not in range, no endpoints", POD_B, "192.0.2.14", DROPPED);
    row("not in range, node port", OUTSIDE, "172.25.2.1:30100", masked(&[POD_A, POD_C]));
    row("not in range, external IP", OUTSIDE, "192.0.2.115", masked(&[POD_A, POD_C]));
    row("not in range, external IP that is the load balancer's too", OUTSIDE, "192.0.2.15", DROPPED);
    row("in range, Local", OUTSIDE, "192.0.2.16", direct(&[POD_A]));
    row("not in range, Local", POD_B, "192.0.2.16", DROPPED);
    Table { name: "source ranges", world: builder.world, rows: rows.0 }
}

/// A ClusterIP Service, one with a node port, and one with a node port and policy Local.
fn few() -> World {
    let mut builder = Builder { world: empty() };
    builder.add(service("plain", "10.96.0.10"), &[A, C], |_| {});
    builder.add(node_port_service("node-port", "10.96.0.12", 30080), &[A, C], |_| {});
    let local = node_port_service("local", "10.96.0.14", 30081);
    builder.add(with_policies(local, TrafficPolicy::Local, TrafficPolicy::Cluster), &[A, C], |_| {});
    builder.world
}

fn masquerade_all() -> Table {
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("pod to cluster IP", POD_B, "10.96.0.10", masked(&[POD_A, POD_C]));
    row("Local keeps the source", OUTSIDE, "172.25.2.1:30081", direct(&[POD_A]));
    row("Local, from a pod", POD_B, "172.25.2.1:30081", direct(&[POD_A, POD_C]));
    Table { name: "masquerade all", world: World { masquerade_all: true, ..few() }, rows: rows.0 }
}

/// Pods by interface: of this node's pods the first looks like one, and the second too if `both_pods`.
fn pods_by(name: &'static str, pods: Pods, both_pods: bool) -> Table {
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("pod to cluster IP", POD_A, "10.96.0.10", Sent::To([(POD_A, true), (POD_C, false)].into()));
    row("another pod", POD_B, "10.96.0.10", if both_pods { direct } else { masked }(&[POD_A, POD_C]));
    row("a pod of another node", POD_C, "10.96.0.10", masked(&[POD_A, POD_C]));
    row("outside to cluster IP", OUTSIDE, "10.96.0.10", masked(&[POD_A, POD_C]));
    row("node to cluster IP", NODE, "10.96.0.10", masked(&[POD_A, POD_C]));
    let inside = Sent::To([(POD_A, true), (POD_C, false)].into());
    row("Local, from a pod", POD_A, "172.25.2.1:30081", inside);
    row("Local, from a pod of another node", POD_C, "172.25.2.1:30081", direct(&[POD_A]));
    row("Local, from outside", OUTSIDE, "172.25.2.1:30081", direct(&[POD_A]));
    row("Local, from the node", NODE, "172.25.2.1:30081", masked(&[POD_A, POD_C]));
    row("node port", POD_B, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    Table { name, world: World { pods, ..few() }, rows: rows.0 }
}

fn pods_unknown() -> Table {
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("pod to cluster IP", POD_B, "10.96.0.10", direct(&[POD_A, POD_C]));
    row("pod to itself", POD_A, "10.96.0.10", Sent::To([(POD_A, true), (POD_C, false)].into()));
    row("outside to cluster IP", OUTSIDE, "10.96.0.10", direct(&[POD_A, POD_C]));
    row("node port", OUTSIDE, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("Local, from a pod", POD_B, "172.25.2.1:30081", direct(&[POD_A]));
    row("Local, from outside", OUTSIDE, "172.25.2.1:30081", direct(&[POD_A]));
    Table { name: "pods unknown", world: World { pods: Pods::Unknown, ..few() }, rows: rows.0 }
}

fn primary_node_ports() -> Table {
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("the primary address", OUTSIDE, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("the primary address, from the node", NODE, "172.25.2.1:30080", masked(&[POD_A, POD_C]));
    row("the primary address, Local", OUTSIDE, "172.25.2.1:30081", direct(&[POD_A]));
    row("another address", POD_B, "10.244.0.1:30080", UNTOUCHED);
    row("another address, Local", POD_B, "10.244.0.1:30081", UNTOUCHED);
    row("the loopback address", "127.0.0.1", "127.0.0.1:30080", UNTOUCHED);
    Table { name: "primary node ports", world: World { node_ports: NodePorts::Primary, ..few() }, rows: rows.0 }
}

fn ranges_of_node_ports() -> Table {
    let ranges = [both("10.244.0.0/16"), both("192.168.0.0/16")].concat();
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("an address in range", POD_B, "10.244.0.1:30080", masked(&[POD_A, POD_C]));
    row("an address in range, Local", POD_B, "10.244.0.1:30081", direct(&[POD_A, POD_C]));
    row("an address that is not in range", OUTSIDE, "172.25.2.1:30080", UNTOUCHED);
    row("an address that is not in range, Local", OUTSIDE, "172.25.2.1:30081", UNTOUCHED);
    row("an address in range that is not the node's", POD_A, "10.244.0.3:30080", UNTOUCHED);
    row("the loopback address", "127.0.0.1", "127.0.0.1:30080", UNTOUCHED);
    Table {
        name: "ranges of node ports",
        world: World { node_ports: NodePorts::Ranges(ranges), ..few() },
        rows: rows.0,
    }
}

fn no_localhost() -> Table {
    let mut rows = Rows::default();
    rows.add("node port at the loopback address", "127.0.0.1", "127.0.0.1:30080", &UNTOUCHED);
    rows.add("node port", OUTSIDE, "172.25.2.1:30080", &masked(&[POD_A, POD_C]));
    Table { name: "no localhost node ports", world: World { localhost_node_ports: false, ..few() }, rows: rows.0 }
}

fn service_ranges() -> Table {
    let mut rows = Rows::default();
    let mut row = |name, from, to, sent| rows.add(name, from, to, &sent);
    row("an address that no Service has", POD_A, "10.96.7.7", DROPPED);
    row("an address that no Service has, from the node", NODE, "10.96.7.7", DROPPED);
    row("an address that no Service has, from outside", OUTSIDE, "10.96.7.7", DROPPED);
    row("a port that no Service has", POD_A, "10.96.0.10:81", REJECTED);
    row("a Service", POD_B, "10.96.0.10", direct(&[POD_A, POD_C]));
    row("an address of another range", POD_A, "10.97.7.7", UNTOUCHED);
    let mut world = few();
    world.service_ranges = both("10.96.0.0/16");
    Table { name: "service ranges", world, rows: rows.0 }
}
