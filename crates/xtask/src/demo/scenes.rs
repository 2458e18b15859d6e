//! The seed's demos, in the seed's order, and the few measurements that `cargo xtask bench lab` takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{modes, names, network, stage::Stage};

const HELLO: &str = r#"Hello MyApp | Version: v2 | <a href="hostname.html">Pod Name</a>"#;
/// Requests of one balance check: with three pods, each misses all of them with a chance of (2/3)^60 ≈ 10⁻¹¹.
const REQUESTS: usize = 60;
const PODS: &str = "kubectl get pods -l app=myapp -o wide";
pub(super) const SERVICE_NAME: &str = "myservice.default.svc.cluster.local";

/// Plays every scene on a new lab.
pub fn play(stage: &mut Stage) -> Result<()> {
    up(stage)?;
    cluster_ip(stage)?;
    headless(stage)?;
    node_port(stage)?;
    rolling_update(stage)?;
    modes::play(stage)?;
    other_types(stage)?;
    pod_to_outside(stage)?;
    looks(stage)?;
    mistakes(stage);
    network::play(stage)?;
    Ok(())
}

/// Numbers of one running lab: apply to first answer, memory of each agent.
pub fn measure(stage: &mut Stage, add: &mut impl FnMut(&str, &str, f64, &str)) -> Result<()> {
    let begin = Instant::now();
    stage.show("kubectl apply -f examples/demo-clusterip.yml").succeeds("applied");
    add("kubectl apply", "alone", begin.elapsed().as_secs_f64(), "s");
    first_answer(stage)?;
    add("kubectl apply", "to first answer", begin.elapsed().as_secs_f64(), "s");
    let status = stage.ask("podwire lab status --json")?;
    let status: serde_json::Value = serde_json::from_str(&status).context("podwire lab status --json")?;
    for process in status["processes"].as_array().into_iter().flatten() {
        let (name, machine) = (process["name"].as_str().unwrap_or_default(), process["machine"].as_str());
        let case = format!("{} {name}", machine.unwrap_or_default());
        for (key, metric) in [("rss_kb", "memory, resident"), ("pss_kb", "memory, its share")] {
            add(case.trim(), metric, process[key].as_f64().unwrap_or_default() / 1e3, "MB");
        }
    }
    Ok(())
}

fn up(stage: &mut Stage) -> Result<()> {
    stage.title("A three-node cluster network");
    let shown = stage.show("podwire lab up");
    let took = shown.took();
    shown.succeeds(&format!("up in {:.2} s: every node Ready, cluster DNS answers", took.as_secs_f64()));
    stage.use_kubeconfig();
    let nodes = stage.show("kubectl get nodes -o wide");
    nodes.holds("three nodes are Ready", |text| text.matches(" Ready ").count() == 3);
    stage
        .show("kubectl wait -n kube-system --for=condition=Ready pod --all --timeout=30s")
        .succeeds("every pod of the system is Ready");
    let system = stage.show("kubectl get pods -n kube-system -o wide");
    system.holds("each node runs flannel and kube-proxy, and coredns is there", |text| {
        text.matches("kube-flannel-ds").count() == 3
            && text.matches("kube-proxy").count() == 3
            && text.contains("coredns")
            && !text.contains("0/1")
    });
    stage.show("podwire lab status").succeeds("the lab says how it is");
    Ok(())
}

fn cluster_ip(stage: &mut Stage) -> Result<()> {
    stage.title("ClusterIP: one address inside the cluster, three pods behind it");
    let begin = Instant::now();
    stage.show("kubectl apply -f examples/demo-clusterip.yml").succeeds("Service and Deployment are accepted");
    let address = first_answer(stage)?;
    let took = begin.elapsed().as_secs_f64();
    stage.check(&format!("{took:.2} s from kubectl apply to the first answer"), true);
    rolled_out(stage);
    stage
        .show(PODS)
        .holds("three pods on three nodes", |text| ["node1", "node2", "node3"].iter().all(|node| text.contains(node)));
    stage.show("kubectl get svc myservice").prints("the Service has its address", &address);
    stage
        .show(&format!("podwire lab exec node1 -- curl -s http://{address}/"))
        .prints("the node reaches the Service address", HELLO);
    balance(stage, "node1", &format!("http://{address}/hostname.html"), 3);
    let (pod, _) = pod_on(stage, "node1")?;
    let by_name = in_pod(stage, &pod, "curl -s myservice/hostname.html");
    stage.show(&by_name).prints("a pod reaches it by name, over cluster DNS", "demo2-");
    let dig = format!("podwire lab exec node1 -- dig +short {SERVICE_NAME} @10.96.0.10");
    stage.show(&dig).prints("DNS answers with the Service address", &address);
    let outside = format!("podwire lab exec client -- curl -s -m 2 http://{address}/");
    stage.show(&outside).refuses("from outside it is out of reach: that is what ClusterIP means", "");
    Ok(())
}

