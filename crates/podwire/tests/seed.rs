//! The seed's demos, in its order, with the commands that it uses: each kind of Service and what is on the wire.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use std::collections::BTreeMap;

use lab::{Lab, eventually};

const PAGE: &str = "Hello MyApp | Version: v2 | <a href=\"hostname.html\">Pod Name</a>";
const NAME: &str = "myservice.default.svc.cluster.local";
/// Requests of one balance check: with three pods, each misses all of them with a chance of (2/3)^60 ≈ 10⁻¹¹.
const REQUESTS: usize = 60;

#[test]
fn the_seed_works_as_it_says() {
    let Some(lab) = Lab::new("seed") else { return };
    lab.up(&[]);
    let ranges = "jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR}{\"\\n\"}{end}";
    assert_eq!(
        lab.kubectl(&["get", "nodes", "-o", ranges]),
        "node1 10.244.0.0/24\nnode2 10.244.1.0/24\nnode3 10.244.2.0/24\n"
    );
    cluster_ip(&lab);
    headless(&lab);
    node_port(&lab);
    external_name(&lab);
    pod_to_pod_is_vxlan(&lab);
    pod_to_outside_is_masqueraded(&lab);
}

fn cluster_ip(lab: &Lab) {
    lab.kubectl(&["apply", "-f", "examples/demo-clusterip.yml"]);
    lab.rolled_out();
    let address = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.clusterIP}"]);
    let url = format!("http://{address}/");
    eventually("the Service answers", || lab.exec("node1", &["curl", "-sf", "-m", "1", &url]).0);
    assert_eq!(lab.exec("node1", &["curl", "-s", &url]).1.trim_end(), PAGE);
    is_shared_by_three_pods(lab, "node1", &url);
    eventually("DNS knows the Service", || dig(lab, "10.96.0.10") == [address.clone()]);
    let by_name = lab.run_in_pod(&lab.pod_on("node2").0, &["curl", "-s", "-m", "3", "myservice/hostname.html"]);
    assert!(by_name.starts_with("demo2-"), "{by_name}");
    let (reached, _) = lab.exec("client", &["curl", "-s", "-m", "1", &url]);
    assert!(!reached, "a Service address is for the inside");
}

fn headless(lab: &Lab) {
    lab.kubectl(&["delete", "service", "myservice"]);
    lab.kubectl(&["apply", "-f", "examples/demo-headless.yml"]);
    assert!(lab.kubectl(&["get", "service", "myservice"]).contains("None"));
    let server =
        ["get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.podIP}"];
    let server = lab.kubectl(&server);
    for replicas in [3, 6, 3] {
        lab.kubectl(&["scale", "deployment/demo2", &format!("--replicas={replicas}")]);
        lab.rolled_out();
        let addresses = || {
            let query = "jsonpath={range .items[*]}{.status.podIP}{\"\\n\"}{end}";
            lines(&lab.kubectl(&["get", "pods", "-l", "app=myapp", "-o", query]))
        };
        eventually("DNS answers with the pods' addresses, and no other", || {
            let answer = dig(lab, &server);
            answer.len() == replicas && answer == addresses()
        });
    }
}

fn node_port(lab: &Lab) {
    lab.kubectl(&["delete", "service", "myservice"]);
    lab.kubectl(&["apply", "-f", "examples/demo-nodeport.yml"]);
    let port = lab.kubectl(&["get", "service", "myservice", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    assert!((30000..=32767).contains(&port.parse::<u16>().unwrap()), "{port}");
    for node in 1..=3 {
        let url = format!("http://172.25.2.{node}:{port}/");
        eventually("the node port answers", || lab.exec("client", &["curl", "-sf", "-m", "1", &url]).0);
        is_shared_by_three_pods(lab, "client", &url);
    }
}

fn external_name(lab: &Lab) {
    lab.kubectl(&["apply", "-f", "examples/exsvc.yml"]);
    assert!(lab.kubectl(&["get", "service", "exsvc"]).contains("www.westos.org"));
    let question = ["dig", "+noall", "+answer", "+time=2", "exsvc.default.svc.cluster.local", "@10.96.0.10"];
    eventually("DNS answers with the alias", || {
        let (_, answer) = lab.exec("node1", &question);
        answer.contains("CNAME") && answer.contains("www.westos.org.")
    });
}

fn pod_to_pod_is_vxlan(lab: &Lab) {
    let ((from, _), (_, to)) = (lab.pod_on("node1"), lab.pod_on("node2"));
    // On the wire between the nodes, where both outer addresses are seen.
    let seen = lab.captured("underlay", &["-i", "br0", "-T", "vxlan", "-c", "2", "udp port 8472"], || {
        let ping = lab.run_in_pod(&from, &["ping", "-c", "3", "-i", "0.2", &to]);
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    });
    assert!(
        seen.contains("IP 172.25.2.1.") && seen.contains("> 172.25.2.2.8472: VXLAN, flags [I] (0x08), vni 1"),
        "{seen}"
    );
    assert!(seen.contains(&format!("> {to}: ICMP echo request")), "{seen}");
}

fn pod_to_outside_is_masqueraded(lab: &Lab) {
    let (from, address) = lab.pod_on("node1");
    let seen = lab.captured("client", &["-i", "eth0", "-c", "1", "icmp[icmptype] = icmp-echo"], || {
        let ping = lab.run_in_pod(&from, &["ping", "-c", "2", "-i", "0.2", "172.25.2.250"]);
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    });
    assert!(seen.contains("IP 172.25.2.1 > 172.25.2.250") && !seen.contains(&address), "{seen}");
}

fn is_shared_by_three_pods(lab: &Lab, machine: &str, url: &str) {
    let script = format!("for i in $(seq {REQUESTS}); do curl -s -m 3 {url}hostname.html; done");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for pod in lab.exec(machine, &["sh", "-c", &script]).1.lines() {
        *counts.entry(pod.to_owned()).or_default() += 1;
    }
    assert!(counts.len() == 3 && counts.keys().all(|pod| pod.starts_with("demo2-")), "{url}: {counts:?}");
    assert_eq!(counts.values().sum::<usize>(), REQUESTS);
}

/// The addresses that a nameserver has for the Service, sorted.
fn dig(lab: &Lab, server: &str) -> Vec<String> {
    lines(&lab.exec("node1", &["dig", "+short", "+time=1", "+tries=1", NAME, &format!("@{server}")]).1)
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
