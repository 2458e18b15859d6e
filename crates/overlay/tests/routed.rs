//! host-gw and DirectRouting on the real kernel: two networks with a router between them, seen by packets.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, Node, able};
use podwire_kernel::route::ChangeWatch;
use podwire_overlay::{Effect, Overlay};
use std::time::Duration;

const HOST_GW: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;
const DIRECT: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Directrouting": true}}"#;

fn has(node: &Node, look: &str, line: &str) -> bool {
    node.net.run(look).lines().any(|found| found.trim() == line)
}

/// The first packet of a ping from one pod to another, as it passes on the network that the first one's node is on.
fn ping(cluster: &Cluster, from: &Node, to: &Node, filter: &str) -> String {
    cluster.underlay.captured(&format!("br{}", from.on), filter, || {
        from.pod.run(&format!("ping -c 1 -W 30 {}", to.pod_address()));
    })
}

#[test]
fn with_host_gw_packets_pass_bare_and_whole() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join_with(HOST_GW);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    assert!(has(first, "ip route", "10.244.1.0/24 via 172.25.2.2 dev eth0"), "{}", first.net.run("ip route"));
    assert!(!first.net.run("ip link").contains("flannel"));
    let packet = ping(&cluster, first, second, "icmp");
    assert!(packet.contains("10.244.0.2 > 10.244.1.2: ICMP echo request"), "{packet}");
    for node in &cluster.nodes {
        node.pod.run("ip link set eth0 mtu 1500");
    }
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {} {}", 1500 - 28, second.pod_address()));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

#[test]
fn a_host_gw_peer_behind_a_router_is_refused_and_the_others_are_not() {
    if !able() {
        return;
    }
    let cluster = Cluster::routed(2, 1);
    let node = &cluster.nodes[0];
    let mut overlay = node.overlay(HOST_GW);
    assert!(overlay.set_peers(cluster.leases_with(HOST_GW)).is_empty());
    let outcome = overlay.apply(&mut node.net.routes()).unwrap();
    assert!(outcome.errors.is_empty() && overlay.is_settled());
    let [error] = &outcome.refused[..] else { panic!("one is refused: {:?}", outcome.refused) };
    let message = error.to_string();
    assert!(message.contains("node node3") && message.contains("behind a router (172.25.2.254 on eth0)"), "{message}");
    assert_eq!(overlay.peer_count(), 1);
    assert!(!node.net.run("ip route").contains("10.244.2.0/24"), "nothing leads to where packets would get lost");
}

#[test]
fn direct_routing_takes_the_tunnel_only_to_the_other_network() {
    if !able() {
        return;
    }
    let cluster = Cluster::routed(2, 1);
    cluster.join_with(DIRECT);
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    assert!(has(first, "ip route", "10.244.1.0/24 via 172.25.2.2 dev eth0"), "{}", first.net.run("ip route"));
    assert!(has(first, "ip route", "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"));
    assert_eq!(first.net.run("bridge fdb show dev flannel.1").lines().count(), 1);
    let packet = ping(&cluster, first, second, "icmp or udp port 8472");
    assert!(packet.contains("10.244.0.2 > 10.244.1.2: ICMP") && !packet.contains("instance 1"), "{packet}");
    let packet = ping(&cluster, first, third, "icmp or udp port 8472");
    assert!(packet.contains("instance 1") && packet.contains("10.244.0.2 > 10.244.2.2: ICMP"), "{packet}");
    for to in [second, third] {
        assert_eq!(first.pod.source_seen_by(&to.pod, to.pod_address()), first.pod_address());
    }
}

/// Takes in all changes that the kernel tells of.
fn take_in(overlay: &mut Overlay, watch: &mut ChangeWatch) -> Effect {
    let mut all = Effect::default();
    loop {
        let changes = watch.next(Some(Duration::ZERO)).unwrap();
        if changes.is_empty() {
            return all;
        }
        for effect in changes.iter().map(|change| overlay.changed(change)) {
            all = Effect { work: all.work | effect.work, uplink: all.uplink | effect.uplink };
        }
    }
}

