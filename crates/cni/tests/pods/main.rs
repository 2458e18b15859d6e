//! The real program in real namespaces, called as a runtime calls it; stock tools are the witnesses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bridge;
mod callers;
mod host_device;
mod meta;
mod no_nftables;
mod portmap;
mod protocol;
mod ptp;
mod routes;
mod sriov;
mod static_ipam;
mod support;
mod upper;

use std::{fs, os::fd::AsFd, process::Command};

use podwire_cni::{
    CniResult, PLUGINS,
    runtime::{Attachment, NetworkConfig, Runtime},
};
use podwire_kernel::{
    ns::{Kind, Namespace},
    route::{LinkChange, Route, RouteFilter, RouteSocket},
};
use serde_json::{Value, json};

use support::{Node, Pod, call, code, on_a_node, run, veths};

#[test]
fn two_pods_of_a_node_reach_each_other() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.0.0");
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        let result = node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();

        assert_eq!(result.ips[0].address.to_string(), "10.244.1.2/24");
        assert_eq!(result.interfaces[2].name, "eth0");
        assert_eq!(result.interfaces[2].mac.as_deref(), Some("0a:58:0a:f4:01:02"));
        let seen = a.run("ip -d address show eth0");
        assert!(seen.contains("inet 10.244.1.2/24 brd 10.244.1.255 scope global eth0"), "{seen}");
        assert!(seen.contains("mtu 1450") && seen.contains("state UP"), "{seen}");
        let routes = a.run("ip route");
        assert!(routes.contains("default via 10.244.1.1 dev eth0"), "{routes}");
        assert!(routes.contains("10.244.0.0/16 via 10.244.1.1 dev eth0"), "{routes}");
        let bridge = run("ip -d address show cni0");
        assert!(bridge.contains("inet 10.244.1.1/24") && bridge.contains("mtu 1450"), "{bridge}");
        assert!(run("bridge -d link").matches("hairpin on").count() == 2);
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");

        a.run("ping -c 1 -W 20 10.244.1.3");
        b.run("ping -c 1 -W 20 10.244.1.2");
        a.run("ping -c 1 -W 20 10.244.1.1");

        node.runtime.check(&network, &a.attachment).unwrap();
        for _ in 0..2 {
            node.runtime.del(&network, &a.attachment).unwrap();
        }
        assert!(!a.has_eth0());
        assert_eq!((veths().len(), node.leases("cbr0")), (1, vec!["10.244.1.3".to_owned()]));
        assert!(!node.folder.join("flannel/pod-a").exists());
        b.run("ping -c 1 -W 20 10.244.1.1");
    });
}

#[test]
fn a_pod_has_both_families() {
    on_a_node(|node| {
        node.write_subnet_env("FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n");
        let network = node.flannel("0.3.1");
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        let result = node.runtime.add(&network, &a.attachment).unwrap();
        node.runtime.add(&network, &b.attachment).unwrap();
        let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(addresses, ["10.244.1.2/24", "fd00:10:244:1::2/64"]);
        a.run("ping -c 1 -W 20 10.244.1.3");
        a.run("ping -c 1 -W 20 fd00:10:244:1::3");
        let routes = a.run("ip -6 route");
        assert!(routes.contains("default via fd00:10:244:1::1 dev eth0"), "{routes}");
        node.runtime.del(&network, &a.attachment).unwrap();
        assert_eq!(node.leases("cbr0"), ["10.244.1.3", "fd00:10:244:1::3"]);
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        let ipam = json!({"subnet": "10.1.0.0/24"});
        let nothing = |network: &NetworkConfig, expected: u32, why: &str| {
            let error = node.runtime.add(network, &pod.attachment).unwrap_err();
            assert_eq!(error.code(), expected, "{error}");
            assert!(error.to_string().contains(why), "{error}");
            assert!(!pod.has_eth0());
            assert_eq!((veths(), node.leases("net")), (vec![], vec![]));
        };
        let masquerade = json!({"ipMasq": true, "ipMasqBackend": "iptables", "ipam": ipam});
        nothing(&node.bridge(masquerade), 2, "\"ipMasqBackend\" is not supported");
        nothing(&node.bridge(json!({"mtu": 20, "ipam": ipam})), 100, "Invalid argument");
        nothing(&node.bridge(json!({"bridge": "lo", "ipam": ipam})), 7, "lo exists and is no bridge");
        let unreachable = json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]});
        nothing(&node.bridge(json!({"ipMasq": true, "ipam": unreachable})), 100, "Nexthop has invalid gateway");
        let full = json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"});
        nothing(&node.bridge(json!({"ipam": full})), 102, "every address of 10.1.0.1-10.1.0.1 is taken");

        let first = node.bridge(json!({"bridge": "br1", "isGateway": true, "ipam": {"subnet": "10.2.0.0/24"}}));
        node.runtime.add(&first, &pod.attachment).unwrap();
        node.runtime.del(&first, &pod.attachment).unwrap();
        let rival = json!({"bridge": "br1", "isGateway": true, "ipam": ipam});
        nothing(&node.bridge(rival.clone()), 101, "bridge br1 has address 10.2.0.1/24, not 10.1.0.1/24");
        let mut forced = rival;
        forced["forceAddress"] = json!(true);
        forced["dns"] = json!({"nameservers": ["10.96.0.10"]});
        let result = node.runtime.add(&node.bridge(forced), &pod.attachment).unwrap();
        assert_eq!(result.dns.nameservers, ["10.96.0.10"]);
        let seen = run("ip address show br1");
        assert!(seen.contains("10.1.0.1/24") && !seen.contains("10.2.0.1"), "{seen}");
    });
}

