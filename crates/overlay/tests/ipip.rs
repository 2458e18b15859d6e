//! The ipip backend on the real kernel, seen by the standard tools and by packets. The kernel of the netns tier may have
//! no such tunnels; that of the vm tier has.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, able_to_make};
use podwire_kernel::route::{Change, Removed, Route};

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "ipip"}}"#;
const DIRECT: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "ipip", "DirectRouting": true}}"#;

fn able() -> bool {
    able_to_make("ipip local 192.0.2.1")
}

#[test]
fn three_nodes_look_as_flannels_do_and_their_pods_talk() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join_with(NET_CONF);
    let node = &cluster.nodes[0];
    let link = node.net.run("ip -d link show flannel.ipip");
    for expected in ["mtu 1480", "ipip", "local 172.25.2.1", "remote any", ",UP"] {
        assert!(link.contains(expected), "{expected} is not in {link}");
    }
    assert!(node.net.run("ip -4 addr show dev flannel.ipip").contains("inet 10.244.0.0/32 scope global flannel.ipip"));
    let routes = node.net.run("ip route show");
    for n in [1, 2] {
        let route = format!("10.244.{n}.0/24 via 172.25.2.{} dev flannel.ipip onlink", n + 1);
        assert!(routes.lines().any(|line| line.trim() == route), "{route} is not in {routes}");
    }
    cluster.pods_talk();
    let seen = node.net.source_seen_by(&cluster.nodes[1].pod, cluster.nodes[1].pod_address());
    assert_eq!(seen.to_string(), "10.244.0.0");
}

#[test]
fn packets_between_nodes_are_ip_in_ip_and_large_ones_pass_whole() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let packet = cluster.underlay.captured("br2", "ip proto 4", || {
        first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address()));
    });
    assert!(packet.contains("172.25.2.1 > 172.25.2.2: "), "{packet}");
    assert!(packet.contains("10.244.0.2 > 10.244.1.2: ICMP echo request"), "{packet}");
    for node in &cluster.nodes {
        node.pod.run("ip link set eth0 mtu 1480");
    }
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {} {}", 1480 - 28, second.pod_address()));
}

#[test]
fn peers_on_the_link_are_routed_directly_if_asked_for() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    // From one to the other and back, without a stop between.
    for (conf, route, filter, expected) in [
        (NET_CONF, "dev flannel.ipip onlink", "ip proto 4", "172.25.2.1 > 172.25.2.2: "),
        (DIRECT, "dev eth0", "icmp", "10.244.0.2 > 10.244.1.2: ICMP echo request"),
        (NET_CONF, "dev flannel.ipip onlink", "ip proto 4", "172.25.2.1 > 172.25.2.2: "),
    ] {
        cluster.join_with(conf);
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        let routes = first.net.run("ip route show 10.244.1.0/24");
        assert_eq!(routes.trim(), format!("10.244.1.0/24 via 172.25.2.2 {route}"));
        let packet = cluster.underlay.captured("br2", filter, || {
            first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address()));
        });
        assert!(packet.contains(expected), "{packet}");
    }
}

#[test]
fn a_restart_changes_nothing_and_leftovers_go() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join_with(NET_CONF);
    let node = &cluster.nodes[0];
    let mut kernel = node.net.routes();
    let mut again = node.overlay(NET_CONF);
    again.set_peers(cluster.leases_with(NET_CONF));
    assert_eq!(again.apply(&mut kernel).unwrap().done, 0);

    node.net.run("ip route add 10.244.77.0/24 via 172.25.2.77 dev flannel.ipip onlink");
    node.net.run("ip route del 10.244.1.0/24");
    node.net.run("ip addr add 10.244.77.0/32 dev flannel.ipip");
    node.net.run("ip link set flannel.ipip mtu 1300");
    let mut later = node.overlay(NET_CONF);
    later.set_peers(cluster.leases_with(NET_CONF));
    assert!(later.apply(&mut kernel).unwrap().errors.is_empty());
    let seen = ["ip route", "ip addr", "ip link"].map(|look| node.net.run(look)).concat();
    assert!(!seen.contains("10.244.77.") && !seen.contains("mtu 1300"), "{seen}");
    assert_eq!(node.pod.source_seen_by(&cluster.nodes[1].pod, cluster.nodes[1].pod_address()), node.pod_address());

    let index = kernel.link("flannel.ipip").unwrap().unwrap().index;
    node.net.run("ip link del flannel.ipip");
    assert!(later.changed(&Change::Removed(Removed::Link(index))).work);
    let outcome = later.apply(&mut kernel).unwrap();
    assert_eq!((outcome.done, outcome.errors.len()), (4, 0));
    assert_eq!(node.pod.source_seen_by(&cluster.nodes[2].pod, cluster.nodes[2].pod_address()), node.pod_address());
}

/// The module makes a device of its own in every namespace; it is not ours.
#[test]
fn the_kernels_own_tunnel_is_left_alone() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let node = &cluster.nodes[0];
    node.net.run("ip link add probe type ipip local 172.25.2.1 remote 172.25.2.9");
    cluster.join_with(NET_CONF);
    assert!(node.net.run("ip -d link show probe").contains("remote 172.25.2.9"));
    assert_eq!(node.net.run("ip -o link show type ipip").matches("flannel.ipip").count(), 1);
}
