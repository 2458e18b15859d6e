//! Plugins that change what others made: bandwidth, tuning, firewall.

use std::{fs, net::UdpSocket, time::Duration};

use podwire_cni::runtime::NetworkConfig;
use podwire_kernel::route::{Route, RouteSocket};
use serde_json::{Value, json};

use crate::support::{Node, Pod, call, code, on_a_node, run, veths};

/// A bridge, and `plugin` after it.
fn network(node: &Node, plugin: Value) -> NetworkConfig {
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "dataDir": node.folder.join("networks"), "subnet": "10.1.0.0/24"},
    });
    let list = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [bridge, plugin]});
    NetworkConfig::from_json(list.to_string().as_bytes(), "test").unwrap()
}

fn refused(node: &Node, plugin: Value, expected: u32, why: &str) {
    let pod = Pod::new("refused");
    let error = node.runtime.add(&network(node, plugin), &pod.attachment).unwrap_err();
    assert_eq!(error.code(), expected, "{error}");
    assert!(error.to_string().contains(why), "{error}");
    assert!(!pod.has_eth0() && !node.leases("net").contains(&"10.1.0.2".to_owned()));
}

fn links() -> Vec<String> {
    let links = RouteSocket::open().unwrap().links().unwrap();
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("bwp")).collect()
}

#[test]
fn traffic_is_limited_in_both_directions() {
    on_a_node(|node| {
        let network = network(node, json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
        let mut pod = Pod::new("pod-a");
        // A packet and a half at once, then a packet in ten seconds; keys as containerd writes them.
        let limits = json!({"IngressRate": 1200, "IngressBurst": 18_000, "EgressRate": 1200, "EgressBurst": 18_000});
        pod.attachment.capabilities.insert("bandwidth".to_owned(), limits);
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        let (veth, ifb) = (veths().remove(0), links().remove(0));
        assert_eq!(result.interfaces.last().unwrap().name, ifb);
        assert!(run(&format!("tc qdisc show dev {veth}")).contains("tbf 1: root refcnt"), "{veth}");
        assert!(run(&format!("tc filter show dev {veth} parent ffff:")).contains(&format!("to device {ifb}")));
        node.runtime.check(&network, &pod.attachment).unwrap();

        let bind = |address: &'static str| {
            move || {
                let socket = UdpSocket::bind(address).unwrap();
                Ok::<_, podwire_kernel::Error>(socket)
            }
        };
        let (host, inside) = (bind("10.1.0.1:7000")().unwrap(), pod.namespace.run(bind("10.1.0.2:7000")).unwrap());
        for (from, to) in [(&host, &inside), (&inside, &host)] {
            for _ in 0..20 {
                from.send_to(&[7; 1400], to.local_addr().unwrap()).unwrap();
            }
            let receive = |patience| {
                to.set_read_timeout(Some(patience)).unwrap();
                to.recv(&mut [0; 1500]).ok()
            };
            receive(Duration::from_secs(20)).expect("the first passes, however late");
            let received = 1 + std::iter::from_fn(|| receive(Duration::from_millis(500))).count();
            assert!((1..5).contains(&received), "{received} of 20 packets came through");
        }

        run(&format!("tc qdisc del dev {veth} root"));
        assert_eq!(code(node.runtime.check(&network, &pod.attachment)), 103);
        for _ in 0..2 {
            node.runtime.del(&network, &pod.attachment).unwrap();
        }
        assert_eq!((links(), veths()), (vec![], vec![]));
    });
}

#[test]
fn limits_are_checked_and_cleaned_up() {
    on_a_node(|node| {
        let limited = |limits: Value| {
            let mut plugin = limits;
            plugin["type"] = json!("bandwidth");
            plugin
        };
        refused(node, limited(json!({"ingressRate": 1})), 7, "ingressRate needs ingressBurst");
        refused(node, limited(json!({"unshapedSubnets": ["10.0.0.0/8"]})), 2, "unshapedSubnets");
        refused(node, limited(json!({"egressBurst": 1})), 7, "egressBurst needs egressRate");
        refused(node, limited(json!({"egressRate": 1, "egressBurst": 1_u64 << 40})), 7, "more than 4 GiB");
        refused(
            node,
            limited(json!({"egressRate": 8000, "egressBurst": 8000})),
            7,
            "lets no packet through: at least 12112",
        );
        let network = network(node, limited(json!({"egressRate": 8_000_000, "egressBurst": 2_147_483_647})));
        let (kept, lost) = (Pod::new("kept"), Pod::new("lost"));
        let result = node.runtime.add(&network, &kept.attachment).unwrap();
        node.runtime.add(&network, &lost.attachment).unwrap();
        node.runtime.gc(&network, std::slice::from_ref(&kept.attachment)).unwrap();
        assert_eq!(links(), [result.interfaces.last().unwrap().name.clone()]);
        node.runtime.check(&network, &kept.attachment).unwrap();
    });
}