#[test]
fn an_interface_that_exists_is_not_touched() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.0.0");
        let pod = Pod::new("pod-a");
        node.runtime.add(&network, &pod.attachment).unwrap();
        // The plugin alone: the runtime would call DEL after the failure.
        let config = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge",
            "ipam": {"type": "host-local", "subnet": "10.244.1.0/24", "dataDir": node.folder.join("networks")},
        });
        let (stdout, success) = call(node, "bridge", "ADD", &pod.attachment, &config);
        assert_eq!((success, stdout["code"].as_u64()), (false, Some(101)));
        assert_eq!(stdout["msg"], "container pod-a has an interface eth0 already");
        assert_eq!(node.leases("cbr0"), ["10.244.1.2"]);
        pod.run("ping -c 1 -W 20 10.244.1.1");
    });
}

#[test]
fn del_succeeds_when_half_is_gone() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.0.0");
        // Never added.
        node.runtime.del(&network, &Pod::new("never").attachment).unwrap();
        // The namespace cannot be found any more, though it is still alive.
        let mut pod = Pod::new("pod-a");
        node.runtime.add(&network, &pod.attachment).unwrap();
        assert_eq!(veths().len(), 1);
        pod.attachment.netns = None;
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert_eq!((veths().len(), node.leases("cbr0").len(), pod.has_eth0()), (0, 0, false));
        // Only the namespace's file is left, as after a reboot.
        node.write("netns", "");
        node.runtime.add(&network, &Pod::new("pod-c").attachment).unwrap();
        let after_reboot = Attachment::new("pod-c", node.folder.join("netns"), "eth0");
        node.runtime.del(&network, &after_reboot).unwrap();
        assert_eq!((veths().len(), node.leases("cbr0").len()), (0, 0));
        assert_eq!(code(node.runtime.add(&network, &after_reboot)), 3);
        // Nor result, nor flanneld's file, nor interface.
        let pod = Pod::new("pod-b");
        node.runtime.add(&network, &pod.attachment).unwrap();
        let mut inside = RouteSocket::open_in(pod.namespace.as_fd()).unwrap();
        let eth0 = inside.link("eth0").unwrap().unwrap();
        inside.delete_link(eth0.index).unwrap();
        fs::remove_dir_all(node.folder.join("cache")).unwrap();
        fs::remove_file(node.folder.join("subnet.env")).unwrap();
        node.runtime.del(&network, &pod.attachment).unwrap();
        assert_eq!(node.leases("cbr0").len(), 0);
    });
}

#[test]
fn check_notices_what_is_missing_and_tolerates_more() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.1.0");
        let pod = Pod::new("pod-a");
        assert_eq!(code(node.runtime.check(&network, &pod.attachment)), 3);
        node.runtime.add(&network, &pod.attachment).unwrap();
        pod.run("ip address add 10.99.0.1/32 dev eth0");
        pod.run("ip route add 10.98.0.0/16 via 10.244.1.1");
        node.runtime.check(&network, &pod.attachment).unwrap();
        pod.run("ip route del 10.244.0.0/16");
        let error = node.runtime.check(&network, &pod.attachment).unwrap_err();
        assert_eq!(error.code(), 103);
        assert!(error.to_string().contains("the route to 10.244.0.0/16 is gone"), "{error}");
        pod.run("ip route add 10.244.0.0/16 via 10.244.1.1");
        node.runtime.check(&network, &pod.attachment).unwrap();
        let mut host = RouteSocket::open().unwrap();
        let veth = host.link(&veths()[0]).unwrap().unwrap();
        host.change_link(veth.index, &[LinkChange::Master(None)]).unwrap();
        assert_eq!(code(node.runtime.check(&network, &pod.attachment)), 103);
    });
}

