//! A wire to each container.

use podwire_cni::runtime::NetworkConfig;
use serde_json::json;

use super::{
    bridge::{outside, reaches, source_seen_by},
    support::{Node, Pod, code, on_a_node, run, veths},
};

fn wires(node: &Node) -> NetworkConfig {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dataDir": node.folder.join("networks"),
    });
    node.network(json!({"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": ipam}))
}

#[test]
fn packets_to_neighbours_pass_the_host() {
    on_a_node(|node| {
        let outside = outside();
        let network = wires(node);
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        let result = node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();
        assert_eq!((result.interfaces.len(), result.ips[1].interface), (2, Some(1)));
        assert_eq!(result.interfaces[1].mtu, Some(1400));
        let routes = a.run("ip route") + &a.run("ip -6 route");
        for route in [
            "default via 10.1.0.1 dev eth0",
            "10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2",
            "10.1.0.1 dev eth0 scope link src 10.1.0.2",
            "fd00:1::/64 via fd00:1::1 dev eth0 src fd00:1::2",
        ] {
            assert!(routes.contains(route), "{routes}");
        }
        assert!(!routes.contains("proto kernel scope link") && !routes.contains("fd00:1::/64 dev"), "{routes}");
        for target in ["10.1.0.1", "10.1.0.3", "192.0.2.2", "fd00:1::1", "fd00:1::3", "fd00:2::2"] {
            assert!(reaches(&a, target), "{target}");
        }
        assert_eq!(source_seen_by(&b.namespace, &a, "10.1.0.3").to_string(), "10.1.0.2");
        assert_eq!(source_seen_by(&outside, &a, "192.0.2.2").to_string(), "192.0.2.1");
        assert_eq!(source_seen_by(&outside, &a, "fd00:2::2").to_string(), "fd00:2::1");

        node.runtime.check(&network, &a.attachment).unwrap();
        run("ip route del 10.1.0.2");
        assert_eq!(code(node.runtime.check(&network, &a.attachment)), 103);
        for _ in 0..2 {
            node.runtime.del(&network, &a.attachment).unwrap();
        }
        assert_eq!((veths().len(), node.leases("net").len(), a.has_eth0()), (1, 2, false));
        assert!(!run("nft list ruleset").contains("pod-a") && reaches(&b, "10.1.0.1"));
        node.runtime.gc(&network, &[]).unwrap();
        assert_eq!((veths().len(), node.leases("net").len(), b.has_eth0()), (0, 0, false));
        assert!(!run("nft list ruleset").contains("pod-b"));
    });
}

#[test]
fn a_wire_that_cannot_be_laid_leaves_nothing() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        let ipam = |more: serde_json::Value| {
            let mut ipam = node.ipam();
            ipam.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ipam
        };
        let unreachable = ipam(json!({"routes": [{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]}));
        for (plugin, expected, why) in [
            (json!({"ipMasq": true, "ipam": unreachable}), 100, "Nexthop has invalid gateway"),
            (json!({"ipMasqBackend": "iptables", "ipam": ipam(json!({}))}), 2, "\"ipMasqBackend\""),
            (json!({"mtu": 20, "ipam": ipam(json!({}))}), 100, "Invalid argument"),
            (json!({}), 7, "\"ipam\""),
        ] {
            let mut plugin = plugin;
            plugin["type"] = json!("ptp");
            let error = node.runtime.add(&node.network(plugin), &pod.attachment).unwrap_err();
            assert!(error.code() == expected && error.to_string().contains(why), "{error}");
            assert_eq!((veths(), node.leases("net"), pod.has_eth0()), (vec![], vec![], false));
            assert!(!run("nft list ruleset").contains("pod-a"));
        }
    });
}
