//! Devices of the host that a container has for a time: `host-device`.

use podwire_cni::runtime::Attachment;
use podwire_kernel::route::{LinkChange, Route, RouteSocket};
use serde_json::json;

use crate::support::{Pod, cabled, call, code, on_a_node, run};

#[test]
fn a_device_moves_into_the_container_and_back() {
    on_a_node(|node| {
        let outside = cabled();
        // On the host it has another name than in the container.
        let mut host = RouteSocket::open().unwrap();
        let eth0 = host.link("eth0").unwrap().unwrap();
        host.change_link(eth0.index, &[LinkChange::Up(false)]).unwrap();
        host.change_link(eth0.index, &[LinkChange::Name("uplink")]).unwrap();
        let network = node.network(json!({"type": "host-device", "device": "uplink", "ipam": node.ipam()}));
        let pod = Pod::new("pod-a");
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        assert_eq!(result.interfaces[0].name, "eth0");
        assert_eq!(result.interfaces[0].mac, eth0.mac.map(|mac| mac.to_string()));
        assert_eq!(host.link("uplink").unwrap(), None);
        outside.run("ping -c 3 -i 0.2 -W 20 10.1.0.10");
        node.runtime.check(&network, &pod.attachment).unwrap();
        node.runtime.status(&network).unwrap();
        let error = node.runtime.add(&network, &Pod::new("pod-b").attachment).unwrap_err();
        assert_eq!(error.code(), 7);
        assert!(error.to_string().contains("does a container have it?"), "{error}");
        for _ in 0..2 {
            node.runtime.del(&network, &pod.attachment).unwrap();
        }
        let back = host.link("uplink").unwrap().unwrap();
        assert_eq!((back.mac, back.up, back.alias), (eth0.mac, false, None));
        assert_eq!((pod.has_eth0(), node.leases("net")), (false, vec![]));
    });
}

#[test]
fn a_device_is_found_by_its_mac_address_and_keeps_its_alias_when_it_is_not_ours() {
    on_a_node(|node| {
        let _outside = cabled();
        run("ip link set eth0 address 02:00:00:00:00:07");
        run("ip link set eth0 alias spare");
        let network = node.network(json!({"type": "host-device", "hwaddr": "02:00:00:00:00:07"}));
        let pod = Pod::new("pod-a");
        // Never added.
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert!(run("ip link show eth0").contains("alias spare"));
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        assert!(result.ips.is_empty());
        let seen = pod.run("ip link show eth0");
        assert!(seen.contains("02:00:00:00:00:07") && seen.contains(",UP"), "{seen}");
        // As the reference plugin leaves it.
        pod.run("ip link set eth0 alias eth0");
        node.runtime.del(&network, &pod.attachment).unwrap();
        let seen = run("ip link show eth0");
        assert!(seen.contains("02:00:00:00:00:07") && !seen.contains("alias"), "{seen}");
        // A virtual device goes with its container.
        node.runtime.add(&network, &pod.attachment).unwrap();
        let gone = Attachment { netns: None, ..pod.attachment.clone() };
        drop(pod);
        node.runtime.del(&network, &gone).unwrap();
    });
}

