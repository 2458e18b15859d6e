//! Nodes join, are disturbed, start again and part.

use std::{fs, io::Read, process::Stdio, thread, time::Duration};

use podwire_k8s::{
    k8s_openapi::api::core::v1 as core,
    kube::{
        Api,
        api::{Patch, PatchParams},
    },
};
use podwire_model::Family;
use serde_json::json;

use super::{
    common::{Cluster, NET_CONF, Net, Node, able},
    world::{World, eventually, is_ready, metric, name, pod_cidr},
};

fn knows(first: &Node, second: &Node) -> bool {
    let net = second.n - 1;
    first.net.run("ip route").contains(&format!("10.244.{net}.0/24 via 10.244.{net}.0 dev flannel.1 onlink"))
}

#[test]
fn two_nodes_join_and_part() {
    if !able() {
        return;
    }
    // The second has no pod range yet.
    let cidrs = |node: &Node| if node.n == 1 { pod_cidr(node) } else { vec![] };
    let world = World::new(Cluster::new(2), NET_CONF, cidrs);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let cni = world.path(first, "cni-conf.json");
    fs::write(&cni, r#"{"name": "cbr0"}"#).unwrap();
    let installed = world.path(first, "net.d/10-flannel.conflist");
    let (source, destination) =
        (format!("--cni-conf-src={}", cni.display()), format!("--cni-conf-dst={}", installed.display()));
    let _first = world.start(0, &[&source, &destination]);
    let _second = world.start(1, &[]);
    eventually("node1 is ready", || is_ready(first));
    let env = fs::read_to_string(world.path(first, "subnet.env")).unwrap();
    let expected =
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    assert_eq!(env, expected);
    assert_eq!(fs::read_to_string(&installed).unwrap(), r#"{"name": "cbr0"}"#);
    assert!(!world.path(second, "subnet.env").exists(), "node2 has no pod range yet");

    world.api(|client| async move {
        let patch = json!({ "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] } });
        let nodes = Api::<core::Node>::all(client);
        nodes.patch("node2", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    });
    eventually("node2 is ready", || is_ready(second));
    eventually("node1 knows node2", || knows(first, second));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    assert_eq!(first.pod.source_seen_by(&world.cluster.client, [172, 25, 2, 250].into()), first.address());
    published(&world, first);
    assert_eq!(metric(first, "podwire_overlay_peers{family=\"ipv4\"}"), 1);
    assert_eq!(metric(first, "podwire_overlay_backend{backend=\"vxlan\"}"), 1);
    assert_eq!(metric(first, "podwire_overlay_mtu_bytes"), 1450);

    let second = name(second);
    world.api(|client| async move {
        Api::<core::Node>::all(client).delete(&second, &Default::default()).await.unwrap();
    });
    eventually("node1 forgets node2", || !first.net.run("ip route").contains("10.244.1.0/24"));
}

/// The annotations and the condition, as flannel's.
fn published(world: &World, node: &Node) {
    let link = node.net.run("ip -o link show flannel.1");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(world.annotation(node, "backend-data"), format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    assert_eq!(world.annotation(node, "backend-type"), "vxlan");
    assert_eq!(world.annotation(node, "kube-subnet-manager"), "true");
    assert_eq!(world.annotation(node, "public-ip"), node.address().to_string());
    let conditions = world.object(node).status.and_then(|status| status.conditions).unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("FlannelIsUp")));
}

#[test]
fn both_families_have_their_overlay() {
    if !able() {
        return;
    }
    let conf = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
        "Backend": {"Type": "vxlan"}}"#;
    let both = |node: &Node| [pod_cidr(node), vec![format!("fd00:10:244:{}::/64", node.n - 1)]].concat();
    let world = World::new(Cluster::new(2), conf, both);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &[]), world.start(1, &[])];
    let known = |node| {
        ["ipv4", "ipv6"]
            .iter()
            .all(|family| metric(node, &format!("podwire_overlay_peers{{family=\"{family}\"}}")) == 1)
    };
    eventually("they know each other", || is_ready(first) && known(first) && known(second));
    let expected = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244::1/64\n\
                    FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
    assert_eq!(fs::read_to_string(world.path(first, "subnet.env")).unwrap(), expected);
    let link = first.net.run("ip -o link show flannel-v6.1");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(world.annotation(first, "backend-v6-data"), format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    assert_eq!(world.annotation(first, "public-ipv6"), "fd00:25::1");
    assert_eq!(world.annotation(first, "public-ip"), "172.25.2.1");
    for family in [Family::V4, Family::V6] {
        let seen = first.pod.source_seen_by(&second.pod, second.pod_address_in(family));
        assert_eq!(seen, first.pod_address_in(family));
    }
    assert!(first.net.run("nft list tables").contains("flannel-ipv6"));
}

#[test]
fn vandalism_is_repaired_and_counted() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &["--ip-blackhole-route"]), world.start(1, &[])];
    eventually("both are ready", || is_ready(first) && is_ready(second) && knows(first, second));
    let fdb = || first.net.run("bridge fdb show dev flannel.1");
    let whole = || {
        knows(first, second)
            && fdb().contains("dst 172.25.2.2")
            && !first.net.run("ip neigh show dev flannel.1 nud permanent").is_empty()
    };
    let mac = fdb().split(' ').next().unwrap().to_owned();
    let lines = [
        ("ip route del 10.244.1.0/24", "route"),
        ("ip neigh flush dev flannel.1 nud permanent", "neighbour"),
        (&format!("bridge fdb del {mac} dev flannel.1 dst 172.25.2.2"), "fdb"),
        ("ip link del flannel.1", "device"),
    ];
    for (line, what) in lines {
        let repairs = || metric(first, &format!("podwire_overlay_repairs_total{{what=\"{what}\"}}")).max(0);
        let before = repairs();
        first.net.run(line);
        eventually(&format!("{line} is counted as a repair"), || repairs() > before);
        eventually(&format!("{line} is repaired"), whole);
    }
    let rules = first.net.run("nft list ruleset");
    first.net.run("nft delete table ip flannel-ipv4");
    eventually("the rules are back", || first.net.run("nft list ruleset") == rules);
    assert!(metric(first, "podwire_overlay_repairs_total{what=\"rules\"}") >= 1);
    let env = world.path(first, "subnet.env");
    fs::write(&env, "FLANNEL_MTU=68\n").unwrap();
    eventually("subnet.env is back", || fs::read_to_string(&env).is_ok_and(|text| text.contains("FLANNEL_MTU=1450\n")));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    assert!(!first.net.run("ip route").contains("blackhole"), "the pods' bridge has the range");
    first.net.run("ip link del cni0");
    eventually("what no pod has is dropped", || first.net.run("ip route").contains("blackhole 10.244.0.0/24"));
}

