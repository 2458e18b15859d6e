//! The vxlan backend on the real kernel, seen by the standard tools and by packets.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Cluster, NET_CONF, able};
use std::time::Duration;

use podwire_kernel::route::{Change, ChangeWatch, Removed, RouteSocket};
use podwire_overlay::Overlay;

fn mac(overlay: &Overlay) -> String {
    let lease = overlay.lease();
    lease.backend_data.split('"').nth(5).unwrap().to_owned()
}

#[test]
fn three_nodes_look_as_flannels_do_and_their_pods_talk() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    let overlays = cluster.join();
    let node = &cluster.nodes[0];

    let link = node.net.run("ip -d link show flannel.1");
    for expected in ["mtu 1450", "vxlan id 1 local 172.25.2.1 dev eth0", "dstport 8472", "nolearning", ",UP"] {
        assert!(link.contains(expected), "{expected} is not in {link}");
    }
    assert!(link.contains(&format!("link/ether {}", mac(&overlays[0]))), "{link}");
    assert!(node.net.run("ip -4 addr show dev flannel.1").contains("inet 10.244.0.0/32 scope global flannel.1"));
    let routes = node.net.run("ip route show");
    for n in [1, 2] {
        let route = format!("10.244.{n}.0/24 via 10.244.{n}.0 dev flannel.1 onlink");
        assert!(routes.lines().any(|line| line.trim() == route), "{route} is not in {routes}");
        let mac = mac(&overlays[n]);
        let neighbours = node.net.run("ip neigh show dev flannel.1");
        let neighbour = format!("10.244.{n}.0 lladdr {mac} PERMANENT");
        assert!(neighbours.lines().any(|line| line.trim() == neighbour), "{neighbour} is not in {neighbours}");
        let fdb = node.net.run("bridge fdb show dev flannel.1");
        let entry = format!("{mac} dst 172.25.2.{} self permanent", n + 1);
        assert!(fdb.lines().any(|line| line.trim() == entry), "{entry} is not in {fdb}");
    }

    cluster.pods_talk();
    // The node itself speaks from flannel.1's address, which the answer finds back.
    let seen = node.net.source_seen_by(&cluster.nodes[1].pod, cluster.nodes[1].pod_address());
    assert_eq!(seen.to_string(), "10.244.0.0");
}

#[test]
fn packets_between_nodes_are_vxlan_on_udp_8472() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join();
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let packet = cluster.underlay.captured("br2", "udp port 8472", || {
        first.pod.run(&format!("ping -c 1 -W 30 {}", second.pod_address()));
    });
    assert!(packet.contains("> 172.25.2.2.8472") || packet.contains("> 172.25.2.1.8472"), "{packet}");
    assert!(packet.contains("instance 1") && packet.contains("10.244.0.2 > 10.244.1.2: ICMP echo request"), "{packet}");
    // The largest packet of a pod passes whole.
    first.pod.run(&format!("ping -c 1 -W 30 -M do -s {} {}", 1450 - 28, second.pod_address()));
}

#[test]
fn a_restart_finds_all_in_place_and_a_leaver_is_forgotten() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    cluster.join();
    let node = &cluster.nodes[0];
    let mut kernel = node.net.routes();
    let mut again = node.overlay(NET_CONF);
    again.set_peers(cluster.leases());
    assert_eq!(again.apply(&mut kernel).unwrap().done, 0);

    again.remove_peer(&"node3".into());
    assert_eq!(again.apply(&mut kernel).unwrap().done, 3);
    for look in
        ["ip route show dev flannel.1", "ip neigh show dev flannel.1 nud permanent", "bridge fdb show dev flannel.1"]
    {
        let seen = node.net.run(look);
        assert!(!seen.contains("10.244.2.") && !seen.contains("172.25.2.3"), "{look}: {seen}");
        assert_eq!(seen.lines().count(), 1, "{look}: {seen}");
    }
}

#[test]
fn leftovers_go_and_what_others_made_stays() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join();
    let node = &cluster.nodes[0];
    node.net.run("ip route add 10.244.77.0/24 via 10.244.77.0 dev flannel.1 onlink");
    node.net.run("ip neigh add 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent");
    node.net.run("bridge fdb add 02:00:00:00:00:77 dst 172.25.2.77 dev flannel.1 self permanent");
    node.net.run("ip addr add 10.244.77.0/32 dev flannel.1");
    node.net.run("ip route add 192.0.2.0/24 dev flannel.1 proto static");
    node.net.run("ip link set flannel.1 mtu 1300");
    let mut overlay = node.overlay(NET_CONF);
    overlay.set_peers(cluster.leases());
    assert!(overlay.apply(&mut node.net.routes()).unwrap().errors.is_empty());
    let seen = ["ip route", "ip neigh", "bridge fdb show dev flannel.1", "ip addr", "ip link"]
        .map(|look| node.net.run(look))
        .concat();
    assert!(!seen.contains("10.244.77.") && !seen.contains("172.25.2.77"), "{seen}");
    assert!(seen.contains("192.0.2.0/24 dev flannel.1 proto static"), "{seen}");
    assert!(!seen.contains("mtu 1300"), "{seen}");
    assert_eq!(node.pod.source_seen_by(&cluster.nodes[1].pod, cluster.nodes[1].pod_address()), node.pod_address());
}

