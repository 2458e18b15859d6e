//! Interfaces on a device below: `macvlan`, `ipvlan`, `vlan`.

use std::os::fd::AsFd;

use podwire_cni::runtime::{Attachment, NetworkConfig};
use podwire_kernel::route::{Route, RouteSocket};
use serde_json::{Value, json};

use crate::support::{Node, Pod, cabled, call, code, in_the_machine, on_a_node, run};

/// Two containers of the node reach each other and the machine at the other end of the cable, and are gone after DEL.
fn reach_each_other(node: &Node, network: &NetworkConfig, kind: &str) {
    let outside = cabled();
    outside.run("ip route add 10.244.0.0/16 dev eth0");
    let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
    let result = node.runtime.add(network, &a.attachment).unwrap();
    node.runtime.add(network, &b.attachment).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.10/24");
    assert_eq!((result.ips[0].interface, result.interfaces.len()), (Some(0), 1));
    let seen = a.run("ip -d address show eth0");
    assert!(seen.contains(kind) && seen.contains("inet 10.1.0.10/24 brd 10.1.0.255"), "{seen}");
    assert!(seen.contains(result.interfaces[0].mac.as_deref().unwrap()), "{seen}");
    a.run("ping -c 3 -i 0.2 -W 20 10.1.0.11");
    b.run("ping -c 3 -i 0.2 -W 20 10.1.0.1");
    outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.10");
    for pod in [&a, &b] {
        node.runtime.check(network, &pod.attachment).unwrap();
    }
    for _ in 0..2 {
        node.runtime.del(network, &a.attachment).unwrap();
    }
    assert!(!a.has_eth0() && b.has_eth0());
    assert_eq!(node.leases("net"), ["10.1.0.11"]);
    outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.11");
    // The runtime does not know the namespace any more.
    let gone = Attachment { netns: None, ..b.attachment.clone() };
    node.runtime.del(network, &gone).unwrap();
    assert_eq!(node.leases("net"), Vec::<String>::new());
}

fn links_of(pod: &Pod) -> Vec<String> {
    let links = RouteSocket::open_in(pod.namespace.as_fd()).unwrap().links().unwrap();
    // Where the module ipip is loaded, every namespace begins with one of its devices.
    links.into_iter().map(|link| link.name).filter(|name| name != "tunl0").collect()
}

/// Every one of these plugins and fields is refused with this code and word, and nothing is left.
fn refused(node: &Node, rows: &[(Value, u32, &str)]) {
    let pod = Pod::new("pod-a");
    for (plugin, expected, why) in rows {
        // The plugin alone: the runtime would call DEL after the failure.
        let mut config = plugin.clone();
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("net");
        let (report, success) = call(node, plugin["type"].as_str().unwrap(), "ADD", &pod.attachment, &config);
        assert!(!success && report["code"] == *expected, "{plugin}: {report}");
        assert!(report["msg"].as_str().unwrap().contains(why), "{plugin}: {report}");
        assert_eq!((links_of(&pod), node.leases("net")), (vec!["lo".to_owned()], vec![]), "{plugin}");
    }
}

#[test]
fn macvlans_reach_each_other_and_the_world() {
    on_a_node(|node| {
        let network = node.network(json!({"type": "macvlan", "master": "eth0", "ipam": node.ipam()}));
        reach_each_other(node, &network, "macvlan mode bridge");
    });
}

