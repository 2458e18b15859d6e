//! IPv6 beside IPv4 on the real kernel: two overlays on each node that do not touch each other.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, able};
use podwire_kernel::nftables::{Kernel, Nftables};
use podwire_model::Family;
use podwire_overlay::{
    Overlay,
    masquerade::{self, Options},
};

fn dual(backend: &str) -> String {
    format!(
        r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56", "Backend": {backend}}}"#
    )
}

/// Runs both overlays on every node.
fn join(cluster: &Cluster, net_conf: &str) -> Vec<[Overlay; 2]> {
    let overlays = |node: &common::Node| [Family::V4, Family::V6].map(|family| node.overlay_in(net_conf, family));
    let mut all: Vec<_> = cluster.nodes.iter().map(overlays).collect();
    for of in [0, 1] {
        let leases: Vec<_> = all.iter().map(|both| both[of].lease()).collect();
        for (node, both) in cluster.nodes.iter().zip(&mut all) {
            assert!(both[of].set_peers(leases.clone()).is_empty());
            let outcome = both[of].apply(&mut node.net.routes()).unwrap();
            assert!(outcome.errors.is_empty() && outcome.refused.is_empty(), "{outcome:?}");
        }
    }
    all
}

#[test]
fn both_families_have_a_device_and_their_pods_talk() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let net_conf = dual(r#"{"Type": "vxlan"}"#);
    let mut overlays = join(&cluster, &net_conf);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let link = first.net.run("ip -d link show flannel-v6.1");
    for expected in ["mtu 1430", "vxlan id 1 local fd00:25::1 dev eth0", "dstport 8472", "nolearning"] {
        assert!(link.contains(expected), "{expected} is not in {link}");
    }
    assert!(first.net.run("ip -6 addr show dev flannel-v6.1").contains("inet6 fd00:10:244::/128 scope global"));
    let routes = first.net.run("ip -6 route show");
    assert!(routes.contains("fd00:10:244:1::/64 via fd00:10:244:1:: dev flannel-v6.1"), "{routes}");
    let neighbours = first.net.run("ip -6 neigh show dev flannel-v6.1 nud permanent");
    assert!(neighbours.contains("fd00:10:244:1:: lladdr"), "{neighbours}");
    let fdb = first.net.run("bridge fdb show dev flannel-v6.1");
    assert!(fdb.contains("dst fd00:25::2 self permanent"), "{fdb}");
    let packet = cluster.underlay.captured("br2", "udp port 8472", || {
        first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address_in(Family::V6)));
    });
    assert!(packet.contains("fd00:25::2.8472") && packet.contains("fd00:10:244::2 > fd00:10:244:1::2"), "{packet}");
    // The largest packet of a pod passes whole.
    first.pod.run("ip link set eth0 mtu 1430");
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {} {}", 1430 - 48, second.pod_address_in(Family::V6)));
    for family in [Family::V4, Family::V6] {
        let seen = first.pod.source_seen_by(&second.pod, second.pod_address_in(family));
        assert_eq!(seen, first.pod_address_in(family));
    }
    // A restart of either finds all in place, and takes nothing of the other's.
    for (at, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let mut again = first.overlay_in(&net_conf, family);
        let leases: Vec<_> = overlays.iter().map(|both| both[at].lease()).collect();
        again.set_peers(leases);
        assert_eq!(again.apply(&mut first.net.routes()).unwrap().done, 0, "{family:?}");
    }
    overlays[0][1].set_peers([]);
    overlays[0][1].apply(&mut first.net.routes()).unwrap();
    assert!(!first.net.run("ip -6 route show").contains("fd00:10:244:1::/64"));
    assert!(first.net.run("ip route show").contains("10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"));
}

#[test]
fn routers_of_ipv6_are_the_nodes_themselves() {
    if !able() {
        return;
    }
    let cluster = Cluster::routed(2, 1);
    join(&cluster, &dual(r#"{"Type": "vxlan", "DirectRouting": true}"#));
    let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
    let routes = first.net.run("ip -6 route show");
    assert!(routes.contains("fd00:10:244:1::/64 via fd00:25::2 dev eth0"), "{routes}");
    assert!(routes.contains("fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1"), "{routes}");
    let packet = cluster.underlay.captured("br2", "icmp6 and ip6[40] == 128 or udp port 8472", || {
        first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address_in(Family::V6)));
    });
    assert!(packet.contains("fd00:10:244::2 > fd00:10:244:1::2") && !packet.contains("8472"), "{packet}");
    for to in [second, third] {
        let seen = first.pod.source_seen_by(&to.pod, to.pod_address_in(Family::V6));
        assert_eq!(seen, first.pod_address_in(Family::V6));
    }
}

#[test]
fn sources_are_translated_towards_the_outside_only() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    join(&cluster, &dual(r#"{"Type": "host-gw"}"#));
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    for node in &cluster.nodes {
        let options = Options { masquerade: true, fully_random: true, forward: true };
        let site = node.site_in(Family::V6);
        let batch = masquerade::rules(site.network, site.subnet, options);
        node.net.inside(|| Kernel::open()?.commit(&batch)).unwrap();
    }
    let rules = first.net.run("nft list table ip6 flannel-ipv6");
    assert!(rules.contains("ip6 saddr fd00:10:244::/56 ip6 daddr != ff00::/8 masquerade fully-random"), "{rules}");
    let outside = "fd00:25::250".parse().unwrap();
    assert_eq!(first.pod.source_seen_by(&cluster.client, outside), first.address_in(Family::V6));
    let pod = second.pod_address_in(Family::V6);
    assert_eq!(first.pod.source_seen_by(&second.pod, pod), first.pod_address_in(Family::V6));
    // From outside to a pod of the node that it came by: untouched; of another node: translated.
    cluster.client.run("ip route add fd00:10:244::/56 via fd00:25::1");
    let own = first.pod_address_in(Family::V6);
    assert_eq!(cluster.client.source_seen_by(&first.pod, own), outside);
    assert_eq!(cluster.client.source_seen_by(&second.pod, pod), first.address_in(Family::V6));
}