#[test]
fn another_port_makes_the_device_anew_and_another_vni_another_device() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    cluster.join();
    let confs = [
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}"#, "flannel.1", "dstport 4789"),
        (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}"#, "flannel.7", "vxlan id 7"),
    ];
    for (conf, device, expected) in confs {
        let leases: Vec<_> = cluster.nodes.iter().map(|node| node.overlay(conf).lease()).collect();
        for node in &cluster.nodes {
            let mut overlay = node.overlay(conf);
            assert!(overlay.set_peers(leases.clone()).is_empty());
            let outcome = overlay.apply(&mut node.net.routes()).unwrap();
            assert!(outcome.errors.is_empty() && overlay.is_settled(), "{:?}", outcome.errors);
            let links = node.net.run("ip -d link show type vxlan");
            assert!(links.contains(expected) && links.contains(device), "{links}");
            assert_eq!(links.matches("flannel.").count(), 1, "{links}");
        }
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    }
}

#[test]
fn a_deleted_device_is_made_again_with_all_that_hung_on_it() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let mut overlay = cluster.join().swap_remove(0);
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let index = first.net.run("ip -o link show flannel.1").split(':').next().unwrap().parse().unwrap();
    first.net.run("ip link del flannel.1");
    assert!(!overlay.changed(&Change::Removed(Removed::Link(index + 1000))).work);
    assert!(overlay.changed(&Change::Removed(Removed::Link(index))).work && !overlay.is_settled());
    let outcome = overlay.apply(&mut first.net.routes()).unwrap();
    assert_eq!((outcome.done, outcome.errors.len()), (5, 0));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

/// Applies what `watch` says is missed; returns whether anything is, and how many operations it took.
fn repair(overlay: &mut Overlay, watch: &mut ChangeWatch, kernel: &mut RouteSocket) -> (bool, usize) {
    let mut missed = false;
    // The kernel tells of a change before it has answered whoever made it: nothing is still to come.
    loop {
        let changes = watch.next(Some(Duration::ZERO)).unwrap();
        if changes.is_empty() {
            break;
        }
        // Of one removal the kernel may tell twice: of a neighbour that it first fails and then goes.
        missed |= changes.iter().filter(|change| overlay.changed(change).work).count() > 0;
    }
    let outcome = overlay.apply(kernel).unwrap();
    assert!(outcome.errors.is_empty() && overlay.is_settled(), "{:?}", outcome.errors);
    (missed, outcome.done)
}

#[test]
fn what_was_deleted_by_hand_is_put_back_and_nothing_else_is_done() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(3);
    let overlays = cluster.join();
    let (first, macs) = (&cluster.nodes[0], [mac(&overlays[1]), mac(&overlays[2])]);
    let mut overlay = overlays.into_iter().next().unwrap();
    let (mut kernel, mut watch) = (first.net.routes(), first.net.inside(|| ChangeWatch::open().unwrap()));
    let look = || {
        ["ip route", "ip neigh show nud permanent", "bridge fdb show dev flannel.1", "ip -4 addr show dev flannel.1"]
            .map(|look| {
                let mut lines: Vec<_> = first.net.run(look).lines().map(str::to_owned).collect();
                lines.sort();
                lines
            })
    };
    let whole = look();
    for (by_hand, done) in [
        ("ip route del 10.244.1.0/24".to_owned(), 1),
        ("ip neigh del 10.244.2.0 dev flannel.1".to_owned(), 1),
        (format!("bridge fdb del {} dev flannel.1 self", macs[0]), 1),
        // With its last address the device loses its neighbours and, without a word, its routes.
        ("ip addr del 10.244.0.0/32 dev flannel.1".to_owned(), 5),
        ("ip route flush dev flannel.1".to_owned(), 2),
        ("ip neigh add 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent".to_owned(), 0),
        ("ip neigh del 10.244.77.0 dev flannel.1".to_owned(), 0),
        ("ip route del default".to_owned(), 0),
        ("ip route add default via 172.25.2.254".to_owned(), 0),
    ] {
        first.net.run(&by_hand);
        assert_eq!(repair(&mut overlay, &mut watch, &mut kernel), (done > 0, done), "{by_hand}");
    }
    assert_eq!(look(), whole);
    // Taken down: its routes go without a word of each.
    first.net.run("ip link set flannel.1 down");
    repair(&mut overlay, &mut watch, &mut kernel);
    assert_eq!(look(), whole);
    // What the overlay removes itself is not missed.
    overlay.remove_peer(&"node3".into());
    overlay.apply(&mut kernel).unwrap();
    assert_eq!(repair(&mut overlay, &mut watch, &mut kernel), (false, 0));
}
