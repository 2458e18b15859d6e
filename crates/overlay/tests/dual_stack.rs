//! IPv6 and both families at once, in every backend that has them, on the real kernel. Each family has an overlay of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, Node, able, able_to_make};
use podwire_model::Family;

struct Row {
    backend: &'static str,
    /// A kind of link that it needs and the kernel of the netns tier lacks.
    needs: Option<&'static str>,
    /// What packets of pods look like between nodes, as tcpdump's filter, in IPv4 and in IPv6.
    on_the_wire: [&'static str; 2],
    /// MTU of pods in IPv6.
    mtu_v6: u32,
}

const ROWS: &[Row] = &[
    Row { backend: "vxlan", needs: None, on_the_wire: ["ip and udp port 8472", "ip6 and udp port 8472"], mtu_v6: 1430 },
    Row { backend: "host-gw", needs: None, on_the_wire: ["icmp", "icmp6 and ip6[40] == 128"], mtu_v6: 1500 },
    Row {
        backend: "wireguard",
        needs: Some("wireguard"),
        on_the_wire: ["ip and udp port 51820", "ip6 and udp port 51821"],
        mtu_v6: 1420,
    },
];

fn each(test: impl Fn(&Row, &str)) {
    for row in ROWS.iter().filter(|row| row.needs.map_or_else(able, able_to_make)) {
        let conf = format!(
            r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
                "Backend": {{"Type": "{}"}}}}"#,
            row.backend
        );
        test(row, &conf);
    }
}

fn talk(from: &Node, to: &Node, family: Family) {
    assert_eq!(from.pod.source_seen_by(&to.pod, to.pod_address_in(family)), from.pod_address_in(family));
}

#[test]
fn pods_talk_in_ipv6_alone() {
    each(|row, conf| {
        let cluster = Cluster::new(2);
        let overlays = cluster.join_in(conf, Family::V6);
        assert_eq!(overlays[0].mtu(), row.mtu_v6, "{}", row.backend);
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        talk(first, second, Family::V6);
        assert!(!first.net.run("ip -4 route").contains("10.244.1."), "{}", row.backend);
        // What the node itself sends finds its way back.
        first.net.source_seen_by(&second.pod, second.pod_address_in(Family::V6));
    });
}

#[test]
fn pods_talk_in_both_families_and_each_goes_its_own_way() {
    each(|row, conf| {
        let cluster = Cluster::new(2);
        for family in [Family::V4, Family::V6] {
            cluster.join_in(conf, family);
        }
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        for (family, filter) in [Family::V4, Family::V6].into_iter().zip(row.on_the_wire) {
            talk(first, second, family);
            talk(second, first, family);
            let packet = cluster.underlay.captured("br2", filter, || {
                first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address_in(family)));
            });
            assert!(!packet.is_empty(), "{} {family:?}", row.backend);
        }
    });
}

#[test]
fn a_restart_of_either_family_changes_nothing_in_the_other() {
    each(|row, conf| {
        let cluster = Cluster::new(2);
        for family in [Family::V4, Family::V6] {
            cluster.join_in(conf, family);
        }
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        for family in [Family::V4, Family::V6] {
            let mut again = first.overlay_in(conf, family);
            again.set_peers(cluster.leases_in(conf, family));
            assert_eq!(again.apply(&mut first.net.routes()).unwrap().done, 0, "{} {family:?}", row.backend);
        }
        // In one family the peer goes; in the other it stays.
        let mut alone = first.overlay_in(conf, Family::V6);
        assert!(alone.apply(&mut first.net.routes()).unwrap().errors.is_empty());
        assert!(!first.net.run("ip -6 route").contains("fd00:10:244:1::/64"), "{}", row.backend);
        talk(first, second, Family::V4);
    });
}
