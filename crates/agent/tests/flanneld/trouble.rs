//! Broken configuration, an uplink that changes, paths that are too narrow, checksums that get lost.

use std::fs;

use podwire_kernel::ethtool::Ethtool;

use super::{
    common::{Cluster, NET_CONF, Node, able},
    world::{World, eventually, is_ready, metric, pod_cidr},
};

fn ready(world: &World) {
    let nodes = &world.cluster.nodes;
    let known = |node: &Node| metric(node, "podwire_overlay_peers{family=\"ipv4\"}") == 1;
    eventually("all are ready", || nodes.iter().all(|node| is_ready(node) && known(node)));
}

#[test]
fn broken_configuration_changes_nothing_and_is_told() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &[]), world.start(1, &[])];
    ready(&world);
    let state = || first.net.run("ip -d -o link show flannel.1") + &first.net.run("ip route");
    let before = state();
    let rows = [
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}"#, "not valid JSON: EOF"),
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Directruting": true}}"#, "Backend.Directruting"),
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "geneve"}}"#, "geneve"),
        (r#"{"Network": "10.96.0.0/16", "Backend": {"Type": "vxlan"}}"#, "cannot change from 10.244.0.0/16"),
    ];
    for (at, (text, expected)) in rows.into_iter().enumerate() {
        world.write_conf(first, text);
        let count = at as i64 + 1;
        eventually("it is counted", || metric(first, "podwire_overlay_config_errors_total") == count);
        eventually("an Event tells of it", || {
            world.events("InvalidConfiguration").iter().any(|message| message.contains(expected))
        });
        assert_eq!(state(), before, "{text}");
    }
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    // A usable one takes effect after all that.
    world.write_conf(first, &NET_CONF.replace(r#""vxlan""#, r#""vxlan", "MTU": 1400"#));
    eventually("the MTU is followed", || first.net.run("ip link show flannel.1").contains("mtu 1350"));
}

#[test]
fn the_uplink_is_followed() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &[]), world.start(1, &[])];
    ready(&world);
    first.net.run("ip link set eth0 mtu 1400");
    eventually("the device follows", || first.net.run("ip link show flannel.1").contains("mtu 1350"));
    let env = world.path(first, "subnet.env");
    eventually("subnet.env follows", || fs::read_to_string(&env).is_ok_and(|text| text.contains("FLANNEL_MTU=1350\n")));

    first.net.run("sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1");
    first.net.run("ip addr add 172.25.2.101/24 dev eth0");
    first.net.run("ip addr del 172.25.2.1/24 dev eth0");
    eventually("the tunnel follows", || first.net.run("ip -d -o link").contains("local 172.25.2.101"));
    eventually("the annotation follows", || world.annotation(first, "public-ip") == "172.25.2.101");
    eventually("the peer follows", || second.net.run("bridge fdb").contains("dst 172.25.2.101"));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    assert!(metric(first, "podwire_overlay_uplink_changes_total") >= 2);
}

#[test]
fn a_path_that_is_too_narrow_is_told() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    // A switch that drops what is longer, without a word.
    world.cluster.underlay.run("ip link set node2 mtu 1400");
    let _daemons = [world.start(0, &[]), world.start(1, &["--probe-path-mtu=false"])];
    ready(&world);
    eventually("it is counted", || metric(first, "podwire_overlay_narrow_paths") == 1);
    let told = || world.events("PathMTUTooSmall");
    eventually("an Event tells of it", || !told().is_empty());
    let text = &told()[0];
    for part in ["the 1500 bytes that vxlan sends", "MTU of 1450", "node2 (172.25.2.2)", "vanish without a word"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(metric(second, "podwire_overlay_narrow_paths"), 0, "nobody looked");
    // What the warning says to do.
    world.write_conf(first, &NET_CONF.replace(r#""vxlan""#, r#""vxlan", "MTU": 1400"#));
    eventually("all is well", || metric(first, "podwire_overlay_narrow_paths") == 0);
    assert_eq!(told().len(), 1);
}

#[test]
fn checksums_that_get_lost_are_made_by_the_kernel() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), NET_CONF, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    // Hardware that gets checksums wrong: what has one is dropped, until the kernel makes it.
    second.net.run("nft add table ip broken");
    second.net.run("nft add chain ip broken in { type filter hook input priority 0 ; }");
    second.net.run("nft add rule ip broken in iifname flannel.1 udp dport 33434 udp checksum != 0 drop");
    let _daemons = [world.start(0, &[]), world.start(1, &["--vxlan-tx-checksum=off"])];
    ready(&world);
    let left_to_hardware =
        |node: &Node| node.net.inside(|| Ethtool::open().unwrap().tx_checksum("flannel.1").unwrap_or(true));
    assert!(left_to_hardware(first));
    eventually("the flag is heeded", || !left_to_hardware(second));
    eventually("it is turned off", || !left_to_hardware(first));
    second.net.run("nft delete table ip broken");
    eventually("it is told", || !world.events("ChecksumsLost").is_empty());
    assert!(!left_to_hardware(first));
    assert_eq!(metric(first, "podwire_overlay_checksum_workaround"), 1);
    // A new device is as the kernel makes it, at first.
    first.net.run("ip link del flannel.1");
    let again = || first.net.run("ip -o link").contains("flannel.1");
    eventually("it stays turned off", || again() && !left_to_hardware(first));
}