#[test]
fn macvlan_does_as_its_fields_say() {
    on_a_node(|node| {
        let outside = cabled();
        // The device of the default route.
        run("ip address add 10.1.0.2/24 dev eth0");
        run("ip route add default via 10.1.0.1");
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        let ask = |mode: &str| {
            let plugin = json!({
                "type": "macvlan", "mode": mode, "mtu": 1400, "mac": "02:00:00:00:00:01", "bcqueuelen": 77,
                "capabilities": {"mac": true}, "ipam": node.ipam(), "dns": {"nameservers": ["10.1.0.53"]},
            });
            node.network(plugin)
        };
        let mut with_mac = b.attachment.clone();
        with_mac.capabilities.insert("mac".to_owned(), json!("02:00:00:00:00:02"));
        let network = ask("private");
        let result = node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &with_mac).unwrap();
        assert_eq!(result.dns.nameservers, ["10.1.0.53"]);
        assert_eq!(
            (result.interfaces[0].mac.as_deref(), result.interfaces[0].mtu),
            (Some("02:00:00:00:00:01"), Some(1400))
        );
        let seen = a.run("ip -d link show eth0");
        assert!(seen.contains("macvlan mode private bcqueuelen 77") && seen.contains("mtu 1400"), "{seen}");
        assert!(b.run("ip link show eth0").contains("02:00:00:00:00:02"));
        outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.11");
        let separated = a.namespace.run(|| {
            let status = std::process::Command::new("ping").args(["-c", "1", "-W", "1", "10.1.0.11"]).output().unwrap();
            Ok::<_, podwire_kernel::Error>(!status.status.success())
        });
        assert!(separated.unwrap(), "private macvlans do not reach each other");
        node.runtime.status(&network).unwrap();
        assert_eq!(code(node.runtime.check(&ask("vepa"), &a.attachment)), 103);
        a.run("ip link set eth0 address 02:00:00:00:00:09");
        let error = node.runtime.check(&network, &a.attachment).unwrap_err();
        assert!(error.to_string().contains("has MAC address 02:00:00:00:00:09"), "{error}");
    });
}

#[test]
fn macvlan_without_ipam_and_on_a_device_of_the_container() {
    on_a_node(|node| {
        let outside = cabled();
        let pod = Pod::new("pod-a");
        let first = node.network(json!({"type": "macvlan", "master": "eth0"}));
        let result = node.runtime.add(&first, &pod.attachment).unwrap();
        assert!(result.ips.is_empty() && result.interfaces[0].name == "eth0");
        assert!(pod.run("ip link show eth0").contains(",UP"));
        let second = node.network(json!({
            "type": "macvlan", "master": "eth0", "linkInContainer": true,
            "ipam": {"type": "static", "addresses": [{"address": "10.1.0.9/24"}, {"address": "fd01::9/64"}]},
        }));
        let net1 = Attachment { ifname: "net1".to_owned(), ..pod.attachment.clone() };
        node.runtime.add(&second, &net1).unwrap();
        node.runtime.check(&second, &net1).unwrap();
        outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.9");
        outside.run("ping -c 3 -i 0.2 -W 20 fd01::9");
        node.runtime.del(&second, &net1).unwrap();
        assert_eq!(links_of(&pod), ["lo", "eth0"]);
    });
}