fn headless(stage: &mut Stage) -> Result<()> {
    stage.title("Headless: no address of its own, DNS answers with the pods");
    stage.show("kubectl delete service myservice").succeeds("the Service is gone (an address cannot be taken away)");
    stage.show("kubectl apply -f examples/demo-headless.yml").succeeds("the headless Service is accepted");
    stage.show("kubectl get svc myservice").prints("CLUSTER-IP is None", "None");
    let dns =
        stage.ask("kubectl get pods -n kube-system -l k8s-app=kube-dns -o jsonpath='{.items[0].status.podIP}'")?;
    stage.say(&format!("{dns} is the DNS pod's own address, as in the seed's dig"));
    names_follow_pods(stage, &dns, 3);
    names::follow_at_once(stage, &dns)?;
    names::of_pods(stage, &dns)
}

fn node_port(stage: &mut Stage) -> Result<()> {
    stage.title("NodePort: the same port on every node, reached from outside");
    stage.show("kubectl delete service myservice").succeeds("the headless Service is gone");
    stage.show("kubectl apply -f examples/demo-nodeport.yml").succeeds("the NodePort Service is accepted");
    stage.show("kubectl get svc myservice").prints("it has an address and a node port", "NodePort");
    let port = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.ports[0].nodePort}'")?;
    wait(stage, &format!("podwire lab exec client -- curl -sf -m 1 http://172.25.2.1:{port}/"))?;
    for node in 1..=3 {
        balance(stage, "client", &format!("http://172.25.2.{node}:{port}/hostname.html"), 3);
    }
    Ok(())
}

fn rolling_update(stage: &mut Stage) -> Result<()> {
    stage.title("Rolling update to v1 and back, while a client asks without pause");
    let port = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.ports[0].nodePort}'")?;
    let asking = format!("podwire lab exec client -- sh -s http://172.25.2.1:{port}/ < examples/ask.sh");
    let client = stage.start(&asking)?;
    for version in ["v1", "v2"] {
        stage
            .show(&format!("kubectl set image deployment/demo2 myapp=myapp:{version}"))
            .succeeds("the image is changed");
        rolled_out(stage);
        wait_for_version(stage, &port, version)?;
    }
    stage.ask("podwire lab exec client -- touch /tmp/stop")?;
    let counts = stage.finish(client)?;
    stage.check("not one request failed", counts.contains(" answered, 0 failed") && !counts.starts_with("0 "));
    stage.check("both versions answered", counts.contains("Version: v1") && counts.contains("Version: v2"));
    Ok(())
}

fn other_types(stage: &mut Stage) -> Result<()> {
    stage.title("LoadBalancer without a provider, and ExternalName");
    stage.show("kubectl apply -f examples/demo-loadbalancer.yml").succeeds("type: LoadBalancer is accepted");
    stage.show("kubectl get svc myservice").prints("no provider yet, so EXTERNAL-IP is <pending>", "<pending>");
    stage.show("kubectl apply -f examples/exsvc.yml").succeeds("type: ExternalName is accepted");
    stage.show("kubectl get svc exsvc").prints("no cluster address, the outside name instead", "www.westos.org");
    let dig = "podwire lab exec node1 -- dig exsvc.default.svc.cluster.local @10.96.0.10 +noall +answer";
    stage.show(dig).prints("DNS answers with the alias", "www.westos.org.");
    Ok(())
}

fn pod_to_outside(stage: &mut Stage) -> Result<()> {
    stage.title("Pod to outside: the node's address is its face");
    let (from, address) = pod_on(stage, "node1")?;
    let capture =
        stage.start("podwire lab exec client -- timeout 10 tcpdump -i eth0 -nn -c 1 'icmp[icmptype] = icmp-echo'")?;
    capture_settles(stage, "client")?;
    let ping = in_pod(stage, &from, "ping -c 2 -i 0.2 172.25.2.250");
    stage.show(&ping).prints("the pod reaches a machine outside", " 0% packet loss");
    let seen = stage.finish(capture)?;
    stage.check("which sees node1, not the pod", seen.contains("IP 172.25.2.1 >") && !seen.contains(&address));
    Ok(())
}

fn looks(stage: &mut Stage) -> Result<()> {
    stage.title("What is in the kernel");
    let node = "podwire lab exec node1 --";
    stage.show(&format!("{node} cat /etc/cni/net.d/10-flannel.conflist")).prints("the CNI configuration", "portmap");
    stage.show(&format!("{node} bridge link")).prints("pods hang on cni0", "master cni0");
    stage
        .show(&format!("{node} nft list ruleset"))
        .prints("Services and masquerade are nftables rules", "numgen random mod 3");
    Ok(())
}

