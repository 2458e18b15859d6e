//! Which pod goes where, and which pod goes first.

use podwire_k8s::k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    fixtures::{deployment, id, node},
    sim::Sim,
};
use crate::controllers::{action::Deletion, pods, world::Kind};

fn pod(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    json!({"metadata": {"name": "a"}, "spec": spec})
}

/// Where a pod of this spec goes on three nodes of which node1 has a pod, node2 a taint and node3 the label `disk: ssd`;
/// or why it waits.
fn placed(spec: &Value) -> String {
    let mut sim = Sim::new(1);
    for name in ["node1", "node2", "node3"] {
        let mut node = node(name, "True");
        if name == "node2" {
            node["spec"]["taints"] = json!([{"key": "team", "value": "a", "effect": "NoSchedule"}]);
        }
        if name == "node3" {
            node["metadata"]["labels"] = json!({"disk": "ssd"});
            node["status"]["allocatable"] = json!({"pods": "1"});
        }
        sim.create(Kind::Node, node);
    }
    let ports = json!([{"containerPort": 80, "hostPort": 80}]);
    let first = json!({"nodeName": "node1", "containers": [{"name": "c", "ports": ports}]});
    sim.create(Kind::Pod, json!({"metadata": {"name": "first"}, "spec": first}));
    sim.create(Kind::Pod, pod(spec));
    sim.settle();
    let pod = sim.world.pods.get("default", "a").unwrap().clone();
    let waits = pods::condition(&pod, "PodScheduled").and_then(|c| c.message.clone()).unwrap_or_default();
    pods::node(&pod).map_or(waits, str::to_owned)
}

#[test]
fn demands_and_load_decide() {
    let any = json!([{"operator": "Exists"}]);
    let terms = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]);
    let anti = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
    let host_port = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    for (spec, expected) in [
        (json!({}), "node3"),
        (json!({"tolerations": any}), "node2"),
        (json!({"nodeSelector": {"disk": "ssd"}}), "node3"),
        (
            json!({"nodeSelector": {"disk": "hdd"}}),
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            json!({"nodeSelector": {"kubernetes.io/hostname": "node2"}}),
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        ),
        (json!({"containers": host_port}), "node3"),
        (
            json!({"affinity": anti}),
            "0/3 nodes are available: required podAntiAffinity is not supported by this scheduler.",
        ),
        (json!({"schedulerName": "mine"}), ""),
        (json!({"schedulingGates": [{"name": "later"}]}), ""),
    ] {
        assert_eq!(placed(&spec), expected, "{spec}");
    }
}

/// As in a rollout that goes back and forth: pods on their way out do not keep their successors from their nodes.
#[test]
fn pods_on_their_way_out_do_not_count_for_the_spread() {
    let mut sim = Sim::new(1);
    for name in ["node1", "node2"] {
        sim.create(Kind::Node, node(name, "True"));
    }
    let none = json!({"matchLabels": {"app": "none"}});
    let template = json!({"metadata": {"labels": {"app": "none"}}, "spec": {"containers": [{"name": "c"}]}});
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 0, "selector": none, "template": template}});
    let set = sim.create(Kind::ReplicaSet, set);
    let uid = &sim.get(&set)["metadata"]["uid"];
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}]);
    let pod = |name: &str, owner: &Value, node: Value| {
        let spec = json!({"nodeName": node, "containers": [{"name": "c"}]});
        json!({"metadata": {"name": name, "ownerReferences": owner, "finalizers": ["podwire/test"]}, "spec": spec})
    };
    let old = sim.create(Kind::Pod, pod("old", &owner, json!("node1")));
    for name in ["other1", "other2"] {
        sim.create(Kind::Pod, pod(name, &Value::Null, json!("node2")));
    }
    sim.delete(&old, Deletion::Background);
    assert!(sim.get(&old)["metadata"]["deletionTimestamp"].is_string());
    let new = sim.create(Kind::Pod, pod("new", &owner, Value::Null));
    sim.settle_controllers();
    assert_eq!(sim.get(&new)["spec"]["nodeName"], "node1", "{}", sim.get(&new));
}

#[test]
fn a_full_node_takes_no_more() {
    let mut sim = Sim::new(1);
    let mut only = node("node1", "True");
    only["status"]["allocatable"] = json!({"pods": "2"});
    sim.create(Kind::Node, only);
    sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
    sim.settle();
    let waiting = sim.pods().into_iter().find(|pod| pods::node(pod).is_none()).unwrap();
    let message = pods::condition(waiting, "PodScheduled").unwrap().message.clone();
    assert_eq!(message.as_deref(), Some("0/1 nodes are available: 1 Too many pods."));
    let free = id(Kind::Node, "node2");
    sim.create(Kind::Node, node("node2", "True"));
    sim.settle();
    assert!(sim.pods().iter().all(|pod| pods::node(pod).is_some()), "{free:?} took it");
}