#[test]
fn a_macvlan_that_cannot_be_leaves_nothing() {
    on_a_node(|node| {
        let plain = json!({"type": "macvlan", "ipam": node.ipam()});
        let with = |fields: Value| {
            let mut plugin = plain.clone();
            plugin.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            plugin
        };
        refused(node, &[(plain.clone(), 7, "there is no default route")]);
        assert_eq!(code(node.runtime.status(&node.network(with(json!({"master": "eth0"}))))), 50);
        let _outside = cabled();
        let full = json!({"type": "host-local", "subnet": "10.1.0.0/30", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1",
            "dataDir": node.folder.join("networks")});
        let nowhere = json!({"type": "static", "addresses": [{"address": "10.1.0.9/24"}],
            "routes": [{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]});
        refused(
            node,
            &[
                (with(json!({"master": "eth7"})), 7, "there is no device \"eth7\""),
                (with(json!({"master": "eth0", "mode": "tunnel"})), 7, "\"mode\" is \"tunnel\""),
                (with(json!({"master": "eth0", "mtu": 9000})), 7, "more than the 1500 of eth0"),
                (with(json!({"master": "eth0", "mac": "02:00"})), 7, "not a MAC address"),
                (with(json!({"master": "eth0", "mac": "01:00:00:00:00:01"})), 100, "create macvlan"),
                (with(json!({"master": "eth0", "ipam": {"type": "nobody"}})), 7, "no plugin \"nobody\""),
                (with(json!({"master": "eth0", "ipam": {"type": "static"}})), 102, "gave no address"),
                (with(json!({"master": "eth0", "ipam": full})), 102, "is taken"),
                (with(json!({"master": "eth0", "ipam": nowhere})), 100, "Nexthop has invalid gateway"),
            ],
        );
    });
}

#[test]
fn ipvlans_reach_each_other_and_the_world() {
    if !in_the_machine() {
        return;
    }
    on_a_node(|node| {
        let network = node.network(json!({"type": "ipvlan", "master": "eth0", "ipam": node.ipam()}));
        reach_each_other(node, &network, "ipvlan  mode l2");
    });
}

#[test]
fn ipvlan_takes_address_and_device_of_the_plugin_before_it() {
    if !in_the_machine() {
        return;
    }
    on_a_node(|node| {
        let outside = cabled();
        let pod = Pod::new("pod-a");
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "ipvlan", "mode": "l3s",
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.1.0.7/24"}]},
        });
        let (result, success) = call(node, "ipvlan", "ADD", &pod.attachment, &config);
        assert!(success, "{result}");
        assert_eq!(result["ips"][0], json!({"interface": 0, "address": "10.1.0.7/24"}));
        assert!(pod.run("ip -d link show eth0").contains("ipvlan  mode l3s"));
        // At layer 3 the container is behind the node: nobody answers its ARP.
        run("ip address add 10.1.0.2/24 dev eth0");
        outside.run("ip route add 10.1.0.7 via 10.1.0.2");
        outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.7");
        let mut config = config;
        config["prevResult"] = result;
        assert_eq!(call(node, "ipvlan", "CHECK", &pod.attachment, &config), (Value::Null, true));
        assert_eq!(call(node, "ipvlan", "DEL", &pod.attachment, &config), (Value::Null, true));
        refused(
            node,
            &[
                (json!({"type": "ipvlan", "master": "eth0"}), 7, "\"ipam\" is missing"),
                (json!({"type": "ipvlan", "master": "eth0", "mode": "l4"}), 7, "\"mode\" is \"l4\""),
                (json!({"type": "ipvlan", "prevResult": {"interfaces": []}}), 7, "not just one interface"),
            ],
        );
    });
}

#[test]
fn vlans_carry_tagged_frames() {
    if !in_the_machine() {
        return;
    }
    on_a_node(|node| {
        let outside = cabled();
        outside.run("ip link add link eth0 name tagged type vlan id 42");
        outside.run("ip address flush dev eth0");
        outside.run("ip address add 10.1.0.1/24 dev tagged");
        outside.run("ip link set tagged up");
        let pod = Pod::new("pod-a");
        let ask = |id: u16| {
            node.network(json!({"type": "vlan", "master": "eth0", "vlanId": id, "mtu": 1400, "ipam": node.ipam()}))
        };
        let result = node.runtime.add(&ask(42), &pod.attachment).unwrap();
        assert_eq!(result.interfaces[0].mtu, Some(1400));
        let seen = pod.run("ip -d link show eth0");
        assert!(seen.contains("vlan protocol 802.1Q id 42"), "{seen}");
        pod.run("ping -c 3 -i 0.2 -W 20 10.1.0.1");
        node.runtime.check(&ask(42), &pod.attachment).unwrap();
        assert_eq!(code(node.runtime.check(&ask(43), &pod.attachment)), 103);
        // Each tag is one container's.
        let other = Pod::new("pod-b");
        let error = node.runtime.add(&ask(42), &other.attachment).unwrap_err();
        assert!(error.to_string().contains("File exists"), "{error}");
        assert_eq!((links_of(&other), node.leases("net").len()), (vec!["lo".to_owned()], 1));
        node.runtime.del(&ask(42), &pod.attachment).unwrap();
        assert!(!pod.has_eth0() && node.leases("net").is_empty());
        refused(
            node,
            &[
                (json!({"type": "vlan", "vlanId": 42}), 7, "\"master\" is missing"),
                (json!({"type": "vlan", "master": "eth0", "vlanId": 4095}), 7, "\"vlanId\" is 4095"),
                (json!({"type": "vlan", "master": "eth0", "vlanId": 42, "mtu": 9000}), 7, "more than the 1500"),
                (json!({"type": "vlan", "master": "eth0", "vlanId": 42}), 7, "\"ipam\" is missing"),
            ],
        );
    });
}
