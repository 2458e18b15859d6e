//! Pod networks of other shapes than the stock lab's: two networks with a router, other backends, another MTU.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use lab::{Lab, eventually};

/// Brings the demo's pods up, one on each node.
fn with_pods(lab: &Lab, nodes: u8) {
    lab.kubectl(&["apply", "-f", "examples/demo-nodeport.yml"]);
    lab.kubectl(&["scale", "deployment/demo2", &format!("--replicas={nodes}")]);
    lab.rolled_out();
}

/// Pings from a pod of node1 to the pod of `to`; returns what tcpdump saw of it on `eth0` of that node.
fn ping_seen_at(lab: &Lab, to: &str, filter: &str) -> String {
    let ((from, _), (_, address)) = (lab.pod_on("node1"), lab.pod_on(to));
    lab.captured(to, &["-i", "eth0", "-c", "1", filter], || {
        let ping = lab.run_in_pod(&from, &["ping", "-c", "3", "-i", "0.2", &address]);
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    })
}

#[test]
fn pods_reach_each_other_across_a_router() {
    let Some(lab) = Lab::new("routed") else { return };
    let printed = lab.up(&["--nodes", "2", "--subnets", "2", "--mtu", "1450"]);
    assert!(printed.contains("2 nodes and a client on 172.25.2.0/24 and 172.25.3.0/24"), "{printed}");
    with_pods(&lab, 2);
    let seen = ping_seen_at(&lab, "node2", "udp port 8472 and src 172.25.2.1");
    assert!(seen.contains("> 172.25.3.2.8472"), "{seen}");
    // 1450 less what vxlan adds; a packet of just that size passes whole.
    let (pod, _) = lab.pod_on("node1");
    assert!(lab.run_in_pod(&pod, &["ip", "-o", "link", "show", "eth0"]).contains("mtu 1400"));
    let (_, to) = lab.pod_on("node2");
    lab.run_in_pod(&pod, &["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1372", &to]);

    let port = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    for node in ["172.25.2.1", "172.25.3.2"] {
        let url = format!("http://{node}:{port}/");
        eventually("the client is served by the node", || lab.exec("client", &["curl", "-sf", "-m", "1", &url]).0);
    }
}

#[test]
fn a_pod_is_on_the_nodes_own_network_by_macvlan() {
    let Some(lab) = Lab::new("lan") else { return };
    lab.up(&["--nodes", "2"]);
    lab.kubectl(&["apply", "-f", "examples/macvlan-pod.yml"]);
    let waits = "no file in /etc/cni/net.d describes a network called \"lan\"";
    eventually("the pod says what it waits for", || lab.kubectl(&["get", "events"]).contains(waits));
    let conflist = std::fs::read_to_string("../../examples/macvlan.conflist").unwrap();
    let write = format!(
        "cat > /etc/cni/net.d/50-lan.new <<'E'\n{conflist}E\nmv /etc/cni/net.d/50-lan.new /etc/cni/net.d/50-lan.conflist"
    );
    assert!(lab.exec("node1", &["sh", "-c", &write]).0);
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/on-lan", "--timeout=20s"]);
    let pod = lab.kubectl(&["get", "pod", "on-lan", "-o", "jsonpath={.status.podIPs[*].ip}"]);
    assert!(pod.starts_with("10.244.0.") && !pod.contains(' '), "its address in the cluster is that of eth0: {pod}");
    let link = lab.run_in_pod("on-lan", &["ip", "-d", "address", "show", "net1"]);
    assert!(link.contains("macvlan mode bridge") && link.contains("inet 172.25.2.200/24"), "{link}");
    for machine in ["client", "node2"] {
        let (reached, page) = lab.exec(machine, &["curl", "-s", "-m", "3", "http://172.25.2.200/hostname.html"]);
        assert!(reached && page.contains("on-lan"), "{machine}: {page}");
    }
    let (reached, _) = lab.exec("node1", &["ping", "-c1", "-W1", "172.25.2.200"]);
    assert!(!reached, "the parent's own machine does not reach it: that is macvlan");

    // DEL is told what ADD was told, though the file has gone.
    assert!(lab.exec("node1", &["rm", "/etc/cni/net.d/50-lan.conflist"]).0);
    lab.kubectl(&["delete", "pod", "on-lan"]);
    let leases = lab.exec("node1", &["sh", "-c", "ls /var/lib/cni/networks/lan/ | grep 172"]).1;
    assert_eq!(leases, "", "the lease has been given back");
}

/// Waits until the way from node1 to the pods of node2 is as `ip route get` says it.
fn routed(lab: &Lab, way: &str) {
    for (node, pods, way) in [("node1", "10.244.1.0", way.to_owned()), ("node2", "10.244.0.0", mirrored(way))] {
        eventually(&format!("{node} routes {way}"), || lab.exec(node, &["ip", "route", "get", pods]).1.contains(&way));
    }
}

/// What node2 says of the way to node1.
fn mirrored(way: &str) -> String {
    way.replace("10.244.1.0", "10.244.0.0").replace("172.25.2.2 ", "172.25.2.1 ")
}

#[test]
fn a_lab_begins_with_the_backend_that_is_asked_for() {
    for (backend, way) in [("host-gw", "via 172.25.2.2 dev eth0"), ("alloc", "via 172.25.2.254 dev eth0")] {
        let Some(lab) = Lab::new(backend) else { return };
        lab.up(&["--nodes", "2", "--backend", backend]);
        with_pods(&lab, 2);
        routed(&lab, way);
        let ((from, _), (_, to)) = (lab.pod_on("node1"), lab.pod_on("node2"));
        let ping = lab.run_in_pod(&from, &["ping", "-c", "2", "-i", "0.2", &to]);
        assert!(ping.contains(" 0% packet loss"), "{backend}: {ping}");
    }
}

#[test]
fn direct_routing_takes_the_tunnel_only_where_it_must() {
    let Some(lab) = Lab::new("direct") else { return };
    lab.up(&["--nodes", "3", "--subnets", "2", "--backend", "vxlan-direct"]);
    with_pods(&lab, 3);
    let routes = lab.exec("node1", &["ip", "route"]).1;
    for route in ["10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink", "10.244.2.0/24 via 172.25.2.3 dev eth0"] {
        assert!(routes.contains(route), "{route} is not in\n{routes}");
    }
    assert!(ping_seen_at(&lab, "node2", "udp port 8472 and src 172.25.2.1").contains("> 172.25.3.2.8472"));
    let (_, to) = lab.pod_on("node3");
    assert!(ping_seen_at(&lab, "node3", "icmp").contains(&format!("> {to}: ICMP echo request")));
}
