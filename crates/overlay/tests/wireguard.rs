//! The wireguard backend on the real kernel, seen by the standard tools and by packets. The kernel of the netns tier may
//! have no WireGuard; that of the vm tier has.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, Node, able_to_make};
use podwire_kernel::{
    route::{Change, Removed, Route},
    wireguard::{PrivateKey, Wireguard},
};
use podwire_overlay::Overlay;

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}"#;

fn able() -> bool {
    able_to_make("wireguard")
}

fn key(node: &Node) -> PrivateKey {
    node.wireguard_key()
}

#[test]
fn three_nodes_look_as_flannels_do_and_their_pods_talk() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join_with(NET_CONF);
    let node = &cluster.nodes[0];

    let link = node.net.run("ip -d link show flannel-wg");
    for expected in ["mtu 1420", "wireguard", ",UP"] {
        assert!(link.contains(expected), "{expected} is not in {link}");
    }
    assert!(node.net.run("ip -4 addr show dev flannel-wg").contains("inet 10.244.0.0/32 scope global flannel-wg"));
    let routes = node.net.run("ip route show");
    assert!(routes.lines().any(|line| line.trim() == "10.244.0.0/16 dev flannel-wg scope link"), "{routes}");
    let shown = node.net.run("wg show flannel-wg");
    assert!(shown.contains(&format!("public key: {}", key(node).public())), "{shown}");
    assert!(shown.contains("listening port: 51820"), "{shown}");
    for other in &cluster.nodes[1..] {
        let lines =
            ["endpoints", "allowed-ips"].map(|what| node.net.run(&format!("wg show flannel-wg {what}"))).concat();
        let public = key(other).public();
        for expected in
            [format!("{public}\t172.25.2.{}:51820", other.n), format!("{public}\t10.244.{}.0/24", other.n - 1)]
        {
            assert!(lines.lines().any(|line| line == expected), "{expected} is not in {lines}");
        }
    }
    cluster.pods_talk();
    // The node itself speaks from flannel-wg's address, which the answer finds back.
    let seen = node.net.source_seen_by(&cluster.nodes[1].pod, cluster.nodes[1].pod_address());
    assert_eq!(seen.to_string(), "10.244.0.0");
}

#[test]
fn packets_between_nodes_are_encrypted_and_large_ones_pass_whole() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let packet = cluster.underlay.captured("br2", "udp port 51820 and length > 100 and length < 1400", || {
        first.pod.run(&format!("ping -c 1 -W 30 -s 200 -p 706f6477697265 {}", second.pod_address()));
    });
    assert!(packet.contains("172.25.2.1.51820 > 172.25.2.2.51820"), "{packet}");
    assert!(!packet.contains("ICMP"), "{packet}");
    let largest = 1420 - 28;
    first.pod.run("ip link set eth0 mtu 1420");
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {largest} {}", second.pod_address()));
}

/// Brings `node` up as `conf` says, among the peers of `cluster`; returns how many operations that took.
fn apply(cluster: &Cluster, node: &Node, conf: &str) -> (Overlay, usize) {
    let mut overlay = node.overlay(conf);
    assert!(overlay.set_peers(cluster.leases_with(conf)).is_empty());
    let outcome = overlay.apply(&mut node.net.routes()).unwrap();
    assert!(outcome.errors.is_empty() && overlay.is_settled(), "{:?}", outcome.errors);
    (overlay, outcome.done)
}

#[test]
fn a_restart_changes_nothing_and_interrupts_nothing() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join_with(NET_CONF);
    let [first, second, _] = &cluster.nodes[..] else { panic!("three nodes") };
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    let handshakes = || first.net.run("wg show flannel-wg latest-handshakes");
    let before = handshakes();
    let (mut again, done) = apply(&cluster, first, NET_CONF);
    assert_eq!((done, handshakes()), (0, before), "the sessions stay");

    again.remove_peer(&"node3".into());
    assert_eq!(again.apply(&mut first.net.routes()).unwrap().done, 2);
    let shown = first.net.run("wg show flannel-wg");
    assert!(!shown.contains("10.244.2.0/24") && !shown.contains("172.25.2.3"), "{shown}");
    assert_eq!(shown.matches("peer: ").count(), 1, "{shown}");
}

