//! What the fields of bridge's configuration do to real packets.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use podwire_cni::runtime::NetworkConfig;
use podwire_kernel::ns::Namespace;
use serde_json::{Value, json};

use super::support::{Node, Pod, call, code, on_a_node, run, veths};

/// Whether `pod` gets an answer from `target`, however late.
pub fn reaches(pod: &Pod, target: &str) -> bool {
    pod.succeeds(&format!("ping -c 1 -w 20 {target}"))
}

/// Whether `pod` gets no answer from `target`, as long as an answer takes.
fn is_cut_off(pod: &Pod, target: &str) -> bool {
    !pod.succeeds(&format!("ping -c 1 -W 1 {target}"))
}

/// Whom a packet from `pod` to `target`, an address of `listener`, seems to come from.
pub fn source_seen_by(listener: &Namespace, pod: &Pod, target: &str) -> IpAddr {
    let target: IpAddr = target.parse().unwrap();
    let receiver = listener.visit(|| Ok::<_, podwire_kernel::Error>(UdpSocket::bind((target, 0)).unwrap())).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let to = receiver.local_addr().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = pod.namespace.visit(|| Ok::<_, podwire_kernel::Error>(UdpSocket::bind(any).unwrap())).unwrap();
    sender.send_to(b"who am I", to).unwrap();
    receiver.recv_from(&mut [0; 16]).unwrap().1.ip()
}

/// A machine outside that knows the node, 192.0.2.1 and fd00:2::1, and no route to pods.
pub fn outside() -> Namespace {
    let namespace = Namespace::new_net().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&namespace));
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    run(&format!("ip link add uplink type veth peer name eth0 netns {path}"));
    run("ip link set uplink up");
    run("ip address add 192.0.2.1/24 dev uplink");
    run("ip address add fd00:2::1/64 dev uplink nodad");
    let set_up = || {
        run("ip link set eth0 up");
        run("ip address add 192.0.2.2/24 dev eth0");
        run("ip address add fd00:2::2/64 dev eth0 nodad");
        Ok::<_, podwire_kernel::Error>(())
    };
    namespace.run(set_up).unwrap();
    namespace
}

const BOTH: [[(&str, &str); 1]; 2] = [[("subnet", "10.1.0.0/24")], [("subnet", "fd00:1::/64")]];

/// A network with addresses of both families.
fn dual(node: &Node, mut plugin: Value) -> NetworkConfig {
    let ranges: Vec<Value> = BOTH.iter().map(|[(key, subnet)]| json!([{*key: subnet}])).collect();
    plugin["isDefaultGateway"] = json!(true);
    plugin["ipam"] = json!({"ranges": ranges});
    node.bridge(plugin)
}