fn mistakes(stage: &mut Stage) {
    stage.title("Mistakes are named, and change nothing");
    stage.say("the seed's two misprinted manifests");
    for file in ["clusterip", "nodeport"] {
        let file = format!("examples/misprinted/{file}.yml");
        stage.show(&format!("kubectl apply -f {file}")).refuses("kubectl names the line", "yaml: line");
        stage
            .show(&format!("podwire lint {file}"))
            .refuses("podwire lint names the field as well", "10:2: in spec.ports");
    }
    stage
        .show("kubectl apply -f examples/misprinted/unknown-field.yml")
        .refuses("a field that does not exist", r#"unknown field "spec.potrs""#);
    let mut patch = |what: &str, patch: &str, needle: &str| {
        stage.show(&format!("kubectl patch svc myservice -p '{patch}'")).refuses(what, needle);
    };
    patch(
        "a port out of range",
        r#"{"spec":{"ports":[{"port":70000}]}}"#,
        "port: Invalid value: 70000: must be between 1 and 65535",
    );
    patch("a Service address that cannot change", r#"{"spec":{"clusterIP":"192.0.2.1"}}"#, "spec.clusterIPs");
    stage.show("podwire lab up").refuses("a second lab of the same name", "demo");
    stage
        .show("podwire lab up --name other --pod-cidr 172.25.0.0/16")
        .refuses("pod addresses that overlap the nodes' network", "172.25.2.0/24");
}

/// Waits until the Service's address answers and returns the address.
pub(super) fn first_answer(stage: &Stage) -> Result<String> {
    let address = stage.ask("kubectl get svc myservice -o jsonpath='{.spec.clusterIP}'")?;
    wait(stage, &format!("podwire lab exec node1 -- curl -sf -m 1 http://{address}/"))?;
    Ok(address)
}

pub(super) fn rolled_out(stage: &mut Stage) {
    stage.show("kubectl rollout status deployment/demo2 --timeout=60s").prints("rolled out", "successfully rolled out");
}

/// Asks many times and counts who answered.
pub(super) fn balance(stage: &mut Stage, from: &str, url: &str, pods: usize) {
    let command = format!(
        "podwire lab exec {from} -- sh -c 'for i in $(seq {REQUESTS}); do curl -s {url}; done' | sort | uniq -c"
    );
    stage.show(&command).holds(&format!("{pods} pods share {REQUESTS} requests"), |text| {
        let counts: BTreeMap<&str, usize> = text
            .lines()
            .filter_map(|line| line.trim().split_once(' '))
            .filter_map(|(count, pod)| Some((pod, count.parse().ok()?)))
            .collect();
        counts.len() == pods
            && counts.values().sum::<usize>() == REQUESTS
            && counts.keys().all(|pod| pod.starts_with("demo2-"))
    });
}

/// `dig` must list exactly the addresses of the ready pods. Watches take a moment, so it asks until they agree.
pub(super) fn names_follow_pods(stage: &mut Stage, dns: &str, count: usize) {
    let dig = format!("podwire lab exec node1 -- dig +short {SERVICE_NAME} @{dns}");
    let pods = "kubectl get pods -l app=myapp --field-selector=status.phase=Running -o jsonpath='{range .items[*]}{.status.podIP}{\"\\n\"}{end}'";
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let agree = || {
        let (names, addresses) = (stage.ask(&dig).ok()?, stage.ask(pods).ok()?);
        (sorted(names) == sorted(addresses)).then_some(())
    };
    // What does not come to agree fails at the check below.
    let _ = until(agree);
    stage.show(&dig).holds(&format!("the addresses of all {count} pods"), |text| text.lines().count() == count);
}

fn wait_for_version(stage: &Stage, port: &str, version: &str) -> Result<()> {
    wait(
        stage,
        &format!("podwire lab exec client -- curl -sf -m 1 http://172.25.2.1:{port}/ | grep 'Version: {version}'"),
    )
}

/// A pod of the demo on `node` that is not on its way out: name and address.
pub(super) fn pod_on(stage: &Stage, node: &str) -> Result<(String, String)> {
    // The column STATUS tells a terminating pod from a running one, which the phase does not.
    let pods = stage.ask(&format!("{PODS} --no-headers --field-selector=spec.nodeName={node}"))?;
    let columns = pods.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let running = columns.into_iter().find(|columns| columns.get(2) == Some(&"Running"));
    let pod = running.and_then(|columns| Some(((*columns.first()?).to_owned(), (*columns.get(5)?).to_owned())));
    pod.with_context(|| format!("no running pod of the demo on {node}:\n{pods}"))
}

/// The command line that runs `command` in a pod. Before 1.30, kubectl's exec speaks SPDY only, which the lab does not.
pub(super) fn in_pod(stage: &Stage, pod: &str, command: &str) -> String {
    let version = stage.ask("kubectl version --client -o json").unwrap_or_default();
    let version: serde_json::Value = serde_json::from_str(&version).unwrap_or_default();
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default().trim_end_matches('+');
    if minor.parse().unwrap_or(0) >= 30 {
        format!("kubectl exec {pod} -- {command}")
    } else {
        format!("podwire lab exec pod/{pod} -- {command}")
    }
}

/// tcpdump says nothing when it begins to listen, so wait until its socket is there.
pub(super) fn capture_settles(stage: &Stage, machine: &str) -> Result<()> {
    wait(stage, &format!("podwire lab exec {machine} -- ss -0 -a -p | grep tcpdump"))
}

/// Repeats a command until it succeeds.
pub(super) fn wait(stage: &Stage, command: &str) -> Result<()> {
    until(|| stage.ask(command).ok()).map(drop).with_context(|| format!("waited 30 s in vain for: {command}"))
}

fn until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