#[test]
fn a_failed_add_gives_the_device_back() {
    on_a_node(|node| {
        let _outside = cabled();
        let pod = Pod::new("pod-a");
        let nowhere = json!({"type": "static", "addresses": [{"address": "10.1.0.9/24"}],
            "routes": [{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]});
        for (fields, expected, why) in [
            (json!({"device": "eth0", "ipam": {"type": "nobody"}}), 7, "no plugin \"nobody\""),
            (json!({"device": "eth0", "ipam": {"type": "static"}}), 102, "gave no address"),
            (json!({"device": "eth0", "ipam": nowhere}), 100, "Nexthop has invalid gateway"),
            (json!({"device": "eth7"}), 7, "\"device\" \"eth7\""),
            (json!({"hwaddr": "02:ff:ff:ff:ff:ff"}), 7, "\"hwaddr\""),
            (json!({"hwaddr": "ff"}), 7, "not a MAC address"),
            (json!({"kernelpath": "/etc"}), 7, "below /sys/devices"),
            (json!({"pciBusID": "0000:ff:1f.7"}), 7, "\"pciBusID\""),
            (json!({"runtimeConfig": {"deviceID": "0000:ff:1f.7"}}), 7, "\"runtimeConfig.deviceID\""),
            (json!({}), 7, "says which device"),
        ] {
            // The plugin alone: the runtime would call DEL after the failure.
            let mut config = fields;
            config.as_object_mut().unwrap().extend([
                ("cniVersion".to_owned(), json!("1.1.0")),
                ("name".to_owned(), json!("net")),
                ("type".to_owned(), json!("host-device")),
            ]);
            let (report, success) = call(node, "host-device", "ADD", &pod.attachment, &config);
            assert!(!success && report["code"] == expected, "{config}: {report}");
            assert!(report["msg"].as_str().unwrap().contains(why), "{config}: {report}");
            let seen = run("ip link show eth0");
            assert!(!pod.has_eth0() && seen.contains(",UP") && !seen.contains("alias"), "{config}: {seen}");
        }
        let taken = node.network(json!({"type": "host-device", "device": "lo"}));
        assert_eq!(code(node.runtime.add(&taken, &pod.attachment)), 100);
    });
}

#[test]
fn only_marks_of_its_own_are_its_marks() {
    on_a_node(|node| {
        let _outside = cabled();
        let network = node.network(json!({"type": "host-device", "device": "eth0"}));
        let pod = Pod::new("pod-a");
        // On the host: whoever needs the mark finds it as it was.
        for others in ["podwire-device:net/pod-b/eth0 was uplink", "podwire-cni:net/pod-b/eth0"] {
            let mark = |alias: &str| {
                let mut host = RouteSocket::open().unwrap();
                let index = host.link("eth0").unwrap().unwrap().index;
                host.change_link(index, &[LinkChange::Alias(alias)]).unwrap();
            };
            mark(others);
            let error = node.runtime.add(&network, &pod.attachment).unwrap_err();
            assert!(error.code() == 11 && error.to_string().contains(others), "{error}");
            let seen = run("ip link show eth0");
            assert!(!pod.has_eth0() && seen.contains(",UP") && seen.contains(&format!("alias {others}")), "{seen}");
            mark("");
        }
        // In the container: what somebody else has written there is no name, and DEL takes nothing.
        node.runtime.add(&network, &pod.attachment).unwrap();
        for others in ["spare", "rack 7", "podwire-device:net/pod-b/eth0 was eth0", "podwire-cni:net/pod-a/eth0"] {
            let mut inside = RouteSocket::open_in(std::os::fd::AsFd::as_fd(&pod.namespace)).unwrap();
            let index = inside.link("eth0").unwrap().unwrap().index;
            inside.change_link(index, &[LinkChange::Alias(others)]).unwrap();
            node.runtime.del(&network, &pod.attachment).unwrap();
            assert!(pod.run("ip link show eth0").contains(&format!("alias {others}")));
        }
        // After an ADD that was cut off, its own mark says what the device was called.
        pod.run("ip link set eth0 alias eth0");
        node.runtime.del(&network, &pod.attachment).unwrap();
        let mut host = RouteSocket::open().unwrap();
        let eth0 = host.link("eth0").unwrap().unwrap();
        host.change_link(eth0.index, &[LinkChange::Alias("podwire-device:net/pod-a/eth0 was uplink")]).unwrap();
        node.runtime.add(&network, &pod.attachment).unwrap();
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert_eq!(host.link("uplink").unwrap().map(|link| (link.index, link.alias)), Some((eth0.index, None)));
    });
}
