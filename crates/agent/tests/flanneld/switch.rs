//! Another backend takes over while pods talk.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::{
    common::{Cluster, Net, Node, able},
    world::{World, eventually, is_ready, metric, pod_cidr},
};

const VXLAN: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
/// As the seed spells it.
const DIRECT: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Directrouting": true}}"#;
const HOST_GW: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;
const UDP: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#;

/// A hundred pings a second from one pod to another.
struct Pings(Option<Child>);

impl Drop for Pings {
    fn drop(&mut self) {
        // After a failure.
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Pings {
    fn start(from: &Net, to: &Node) -> Self {
        let address = to.pod_address().to_string();
        let mut command = Command::new("ping");
        command.args(["-n", "-q", "-i", "0.01", "-W", "1", &address]).stdout(Stdio::piped());
        Self(Some(from.inside(|| command.spawn().unwrap())))
    }

    /// How many were sent, and how many got lost.
    fn stop(mut self) -> (u32, u32) {
        let child = self.0.take().unwrap();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let line = said.lines().find(|line| line.contains("packets transmitted")).unwrap();
        let mut numbers = line.split(' ').filter_map(|word| word.parse::<u32>().ok());
        let (sent, received) = (numbers.next().unwrap(), numbers.next().unwrap());
        (sent, sent - received)
    }
}

fn backend(node: &Node, name: &str) -> bool {
    metric(node, &format!("podwire_overlay_backend{{backend=\"{name}\"}}")) == 1
}

fn route(node: &Node, to: &Node) -> String {
    node.net.run(&format!("ip route get {}", to.pod_address()))
}

/// Lets both nodes go from one configuration to another, the second one later, with pings in both directions; says how
/// many were sent and got lost.
fn switched(from: &str, to: &str, name: &str, is_over: impl Fn(&Node, &Node) -> bool) {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), from, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &[]), world.start(1, &[])];
    eventually("both are ready", || is_ready(first) && is_ready(second));
    let known = |node| metric(node, "podwire_overlay_peers{family=\"ipv4\"}") == 1;
    eventually("they know each other", || known(first) && known(second));
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());

    let pings = [Pings::start(&first.pod, second), Pings::start(&second.pod, first)];
    world.write_conf(first, to);
    eventually("node1 has gone over", || metric(first, "podwire_overlay_switches_total") == 1 && backend(first, name));
    thread::sleep(Duration::from_secs(1));
    world.write_conf(second, to);
    eventually("node2 has gone over", || backend(second, name) && known(first) && known(second));
    eventually("nothing goes as before", || is_over(first, second) && is_over(second, first));
    for pings in pings {
        let (sent, lost) = pings.stop();
        eprintln!("{name}: {lost} of {sent} pings lost");
        assert!(sent > 50 && lost < 100.min(sent / 2), "{lost} of {sent} lost: a second is a hundred");
    }
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
    assert_eq!(second.pod.source_seen_by(&first.pod, first.pod_address()), second.pod_address());
}

fn lacks(node: &Node, device: &str) -> bool {
    !node.net.run("ip -o link").contains(device)
}

#[test]
fn from_vxlan_to_host_gw() {
    switched(VXLAN, HOST_GW, "host-gw", |node, other| {
        route(node, other).contains(&format!("via {} dev eth0", other.address())) && lacks(node, "flannel")
    });
}

#[test]
fn from_host_gw_to_vxlan() {
    switched(HOST_GW, VXLAN, "vxlan", |node, other| route(node, other).contains("dev flannel.1"));
}

#[test]
fn from_vxlan_to_udp() {
    switched(VXLAN, UDP, "udp", |node, other| route(node, other).contains("dev flannel0") && lacks(node, "flannel.1"));
}

#[test]
fn from_udp_to_vxlan() {
    switched(UDP, VXLAN, "vxlan", |node, other| {
        route(node, other).contains("dev flannel.1") && lacks(node, "flannel0")
    });
}