#[test]
fn beyond_its_network_a_container_has_the_address_of_the_host() {
    on_a_node(|node| {
        let outside = outside();
        let network = dual(node, json!({"ipMasq": true}));
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        for pod in [&a, &b] {
            node.runtime.add(&network, &pod.attachment).unwrap();
            node.runtime.check(&network, &pod.attachment).unwrap();
        }
        assert_eq!(source_seen_by(&outside, &a, "192.0.2.2").to_string(), "192.0.2.1");
        assert_eq!(source_seen_by(&outside, &a, "fd00:2::2").to_string(), "fd00:2::1");
        assert!(reaches(&a, "192.0.2.2") && reaches(&b, "fd00:2::2"));
        assert_eq!(source_seen_by(&b.namespace, &a, "10.1.0.3").to_string(), "10.1.0.2");
        assert_eq!(source_seen_by(&b.namespace, &a, "fd00:1::3").to_string(), "fd00:1::2");
        let listed = run("nft list table ip podwire-masquerade");
        assert!(listed.contains(r#"10.1.0.2 comment "net/pod-a/eth0" : goto beyond-10.1.0.0/24"#), "{listed}");
        assert!(listed.contains("ip daddr != 10.1.0.0/24 ip daddr != 224.0.0.0/4 masquerade"), "{listed}");

        for _ in 0..2 {
            node.runtime.del(&network, &a.attachment).unwrap();
        }
        let listed = run("nft list ruleset");
        assert!(!listed.contains("pod-a") && listed.matches("net/pod-b/eth0").count() == 2, "{listed}");
        run("nft delete element ip6 podwire-masquerade pods { fd00:1::3 }");
        let error = node.runtime.check(&network, &b.attachment).unwrap_err();
        assert!(error.to_string().contains("fd00:1::3 is not masqueraded"), "{error}");
        node.runtime.gc(&network, &[]).unwrap();
        assert!(!run("nft list ruleset").contains("net/"));
        // The runtime knows nothing any more, and somebody has swept the rules away.
        node.runtime.add(&network, &a.attachment).unwrap();
        std::fs::remove_dir_all(node.folder.join("cache")).unwrap();
        run("nft flush chain ip podwire-masquerade postrouting");
        node.runtime.del(&network, &a.attachment).unwrap();
        assert!(!run("nft list ruleset").contains("net/"));
    });
}

#[test]
fn isolated_ports_reach_the_gateway_only() {
    on_a_node(|node| {
        let network = dual(node, json!({"portIsolation": true}));
        let (a, b) = (Pod::new("pod-a"), Pod::new("pod-b"));
        for pod in [&a, &b] {
            node.runtime.add(&network, &pod.attachment).unwrap();
        }
        assert!(reaches(&a, "10.1.0.1") && reaches(&b, "fd00:1::1"));
        assert!(is_cut_off(&a, "10.1.0.3") && is_cut_off(&b, "fd00:1::2"));
        node.runtime.check(&network, &a.attachment).unwrap();
        run(&format!("bridge link set dev {} isolated off", veths()[0]));
        assert_eq!([&a, &b].iter().filter(|pod| node.runtime.check(&network, &pod.attachment).is_ok()).count(), 1);
    });
}

/// Two interfaces upon the pod's that send each other frames by way of the switch outside, which is the bridge.
#[test]
fn a_hairpin_sends_frames_back() {
    on_a_node(|node| {
        let reflects = |hairpin: bool| {
            let pod = Pod::new("pod-a");
            let network = dual(node, json!({"hairpinMode": hairpin}));
            node.runtime.add(&network, &pod.attachment).unwrap();
            let (a, b) = (Pod::new("inner-a"), Pod::new("inner-b"));
            for (inner, address) in [(&a, "10.9.0.1/24"), (&b, "10.9.0.2/24")] {
                let path = inner.attachment.netns.as_deref().unwrap().display();
                pod.run(&format!("ip link add link eth0 name vepa netns {path} type macvlan mode vepa"));
                inner.run("ip link set vepa up");
                inner.run(&format!("ip address add {address} dev vepa"));
            }
            let reached = if hairpin { reaches(&a, "10.9.0.2") } else { !is_cut_off(&a, "10.9.0.2") };
            node.runtime.del(&network, &pod.attachment).unwrap();
            reached
        };
        assert!(reflects(true));
        assert!(!reflects(false));
    });
}

#[test]
fn a_container_sends_from_its_own_mac_only() {
    on_a_node(|node| {
        let network = dual(node, json!({"macspoofchk": true}));
        let pod = Pod::new("pod-a");
        node.runtime.add(&network, &pod.attachment).unwrap();
        node.runtime.check(&network, &pod.attachment).unwrap();
        assert!(reaches(&pod, "10.1.0.1") && reaches(&pod, "fd00:1::1"));
        pod.run("ip link set eth0 address 02:00:00:00:00:99");
        assert!(is_cut_off(&pod, "10.1.0.1"));
        pod.run("ip link set eth0 address 0a:58:0a:01:00:02");
        assert!(reaches(&pod, "10.1.0.1"));
    });
}

#[test]
fn a_bridge_takes_every_frame_and_a_container_has_the_mac_it_is_given() {
    on_a_node(|node| {
        let more = json!({"promiscMode": true, "mtu": 1400, "enabledad": true, "capabilities": {"mac": true}});
        let network = dual(node, more);
        let mut pod = Pod::new("pod-a");
        pod.attachment.capabilities.insert("mac".to_owned(), json!("02:00:00:00:00:07"));
        let result = node.runtime.add(&network, &pod.attachment).unwrap();
        assert_eq!(result.interfaces[2].mac.as_deref(), Some("02:00:00:00:00:07"));
        assert_eq!((result.interfaces[2].mtu, result.ips[1].interface), (Some(1400), Some(2)));
        assert!(run("ip link show cni0").contains("PROMISC"));
        let seen = pod.run("ip -6 address show dev eth0 scope global");
        assert!(seen.contains("fd00:1::2/64") && !seen.contains("nodad"), "{seen}");
        assert_eq!(pod.run("cat /proc/sys/net/ipv4/conf/eth0/arp_notify").trim(), "1");
        node.runtime.check(&network, &pod.attachment).unwrap();
        run("ip link set cni0 promisc off");
        assert_eq!(code(node.runtime.check(&network, &pod.attachment)), 103);
    });
}

#[test]
fn an_interface_may_be_left_alone() {
    on_a_node(|node| {
        let pod = Pod::new("pod-a");
        let config = json!({"cniVersion": "1.0.0", "name": "l2", "type": "bridge", "disableContainerInterface": true});
        let (result, success) = call(node, "bridge", "ADD", &pod.attachment, &config);
        assert!(success && result["interfaces"][2]["name"] == "eth0" && result["ips"].is_null(), "{result}");
        let seen = pod.run("ip address show eth0");
        assert!(seen.contains("state DOWN") && !seen.contains("inet"), "{seen}");
        let mut check = config.clone();
        check["prevResult"] = result;
        assert_eq!(call(node, "bridge", "CHECK", &pod.attachment, &check), (Value::Null, true));
        // Without addresses, but up.
        let other = Pod::new("pod-b");
        let config = json!({"cniVersion": "1.0.0", "name": "l2", "type": "bridge"});
        assert!(call(node, "bridge", "ADD", &other.attachment, &config).1);
        assert!(other.run("ip address show eth0").contains("state UP"));
        assert_eq!(call(node, "bridge", "DEL", &pod.attachment, &config), (Value::Null, true));
        assert_eq!((veths().len(), pod.has_eth0()), (1, false));
    });
}

/// The kernel of the netns tier does not tell VLANs apart; the vm tier's does.
#[test]
fn vlans_are_kept_apart() {
    on_a_node(|node| {
        let access = |vlan: u16, subnet: &str| {
            let ipam = json!({"subnet": subnet});
            let plugin = json!({"vlan": vlan, "isDefaultGateway": true, "ipam": ipam});
            node.bridge(plugin)
        };
        let (ten, twenty) = (access(10, "10.1.0.0/24"), access(20, "10.2.0.0/24"));
        let (a, b, c) = (Pod::new("pod-a"), Pod::new("pod-b"), Pod::new("pod-c"));
        let result = match node.runtime.add(&ten, &a.attachment) {
            Err(error) if std::env::var_os("PODWIRE_TIER").is_none() => {
                assert!(error.code() == 2 && error.to_string().contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{error}");
                assert_eq!((veths(), node.leases("net"), a.has_eth0()), (vec![], vec![], false));
                assert!(!run("ip link").contains("cni0"));
                return;
            }
            result => result.unwrap(),
        };
        assert_eq!((result.interfaces[3].name.as_str(), result.ips[0].interface), ("cni0.10", Some(2)));
        node.runtime.add(&ten, &b.attachment).unwrap();
        node.runtime.add(&twenty, &c.attachment).unwrap();
        assert!(run("ip address show cni0.10").contains("10.1.0.1/24"));
        assert!(reaches(&a, "10.1.0.1") && reaches(&a, "10.1.0.3") && reaches(&c, "10.2.0.1"));
        // An address of the other network on the same wire would answer, were it the same wire.
        a.run("ip address add 10.2.0.9/24 dev eth0");
        assert!(is_cut_off(&c, "10.2.0.9"));
        node.runtime.check(&ten, &b.attachment).unwrap();

        let trunk = json!([{"minID": 10, "maxID": 20}]);
        let trunk = node.network(json!({"type": "bridge", "vlanTrunk": trunk, "preserveDefaultVlan": true}));
        let d = Pod::new("pod-d");
        node.runtime.add(&trunk, &d.attachment).unwrap();
        d.run("ip link add link eth0 name eth0.20 type vlan id 20");
        d.run("ip link set eth0.20 up");
        d.run("ip address add 10.2.0.8/24 dev eth0.20");
        // Without a tag it is in the VLAN of the ports that nobody put elsewhere.
        d.run("ip address add 10.1.0.8/24 dev eth0");
        assert!(reaches(&d, "10.2.0.2") && is_cut_off(&d, "10.1.0.2"));
        node.runtime.check(&trunk, &d.attachment).unwrap();
        run("ip link set cni0 type bridge vlan_filtering 0");
        let error = node.runtime.add(&ten, &Pod::new("pod-e").attachment).unwrap_err();
        assert!(error.code() == 7 && error.to_string().contains("vlan_filtering 1"), "{error}");
    });
}
