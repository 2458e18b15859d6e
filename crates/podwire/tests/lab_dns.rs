//! Cluster DNS on every node: pods are answered by their own node's server, also when no other is left.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod lab;

use lab::{Lab, eventually};

const NAME: &str = "kubernetes.default.svc.cluster.local";
/// Where NodeLocal DNSCache answers, and the address of Service kube-dns, which is in the pods' resolv.conf.
const SERVERS: [&str; 2] = ["169.254.20.10", "10.96.0.10"];

#[test]
fn a_pods_own_node_answers_it_with_and_without_other_servers() {
    let Some(lab) = Lab::new("nodedns") else { return };
    let said = lab.up(&["--nodes", "2", "--node-local-dns"]);
    assert!(said.contains("each node answers itself at 169.254.20.10"), "{said}");
    lab.kubectl(&["apply", "-f", "examples/demo-clusterip.yml"]);
    lab.rolled_out();
    for line in
        ["rollout status -n kube-system ds/node-local-dns --timeout=30s", "get cm -n kube-system node-local-dns"]
    {
        lab.kubectl(&line.split(' ').collect::<Vec<_>>());
    }
    let (pod, address) = lab.pod_on("node1");
    let resolv = lab.run_in_pod(&pod, &["cat", "/etc/resolv.conf"]);
    assert!(resolv.contains("nameserver 10.96.0.10\n"), "as without: {resolv}");
    eventually("node1 has taken the queries over", || tracks_nothing(&lab));

    for server in SERVERS {
        for transport in ["+notcp", "+tcp"] {
            let before = ["node1", "node2"].map(|node| queries(&lab, node));
            assert_eq!(ask(&lab, &pod, server, transport), "10.96.0.1", "{server} {transport}");
            let after = ["node1", "node2"].map(|node| queries(&lab, node));
            assert_eq!((after[0] - before[0], after[1] - before[1]), (1, 0), "only the pod's own node was asked");
        }
    }
    let found = lab.run_in_pod(&pod, &["getent", "hosts", "myservice"]);
    assert!(found.contains("myservice.default.svc.cluster.local"), "by its resolv.conf, too: {found}");
    let flows = lab.exec("node1", &["conntrack", "-L", "-s", &address]).1;
    assert!(!flows.contains("dport=53 "), "{flows}");

    // Nothing is left of the Deployment, and names go on being answered, also those that change meanwhile.
    lab.kubectl(&["scale", "deployment/coredns", "-n", "kube-system", "--replicas=0"]);
    lab.kubectl(&["wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "-n", "kube-system", "--timeout=30s"]);
    lab.kubectl(&["create", "service", "clusterip", "later", "--clusterip=10.96.7.7", "--tcp=80"]);
    eventually("a new name is answered", || {
        lab.run_in_pod(&pod, &["dig", "+short", "+search", "later"]).trim() == "10.96.7.7"
    });
    for server in SERVERS {
        assert_eq!(ask(&lab, &pod, server, "+notcp"), "10.96.0.1", "{server}");
    }

    // Deleted, a server gives the queries back to the proxy and leaves nothing; its successor takes them over again.
    lab.kubectl(&["scale", "deployment/coredns", "-n", "kube-system", "--replicas=1"]);
    lab.kubectl(&["rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=30s"]);
    lab.kubectl(&["delete", "ds/node-local-dns", "-n", "kube-system"]);
    eventually("nothing is left on the node", || {
        let (rules, addresses) =
            (lab.exec("node1", &["nft", "list", "ruleset"]).1, lab.exec("node1", &["ip", "addr"]).1);
        !rules.contains("podwire-dns") && SERVERS.iter().all(|server| !addresses.contains(server))
    });
    assert_eq!(ask(&lab, &pod, "10.96.0.10", "+notcp"), "10.96.0.1", "by the Deployment, through the proxy");
}

fn ask(lab: &Lab, pod: &str, server: &str, transport: &str) -> String {
    let server = format!("@{server}");
    lab.run_in_pod(pod, &["dig", "+short", "+tries=1", "+time=3", transport, &server, NAME]).trim().to_owned()
}

/// Whether the node has the rules.
fn tracks_nothing(lab: &Lab) -> bool {
    lab.exec("node1", &["nft", "list", "table", "inet", "podwire-dns"]).1.contains("notrack")
}

/// How many queries for IPv4 addresses the node's own server has had.
fn queries(lab: &Lab, node: &str) -> u64 {
    let (_, page) = lab.exec(node, &["curl", "-s", "http://127.0.0.1:9253/metrics"]);
    let counts =
        page.lines().filter(|line| line.starts_with("coredns_dns_requests_total{") && line.contains("type=\"A\""));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}