#[test]
fn leftovers_go_and_what_is_wrong_is_put_right() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join_with(NET_CONF);
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    let stranger = PrivateKey::from_bytes([77; 32]).public();
    let (two, three) = (key(second).public(), key(third).public());
    for by_hand in [
        format!("wg set flannel-wg peer {stranger} endpoint 172.25.2.77:51820 allowed-ips 10.244.77.0/24"),
        format!("wg set flannel-wg peer {two} endpoint 172.25.2.99:1 persistent-keepalive 7"),
        format!("wg set flannel-wg peer {three} allowed-ips 10.244.2.0/24,10.244.1.0/24,10.244.78.0/24"),
        "wg set flannel-wg listen-port 4444".to_owned(),
        "ip addr add 10.244.77.0/32 dev flannel-wg".to_owned(),
        "ip route add 10.244.78.0/24 dev flannel-wg".to_owned(),
        "ip link set flannel-wg mtu 1300".to_owned(),
    ] {
        first.net.run(&by_hand);
    }
    apply(&cluster, first, NET_CONF);
    let seen = ["ip route", "ip addr", "ip link", "wg show flannel-wg"].map(|look| first.net.run(look)).concat();
    for gone in ["10.244.77.", "10.244.78.", "172.25.2.99", "persistent keepalive", "port: 4444", "mtu 1300"] {
        assert!(!seen.contains(gone), "{gone} is still in {seen}");
    }
    assert!(!seen.contains(&stranger.to_string()), "{seen}");
    for other in [second, third] {
        assert_eq!(first.pod.source_seen_by(&other.pod, other.pod_address()), first.pod_address());
    }
}

#[test]
fn a_deleted_device_is_made_again_with_all_that_hung_on_it() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let (mut overlay, _) = apply(&cluster, first, NET_CONF);
    let mut kernel = first.net.routes();
    let index = kernel.link("flannel-wg").unwrap().unwrap().index;
    first.net.run("ip link del flannel-wg");
    assert!(overlay.changed(&Change::Removed(Removed::Link(index))).work);
    let outcome = overlay.apply(&mut kernel).unwrap();
    assert_eq!((outcome.done, outcome.errors.len()), (5, 0));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

#[test]
fn the_port_the_shared_key_and_the_keepalive_change_in_place() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let index = |node: &Node| node.net.routes().link("flannel-wg").unwrap().unwrap().index;
    let before = index(first);
    let psk = PrivateKey::from_bytes([9; 32]).to_secret_text();
    let conf = format!(
        r#"{{"Network": "10.244.0.0/16", "Backend":
            {{"Type": "wireguard", "ListenPort": 51999, "PSK": "{psk}", "PersistentKeepaliveInterval": 25}}}}"#
    );
    cluster.join_with(&conf);
    assert_eq!(index(first), before, "it is the same device");
    let device = first.net.routes().wireguard(before).unwrap();
    assert_eq!(device.listen_port, 51999);
    assert_eq!(device.peers[0].preshared_key, Some(psk.parse().unwrap()));
    assert_eq!(device.peers[0].keepalive.as_secs(), 25);
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

#[test]
fn a_node_that_comes_back_with_another_key_is_reached() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(NET_CONF);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    // Its key file was in memory; it publishes what it made instead, and its device is new.
    second.net.run("ip link del flannel-wg");
    let (mut here, _) = apply(&cluster, first, NET_CONF);
    let mut there = second.overlay_with_key(NET_CONF, PrivateKey::from_bytes([55; 32]));
    there.set_peers([here.lease()]);
    assert!(there.apply(&mut second.net.routes()).unwrap().errors.is_empty());
    here.set_peer(&there.lease()).unwrap();
    assert!(here.apply(&mut first.net.routes()).unwrap().errors.is_empty());
    let shown = first.net.run("wg show flannel-wg peers");
    assert_eq!(shown.trim(), PrivateKey::from_bytes([55; 32]).public().to_string());
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

#[test]
fn a_port_that_is_taken_is_named() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    let _taken = node.net.inside(|| std::net::UdpSocket::bind("0.0.0.0:51820").unwrap());
    let mut overlay = node.overlay(NET_CONF);
    let outcome = overlay.apply(&mut node.net.routes()).unwrap();
    let message = outcome.errors[0].to_string();
    assert!(message.contains("flannel-wg") && message.contains("Address already in use"), "{message}");
    assert!(!overlay.is_settled());
}

#[test]
fn a_kernel_without_wireguard_is_named() {
    if !common::able() || able() {
        return;
    }
    let cluster = Cluster::new(1);
    let mut overlay = cluster.nodes[0].overlay(NET_CONF);
    let outcome = overlay.apply(&mut cluster.nodes[0].net.routes()).unwrap();
    let message = outcome.errors[0].to_string();
    assert!(message.starts_with("cannot create wireguard flannel-wg: Operation not supported"), "{message}");
    assert_eq!((outcome.done, overlay.is_settled()), (0, false));
    assert!(!cluster.nodes[0].net.run("ip route").contains("10.244.0.0/16"));
}