/// What monitors say while `action` runs.
fn monitored(net: &Net, action: impl FnOnce()) -> String {
    let start = |line: &str| {
        let mut words = line.split(' ');
        let mut command = std::process::Command::new(words.next().unwrap());
        net.inside(|| command.args(words).stdout(Stdio::piped()).spawn().unwrap())
    };
    let mut monitors = [start("ip monitor link address route"), start("nft monitor")];
    // Neither says when it listens.
    thread::sleep(Duration::from_millis(500));
    action();
    thread::sleep(Duration::from_millis(500));
    let mut said = String::new();
    for monitor in &mut monitors {
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        monitor.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    }
    // The underlay's link-local addresses become usable about now.
    let of_overlay = |line: &&str| !line.contains("fe80::") && !line.contains("valid_lft");
    said.lines().filter(of_overlay).collect()
}

#[test]
fn a_start_after_a_kill_writes_nothing() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let (daemon, _second) = (world.start(0, &[]), world.start(1, &[]));
    eventually("both are ready", || is_ready(first) && is_ready(second) && knows(first, second));
    eventually("node1 is known to be available", || metric(first, "podwire_overlay_operations_total") > 3);
    drop(daemon);
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address(), "it works on");
    let (env, version) = (world.path(first, "subnet.env"), world.object(first).metadata.resource_version);
    let written = || fs::metadata(&env).unwrap().modified().unwrap();
    let before = written();
    let said = monitored(&first.net, || {
        let _again = world.start(0, &[]);
        eventually("node1 is ready again", || is_ready(first));
        assert_eq!(metric(first, "podwire_overlay_operations_total"), 0);
    });
    assert_eq!(said, "");
    assert_eq!(written(), before);
    assert_eq!(world.object(first).metadata.resource_version, version);
}