#[test]
fn gc_releases_what_nobody_owns() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.1.0");
        let (kept, lost) = (Pod::new("kept"), Pod::new("lost"));
        node.runtime.add(&network, &kept.attachment).unwrap();
        node.runtime.add(&network, &lost.attachment).unwrap();
        node.runtime.gc(&network, std::slice::from_ref(&kept.attachment)).unwrap();
        assert_eq!((veths().len(), node.leases("cbr0")), (1, vec!["10.244.1.2".to_owned()]));
        assert!(node.folder.join("flannel/kept").exists() && !node.folder.join("flannel/lost").exists());
        node.runtime.check(&network, &kept.attachment).unwrap();
    });
}

#[test]
fn status_tells_whether_flanneld_is_there() {
    on_a_node(|node| {
        let network = node.flannel("1.1.0");
        let error = node.runtime.status(&network).unwrap_err();
        assert_eq!(error.code(), 50);
        assert!(error.to_string().contains("flanneld has not written"), "{error}");
        assert_eq!(code(node.runtime.add(&network, &Pod::new("pod-a").attachment)), 11);
        node.write_subnet_env("");
        node.runtime.status(&network).unwrap();
        let elsewhere = Runtime { bin_dirs: vec!["/nonexistent".into()], ..node.runtime.clone() };
        assert!(elsewhere.status(&network).unwrap_err().to_string().contains("there is no plugin \"flannel\""));
    });
}

#[test]
fn loopback_comes_up() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        let config = json!({"cniVersion": "0.3.1", "name": "lo", "type": "loopback"});
        let lo = Attachment { ifname: "lo".to_owned(), ..pod.attachment.clone() };
        let (result, success) = call(node, "loopback", "ADD", &lo, &config);
        assert!(success, "{result}");
        assert_eq!(result["ips"][0], json!({"version": "4", "interface": 0, "address": "127.0.0.1/8"}));
        CniResult::from_json(&result, "result").unwrap();
        pod.run("ping -c 1 -W 20 127.0.0.1");
        pod.run("ping -c 1 -W 20 ::1");
        assert_eq!(call(node, "loopback", "DEL", &lo, &config), (Value::Null, true));
        let gone = Attachment { netns: None, ..lo };
        assert_eq!(call(node, "loopback", "DEL", &gone, &config), (Value::Null, true));
    });
}

#[test]
fn many_pods_are_added_at_once() {
    on_a_node(|node| {
        node.write_subnet_env("");
        let network = node.flannel("1.0.0");
        let here = Namespace::current(Kind::Net).unwrap();
        let pods: Vec<Pod> = (0..8).map(|n| Pod::new(&format!("pod-{n}"))).collect();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| {
                    here.enter().unwrap();
                    node.runtime.add(&network, &pod.attachment).unwrap();
                });
            }
        });
        assert_eq!((veths().len(), node.leases("cbr0").len()), (8, 8));
        let connected = RouteSocket::open().unwrap().routes(&RouteFilter::MAIN).unwrap();
        assert_eq!(connected.iter().filter(|route| route.destination.to_string() == "10.244.1.0/24").count(), 1);
        // Who has the last address is not known; its own address a pod without a `lo` that is up does not reach.
        let last = |pod: &&Pod| pod.run("ip address show eth0").contains("inet 10.244.1.9/24");
        let other = pods.iter().find(|pod| !last(pod)).unwrap();
        other.run("ping -c 1 -W 20 10.244.1.9");
    });
}

#[test]
fn the_program_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_podwire-cni")).env_remove("CNI_COMMAND").output().unwrap();
    assert!(!output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["code"], 4);
    assert!(report["msg"].as_str().unwrap().contains(&PLUGINS.join(", ")), "{report}");
}

#[test]
fn a_configuration_folder_is_read_and_its_faults_are_named() {
    let node = Node::new();
    let load = || NetworkConfig::load_first(&node.folder.join("net.d"));
    assert_eq!(load().unwrap(), None);
    fs::create_dir(node.folder.join("net.d")).unwrap();
    assert_eq!(load().unwrap(), None);
    node.write("net.d/20-later.conflist", "broken");
    node.write("net.d/README", "not read");
    node.write("net.d/10-one.conf", r#"{"name":"one","cniVersion":"1.0.0","type":"bridge"}"#);
    let one = load().unwrap().unwrap();
    assert_eq!((one.name.as_str(), one.plugins.len()), ("one", 1));
    fs::remove_file(node.folder.join("net.d/10-one.conf")).unwrap();
    let file = node.folder.join("net.d/20-later.conflist").display().to_string();
    for (text, code, complaint) in [
        ("broken", 6, "expected value"),
        (r#"{"name":"x","cniVersion":"1.0.0","plugins":[]}"#, 7, "\"plugins\" is empty"),
        (r#"{"name":"x","cniVersion":"1.0.0","plugins":[{}]}"#, 7, "a plugin without \"type\""),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#, 7, "no \"name\""),
    ] {
        node.write("net.d/20-later.conflist", text);
        let error = load().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(&file) && error.to_string().contains(complaint), "{error}");
    }
}