#[test]
fn from_vxlan_to_direct_routing() {
    switched(VXLAN, DIRECT, "vxlan", |node, other| {
        route(node, other).contains(&format!("via {} dev eth0", other.address()))
    });
}

#[test]
fn pods_that_are_deleted_come_back_with_another_backend() {
    if !able() {
        return;
    }
    let world = World::new(Cluster::new(2), VXLAN, pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let daemons = [world.start(0, &[]), world.start(1, &[])];
    let known = |node| metric(node, "podwire_overlay_peers{family=\"ipv4\"}") == 1;
    eventually("they know each other", || known(first) && known(second));
    let pings = Pings::start(&first.pod, second);
    drop(daemons);
    world.cluster.nodes.iter().for_each(|node| world.write_conf(node, HOST_GW));
    let _first = world.start(0, &[]);
    eventually("node1 is ready", || is_ready(first));
    thread::sleep(Duration::from_millis(500));
    let _second = world.start(1, &[]);
    let direct = |node, other: &Node| route(node, other).contains(&format!("via {} dev eth0", other.address()));
    eventually("all goes directly", || direct(first, second) && direct(second, first));
    eventually("nothing is left", || lacks(first, "flannel") && lacks(second, "flannel"));
    let (sent, lost) = pings.stop();
    eprintln!("after a restart: {lost} of {sent} pings lost");
    assert!(sent > 50 && lost < 100, "{lost} of {sent} lost: a second is a hundred");
}

fn dual_stack(backend: &str) -> String {
    format!(
        r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
            "Backend": {{"Type": "{backend}"}}}}"#
    )
}

fn peers(node: &Node, family: &str) -> i64 {
    metric(node, &format!("podwire_overlay_peers{{family=\"{family}\"}}"))
}

#[test]
fn a_family_that_is_not_there_yet_does_not_hold_the_other() {
    if !able() {
        return;
    }
    // The nodes have no range of IPv6.
    let world = World::new(Cluster::new(2), &dual_stack("vxlan"), pod_cidr);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    let _daemons = [world.start(0, &[]), world.start(1, &[])];
    eventually("they know each other", || peers(first, "ipv4") == 1 && peers(second, "ipv4") == 1);
    [first, second].into_iter().for_each(|node| world.write_conf(node, &dual_stack("host-gw")));
    for (node, other) in [(first, second), (second, first)] {
        eventually("it is told", || world.annotation(node, "backend-type") == "host-gw");
        let direct = format!("via {} dev eth0", other.address());
        eventually("nothing goes as before", || route(node, other).contains(&direct) && lacks(node, "flannel"));
    }
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}

#[test]
fn both_families_go_over_or_none() {
    if !able() {
        return;
    }
    let both = |node: &Node| [pod_cidr(node), vec![format!("fd00:10:244:{}::/64", node.n - 1)]].concat();
    let world = World::new(Cluster::new(2), &dual_stack("vxlan"), both);
    let [first, second] = &world.cluster.nodes[..] else { panic!("two nodes") };
    // Nobody can have it as a router by an address that is not its own.
    let _daemons = [world.start(0, &["--public-ipv6=2001:db8::7"]), world.start(1, &[])];
    eventually("both are ready", || is_ready(first) && is_ready(second));
    let known = |node| peers(node, "ipv4") == 1 && peers(node, "ipv6") == 1;
    eventually("they know each other", || known(first) && known(second));
    let state = || first.net.run("ip -o link") + &first.net.run("ip route") + &first.net.run("ip -6 route");
    let before = state();
    world.write_conf(first, &dual_stack("host-gw"));
    eventually("it is refused", || metric(first, "podwire_overlay_config_errors_total") == 1);
    eventually("an Event tells of it", || world.events("InvalidConfiguration").concat().contains("2001:db8::7"));
    assert_eq!((state(), world.annotation(first, "backend-type").as_str()), (before, "vxlan"));
    assert!(backend(first, "vxlan") && known(first) && is_ready(first));
    assert_eq!(metric(first, "podwire_overlay_switches_total"), 0);
    assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
}