#[test]
fn an_interface_is_tuned_and_given_back_as_it_was() {
    on_a_node(|node| {
        let folder = node.folder.join("tuning");
        let network = network(
            node,
            json!({
                "type": "tuning", "capabilities": {"mac": true}, "dataDir": folder, "mtu": 1300, "promisc": true,
                "allmulti": true, "txQLen": 77, "mac": "02:00:00:00:00:01",
                "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": 500},
            }),
        );
        let mut pod = Pod::new("pod-a");
        pod.attachment.capabilities.insert("mac".to_owned(), json!("02:00:00:00:00:02"));
        let before = run("sysctl -n net.core.somaxconn");
        node.runtime.status(&network).unwrap();
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        let eth0 = result.interfaces.last().unwrap();
        assert_eq!((eth0.mac.as_deref(), eth0.mtu), (Some("02:00:00:00:00:02"), Some(1300)));
        let seen = pod.run("ip -d link show eth0");
        for wanted in ["link/ether 02:00:00:00:00:02", "mtu 1300", "promiscuity 1", "allmulti 1", "qlen 77"] {
            assert!(
                seen.contains(wanted) || wanted.starts_with("allmulti") && seen.contains("ALLMULTI"),
                "{wanted}: {seen}"
            );
        }
        assert_eq!(pod.run("sysctl -n net.ipv4.conf.eth0.arp_filter net.core.somaxconn"), "1\n500\n");
        assert_eq!(run("sysctl -n net.core.somaxconn"), before, "the node's own");
        node.runtime.check(&network, &pod.attachment).unwrap();
        for change in ["ip link set eth0 mtu 1280", "ip link set eth0 promisc off", "sysctl -qw net.core.somaxconn=501"]
        {
            pod.run(change);
            assert_eq!(code(node.runtime.check(&network, &pod.attachment)), 103, "{change}");
            for undo in
                ["ip link set eth0 mtu 1300", "ip link set eth0 promisc on", "sysctl -qw net.core.somaxconn=500"]
            {
                pod.run(undo);
            }
        }
        // The tuning alone is undone; the file is the reference plugin's.
        let file = folder.join("pod-a_eth0.json");
        let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let expected =
            json!({"mac": "0a:58:0a:01:00:02", "promisc": false, "mtu": 1500, "allmulti": false, "txQLen": 1000});
        assert_eq!(kept, expected);
        let alone = NetworkConfig { plugins: network.plugins[1..].to_vec(), ..network.clone() };
        node.runtime.del(&alone, &pod.attachment).unwrap();
        let seen = pod.run("ip -d link show eth0");
        assert!(
            seen.contains("0a:58:0a:01:00:02") && seen.contains("mtu 1500") && seen.contains("qlen 1000"),
            "{seen}"
        );
        assert!(!seen.contains("PROMISC") && !seen.contains("ALLMULTI") && !file.exists(), "{seen}");
        node.runtime.del(&network, &pod.attachment).unwrap();

        for (fields, why) in [
            (json!({"sysctl": {"kernel.shmmax": "1"}}), "\"kernel.shmmax\" is not below net"),
            (json!({"sysctl": {"net.ipv4.ip_forward": [1]}}), "neither text nor number"),
            (json!({"mac": "nonsense"}), "\"mac\": not a MAC address"),
        ] {
            let mut plugin = fields;
            plugin["type"] = json!("tuning");
            refused(node, plugin, 7, why);
        }
        refused(node, json!({"type": "tuning", "dataDir": folder, "mtu": 20}), 100, "Invalid argument");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "a failed ADD leaves nothing");
    });
}

#[test]
fn containers_are_let_through_the_firewall() {
    on_a_node(|node| {
        let network = network(node, json!({"type": "firewall"}));
        let listed = || run("nft list table ip podwire-firewall");
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();
        let seen = listed();
        for wanted in [
            "10.1.0.2 comment \"net/pod-a/eth0\"",
            "10.1.0.3 comment \"net/pod-b/eth0\"",
            "ip saddr @containers accept",
            "ip daddr @containers ct state established,related accept",
        ] {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        assert_eq!(seen.matches("ip saddr @containers accept").count(), 1, "{seen}");
        node.runtime.check(&network, &a.attachment).unwrap();
        node.runtime.del(&network, &a.attachment).unwrap();
        node.runtime.del(&network, &a.attachment).unwrap();
        assert!(!listed().contains("10.1.0.2") && listed().contains("10.1.0.3"));
        run("nft flush chain ip podwire-firewall forward");
        assert_eq!(code(node.runtime.check(&network, &b.attachment)), 103);
        node.runtime.gc(&network, &[]).unwrap();
        assert!(!listed().contains("10.1.0.3"));
        for (fields, why) in [
            (json!({"backend": "iptables"}), "\"backend\" is not supported"),
            (json!({"ingressPolicy": "same-bridge"}), "\"ingressPolicy\" is not supported"),
            (json!({"iptablesAdminChainName": "X"}), "\"iptablesAdminChainName\" is not supported"),
        ] {
            let mut plugin = fields;
            plugin["type"] = json!("firewall");
            refused(node, plugin, 2, why);
        }
    });
}

#[test]
fn a_container_that_is_not_let_through_whole_is_not_let_through() {
    on_a_node(|node| {
        // What stands in the way of the second address.
        run("nft add table ip6 podwire-firewall");
        run("nft add set ip6 podwire-firewall containers {type inet_service;}");
        let pod = Pod::new("pod-a");
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "firewall",
            "prevResult": {"ips": [{"address": "10.1.0.5/24"}, {"address": "fd01::5/64"}]},
        });
        let (report, added) = call(node, "firewall", "ADD", &pod.attachment, &config);
        assert!(!added && report["code"] == 100, "{report}");
        let seen = run("nft list table ip podwire-firewall");
        assert!(seen.contains("set containers") && !seen.contains("pod-a"), "{seen}");
        run("nft delete table ip6 podwire-firewall");
        let (result, added) = call(node, "firewall", "ADD", &pod.attachment, &config);
        assert!(added && result["ips"].as_array().unwrap().len() == 2, "{result}");
        for family in ["ip", "ip6"] {
            assert!(run(&format!("nft list table {family} podwire-firewall")).contains("net/pod-a/eth0"));
        }
        config.as_object_mut().unwrap().remove("prevResult");
        assert_eq!(call(node, "firewall", "DEL", &pod.attachment, &config), (Value::Null, true));
        assert!(!run("nft list ruleset").contains("pod-a"));
    });
}
