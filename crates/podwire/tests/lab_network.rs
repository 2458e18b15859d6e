//! Pod networks of other shapes than the stock lab's: two networks with a router, other backends, another MTU.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use lab::{Lab, eventually, text};

/// How often each pod's container has been started again.
const RESTARTS: &str = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";

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

/// Writes another `Backend` into net-conf.json, as the seed does it.
fn edit(lab: &Lab, backend: &str) {
    let sed = format!(r#"sed -i "s/\"Type\": .*/{}/""#, backend.replace('"', r#"\""#));
    let mut command = lab.kubectl_command(&["-n", "kube-system", "edit", "cm", "kube-flannel-cfg"]);
    let output = command.env("KUBE_EDITOR", sed).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
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
fn backends_change_while_pods_talk() {
    let Some(lab) = Lab::new("switch") else { return };
    lab.up(&["--nodes", "2"]);
    with_pods(&lab, 2);
    let ((from, _), (_, to)) = (lab.pod_on("node1"), lab.pod_on("node2"));
    let bare = format!("> {to}: ICMP echo request");
    let rows = [
        (r#""Type": "host-gw""#, "via 172.25.2.2 dev eth0", "icmp[icmptype] = icmp-echo", bare.as_str()),
        (
            r#""Type": "vxlan", "Directrouting": true"#,
            "via 172.25.2.2 dev eth0",
            "icmp[icmptype] = icmp-echo",
            bare.as_str(),
        ),
        (r#""Type": "udp""#, "dev flannel0", "udp port 8285", "172.25.2.1.8285 > 172.25.2.2.8285"),
        (r#""Type": "vxlan""#, "via 10.244.1.0 dev flannel.1", "udp port 8472", "> 172.25.2.2.8472"),
    ];
    for (backend, way, filter, wire) in rows {
        edit(&lab, backend);
        routed(&lab, way);
        eventually(&format!("{backend}: pods reach each other"), || {
            lab.in_pod(&from, &["ping", "-c", "1", "-W", "1", &to]).output().unwrap().status.success()
        });
        let seen = ping_seen_at(&lab, "node2", filter);
        assert!(seen.contains(wire), "{backend}: {seen}");
    }
    let restarts = lab.kubectl(&["get", "pods", "-n", "kube-system", "-l", "app=flannel", "-o", RESTARTS]);
    assert_eq!(restarts, "0 0", "flanneld has not been started again");
}

#[test]
fn a_lab_begins_with_the_backend_that_is_asked_for() {
    for (backend, way) in
        [("host-gw", "via 172.25.2.2 dev eth0"), ("udp", "dev flannel0"), ("alloc", "via 172.25.2.254 dev eth0")]
    {
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
    assert!(ping_seen_at(&lab, "node3", "icmp[icmptype] = icmp-echo").contains(&format!("> {to}: ICMP echo request")));
}

#[test]
fn pods_and_services_have_addresses_of_both_families() {
    let Some(lab) = Lab::new("dual") else { return };
    lab.up(&["--nodes", "2", "--dual-stack"]);
    with_pods(&lab, 2);
    let ((from, _), (to, _)) = (lab.pod_on("node1"), lab.pod_on("node2"));
    let address = lab.kubectl(&["get", "pod", &to, "-o", "jsonpath={.status.podIPs[1].ip}"]);
    assert!(address.starts_with("fd00:10:244:1::"), "{address}");
    let seen = lab.captured("node2", &["-i", "eth0", "-c", "1", "ip6 and udp port 8472"], || {
        lab.run_in_pod(&from, &["ping", "-c", "3", "-i", "0.2", &address]);
    });
    assert!(seen.contains("IP6 fd00:172:25:2::1.") && seen.contains("> fd00:172:25:2::2.8472"), "{seen}");

    lab.kubectl(&["patch", "service", "myservice", "-p", r#"{"spec": {"ipFamilyPolicy": "PreferDualStack"}}"#]);
    let service = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.clusterIPs[1]}"]);
    assert!(service.starts_with("fd00:10:96::"), "{service}");
    let url = format!("http://[{service}]/hostname.html");
    eventually("the Service answers by IPv6", || {
        let curl = lab.in_pod(&from, &["curl", "-sf", "-m", "1", &url]).output().unwrap();
        text(&curl.stdout).starts_with("demo2-")
    });
    let port = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://[fd00:172:25:2::2]:{port}/hostname.html");
    eventually("and on the nodes' IPv6 addresses", || lab.exec("client", &["curl", "-sf", "-m", "1", &url]).0);
    let question = ["dig", "+short", "+time=2", "AAAA", "myservice.default.svc.cluster.local", "@10.96.0.10"];
    eventually("DNS knows it", || lab.exec("node1", &question).1.trim() == service);
}