#[test]
fn a_route_of_the_underlay_that_comes_or_goes_decides_anew() {
    if !able() {
        return;
    }
    let cluster = Cluster::routed(1, 1);
    let mut overlays = cluster.join_with(DIRECT);
    let node = &cluster.nodes[0];
    let (mut kernel, mut watch) = (node.net.routes(), node.net.inside(|| ChangeWatch::open().unwrap()));
    let tunnelled = "10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink";
    assert!(has(node, "ip route", tunnelled));
    // Someone plugs this node into the other network as well.
    node.net.run("ip addr add 172.25.3.1/24 dev eth0");
    assert!(take_in(&mut overlays[0], &mut watch).work);
    overlays[0].apply(&mut kernel).unwrap();
    assert!(has(node, "ip route", "10.244.1.0/24 via 172.25.3.2 dev eth0"), "{}", node.net.run("ip route"));
    assert_eq!(node.net.run("bridge fdb show dev flannel.1"), "");
    assert!(!take_in(&mut overlays[0], &mut watch).work, "its own doing is no news");
    node.net.run("ip addr del 172.25.3.1/24 dev eth0");
    assert!(take_in(&mut overlays[0], &mut watch).work);
    overlays[0].apply(&mut kernel).unwrap();
    assert!(has(node, "ip route", tunnelled), "{}", node.net.run("ip route"));
}

#[test]
fn what_is_changed_by_hand_is_put_right() {
    if !able() {
        return;
    }
    for (conf, by_hand) in [
        (HOST_GW, "ip route replace 10.244.1.0/24 via 172.25.2.250"),
        (HOST_GW, "ip route replace blackhole 10.244.1.0/24"),
        (HOST_GW, "ip route del 10.244.1.0/24"),
        (HOST_GW, "ip link set eth0 down"),
        (common::NET_CONF, "ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent"),
        (common::NET_CONF, "ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud stale"),
        (common::NET_CONF, "bridge fdb replace MAC dst 172.25.2.250 dev flannel.1 self permanent"),
        (common::NET_CONF, "ip link set flannel.1 mtu 1000"),
        (common::NET_CONF, "ip link set flannel.1 address 02:00:00:00:00:77"),
        (common::NET_CONF, "ip route replace 10.244.1.0/24 via 172.25.2.250"),
        (common::NET_CONF, "ip link del flannel.1"),
    ] {
        let cluster = Cluster::new(2);
        let mut overlays = cluster.join_with(conf);
        let node = &cluster.nodes[0];
        let (mut kernel, mut watch) = (node.net.routes(), node.net.inside(|| ChangeWatch::open().unwrap()));
        let mac = overlays[1].lease().backend_data.split('"').nth(5).unwrap_or_default().to_owned();
        let look = || {
            let looks = ["ip route", "ip neigh show nud permanent", "bridge fdb show", "ip -o link show type vxlan"];
            let lines = looks.map(|look| node.net.run(look)).concat();
            let mut lines: Vec<_> = lines
                .lines()
                .filter(|line| line.contains("flannel") || line.contains("10.244."))
                .map(str::to_owned)
                .collect();
            // A device that is made again has another number.
            lines.iter_mut().for_each(|line| {
                *line = line.split_once(": flannel").map_or(line.clone(), |(_, rest)| rest.to_owned())
            });
            lines.sort();
            lines
        };
        let whole = look();
        node.net.run(&by_hand.replace("MAC", &mac));
        if by_hand.ends_with("down") {
            take_in(&mut overlays[0], &mut watch);
            node.net.run("ip link set eth0 up");
        }
        assert_ne!(look(), whole, "{by_hand} changes something");
        assert!(take_in(&mut overlays[0], &mut watch).work, "{by_hand}");
        let outcome = overlays[0].apply(&mut kernel).unwrap();
        assert!(!outcome.repaired.is_empty() && outcome.errors.is_empty(), "{by_hand}: {outcome:?}");
        assert_eq!(look(), whole, "{by_hand}");
        take_in(&mut overlays[0], &mut watch);
        let again = overlays[0].apply(&mut kernel).unwrap();
        assert_eq!((again.done, again.repaired.len()), (0, 0), "{by_hand}: once is enough");
    }
}