#[test]
fn a_range_without_blocks_says_so() {
    let mut sim = Sim::new(1);
    sim.use_cluster_cidrs(&["10.244.0.0/23"]);
    for number in 1..=3 {
        sim.create(Kind::Node, node(&format!("node{number}"), "True"));
    }
    sim.settle();
    assert!(sim.get(&id(Kind::Node, "node3"))["spec"]["podCIDR"].is_null());
    let report = sim.reports.iter().find(|report| report.reason == "CIDRNotAvailable").unwrap();
    assert!(report.message.contains("no block of /24 is left in 10.244.0.0/23"), "{}", report.message);
}

#[test]
fn with_two_ranges_a_node_gets_a_block_of_each_or_none() {
    let mut sim = Sim::new(1);
    sim.use_cluster_cidrs(&["10.244.0.0/16", "fd00:10:244::/63"]);
    for number in 1..=3 {
        sim.create(Kind::Node, node(&format!("node{number}"), "True"));
    }
    sim.settle();
    let spec = |name: &str| sim.get(&id(Kind::Node, name))["spec"].clone();
    assert_eq!(spec("node1")["podCIDR"], "10.244.0.0/24");
    assert_eq!(spec("node1")["podCIDRs"], json!(["10.244.0.0/24", "fd00:10:244::/64"]));
    assert_eq!(spec("node2")["podCIDRs"], json!(["10.244.1.0/24", "fd00:10:244:1::/64"]));
    assert!(spec("node3")["podCIDRs"].is_null(), "{}", spec("node3"));
    let report = sim.reports.iter().find(|report| report.reason == "CIDRNotAvailable").unwrap();
    assert!(report.message.contains("no block of /64 is left in fd00:10:244::/63"), "{}", report.message);
}

#[test]
fn a_scale_down_takes_the_least_useful_pods() {
    // Each row: the pod's state; they are deleted in this order.
    let ready = |since: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
    let running = |ready: Value| json!({"phase": "Running", "conditions": ready});
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z");
    let rows = [
        ("unassigned", Value::Null, json!({"phase": "Pending"}), ""),
        ("pending", json!("n1"), json!({"phase": "Pending"}), ""),
        ("unready", json!("n2"), running(json!([])), ""),
        ("cheap", json!("n3"), running(ready(early)), "-5"),
        ("crowded", json!("n4"), running(ready(early)), ""),
        ("newly-ready", json!("n5"), running(ready(late)), ""),
        ("useful", json!("n6"), running(ready(early)), ""),
    ];
    let mut sim = Sim::new(1);
    for number in 1..=6 {
        sim.create(Kind::Node, node(&format!("n{number}"), "False"));
    }
    let mut set = deployment("web", 0, "myapp:v1");
    set["spec"].as_object_mut().unwrap().remove("progressDeadlineSeconds");
    set["spec"]["replicas"] = json!(rows.len() + 1);
    let set = sim.create(Kind::ReplicaSet, set);
    sim.becomes_ready = |_| false;
    for (name, node, status, cost) in
        rows.iter().cloned().chain([("crowding", json!("n4"), running(ready("2025-12-31T00:00:00Z")), "5")])
    {
        let annotations =
            if cost.is_empty() { json!({}) } else { json!({"controller.kubernetes.io/pod-deletion-cost": cost}) };
        let metadata = json!({"name": name, "labels": {"app": "web"}, "annotations": annotations});
        let spec = json!({"nodeName": node, "containers": [{"name": "c"}]});
        sim.create(Kind::Pod, json!({"metadata": metadata, "spec": spec, "status": status}));
    }
    sim.settle_controllers();
    for left in (1..=rows.len()).rev() {
        let expected = rows[rows.len() - left].0;
        sim.now += SignedDuration::from_secs(1);
        sim.patch(&set, json!({"spec": {"replicas": left}}));
        sim.settle_controllers();
        let first = sim.pods().into_iter().find(|pod| pod.metadata.name.as_deref() == Some(expected));
        assert!(first.is_none_or(pods::terminating), "{expected} goes next");
        assert_eq!(sim.pods().into_iter().filter(|pod| pods::active(pod)).count(), left);
    }
}
