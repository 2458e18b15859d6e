//! Whole stories on the simulated cluster, each in many orders of events, with and without failing writes.

use std::collections::BTreeMap;

use podwire_k8s::k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    fixtures::{daemon_set, deployment, id, node, service},
    sim::Sim,
};
use crate::controllers::{
    action::Deletion,
    pods,
    world::{Id, Kind},
};

/// Runs a story with several seeds, and again with a tenth of the controllers' writes failing.
fn in_any_order(story: impl Fn(&mut Sim)) {
    for seed in 1..=24_u64 {
        let mut sim = Sim::with_nodes(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 3);
        sim.fail_one_in = if seed > 12 { 10 } else { 0 };
        story(&mut sim);
    }
}

fn by_node(pods: &[&Pod]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods {
        *counts.entry(pods::node(pod).unwrap_or("none").to_owned()).or_default() += 1;
    }
    counts
}

fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|c| c["type"] == kind).unwrap();
    (found["status"].as_str().unwrap(), found["reason"].as_str().unwrap_or_default())
}

/// The addresses that slices of a Service say are ready, sorted.
fn ready_in_slices(sim: &Sim, service: &str) -> Vec<String> {
    let slices = sim.all(Kind::EndpointSlice);
    let of_service = slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == service);
    let endpoints = of_service.flat_map(|slice| slice["endpoints"].as_array().unwrap());
    let ready = endpoints.filter(|e| e["conditions"]["ready"] == true);
    let mut addresses: Vec<String> = ready.map(|e| e["addresses"][0].as_str().unwrap().to_owned()).collect();
    addresses.sort();
    addresses
}

#[test]
fn a_deployment_becomes_available_behind_its_service() {
    in_any_order(|sim| {
        let web = sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        sim.create(Kind::Service, service("web"));
        sim.settle();
        assert_eq!(
            by_node(&sim.pods()),
            BTreeMap::from([("node1".into(), 1), ("node2".into(), 1), ("node3".into(), 1)])
        );
        let web = sim.get(&web);
        assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
        assert_eq!(condition(&web, "Available"), ("True", "MinimumReplicasAvailable"));
        assert_eq!(condition(&web, "Progressing"), ("True", "NewReplicaSetAvailable"));
        assert_eq!(web["status"]["observedGeneration"], web["metadata"]["generation"]);
        for count in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            assert_eq!(web["status"][count], 3, "{count}");
        }
        let mut addresses: Vec<String> =
            sim.pods().iter().map(|pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap()).collect();
        addresses.sort();
        assert_eq!(ready_in_slices(sim, "web"), addresses);
        let endpoints = sim.get(&id(Kind::Endpoints, "web"));
        assert_eq!(endpoints["subsets"][0]["addresses"].as_array().unwrap().len(), 3);
        assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 80);
        let pod = sim.pods()[0].clone();
        let hash = &pod.metadata.labels.as_ref().unwrap()["pod-template-hash"];
        assert!(pod.metadata.name.unwrap().starts_with(&format!("web-{hash}-")));
    });
}

#[test]
fn scaling_adds_and_removes_exactly_so_many_pods() {
    in_any_order(|sim| {
        let web = sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        sim.settle();
        let before: Vec<String> = sim.pods().iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        for replicas in [6, 2, 0, 1] {
            sim.patch(&web, json!({"spec": {"replicas": replicas}}));
            sim.settle();
            assert_eq!(sim.pods().len(), replicas);
            if replicas == 6 {
                let after: Vec<String> = sim.pods().iter().filter_map(|pod| pod.metadata.name.clone()).collect();
                assert!(before.iter().all(|name| after.contains(name)), "the first three stay");
            }
        }
        assert_eq!(sim.all(Kind::ReplicaSet).len(), 1);
        let created = sim.reports.iter().filter(|report| report.reason == "SuccessfulCreate").count();
        assert_eq!(created, 3 + 3 + 1, "no pod was created twice");
        let scaled = sim.reports.iter().filter(|report| report.reason == "ScalingReplicaSet").count();
        assert_eq!(scaled, 5);
    });
}

#[test]
fn deleting_an_owner_takes_its_dependents_along() {
    in_any_order(|sim| {
        let web = sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        let svc = sim.create(Kind::Service, service("web"));
        sim.settle();
        sim.delete(&web, Deletion::Background);
        sim.delete(&svc, Deletion::Background);
        sim.settle();
        for kind in [Kind::Deployment, Kind::ReplicaSet, Kind::Pod, Kind::EndpointSlice, Kind::Endpoints] {
            assert_eq!(sim.all(kind), Vec::<&Value>::new(), "{kind:?}");
        }
    });
}

#[test]
fn a_foreground_deletion_waits_for_dependents() {
    in_any_order(|sim| {
        let web = sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        sim.settle();
        sim.delete(&web, Deletion::Foreground);
        sim.settle_controllers();
        assert_eq!(sim.pods().len(), 3, "the kubelet has not ended them");
        assert_eq!(sim.all(Kind::ReplicaSet).len(), 1, "waits for its pods");
        assert!(sim.get(&web)["metadata"]["deletionTimestamp"].is_string(), "waits for its ReplicaSet");
        sim.settle();
        assert_eq!((sim.pods().len(), sim.all(Kind::ReplicaSet).len(), sim.all(Kind::Deployment).len()), (0, 0, 0));
    });
}

#[test]
fn orphans_stay_and_are_adopted_again() {
    in_any_order(|sim| {
        let web = sim.create(Kind::Deployment, deployment("web", 2, "myapp:v1"));
        sim.settle();
        let names: Vec<_> = sim.pods().iter().map(|pod| pod.metadata.name.clone()).collect();
        sim.patch(&web, json!({"metadata": {"finalizers": ["orphan"]}}));
        sim.delete(&web, Deletion::Background);
        sim.settle();
        assert_eq!(sim.all(Kind::Deployment).len(), 0);
        assert!(sim.all(Kind::ReplicaSet)[0]["metadata"]["ownerReferences"].is_null());
        sim.create(Kind::Deployment, deployment("web", 2, "myapp:v1"));
        sim.settle();
        assert_eq!(sim.all(Kind::ReplicaSet).len(), 1);
        assert!(sim.all(Kind::ReplicaSet)[0]["metadata"]["ownerReferences"].is_array());
        assert_eq!(sim.pods().iter().map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>(), names);
    });
}

#[test]
fn a_namespace_empties_before_it_goes() {
    in_any_order(|sim| {
        sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        sim.create(Kind::DaemonSet, daemon_set("agent", "myapp:v1"));
        sim.create(Kind::Service, service("web"));
        sim.create(Kind::ConfigMap, json!({"metadata": {"name": "settings"}}));
        sim.settle();
        assert!(!sim.get(&id(Kind::ServiceAccount, "default")).is_null(), "every namespace has one");
        sim.delete(&id(Kind::Namespace, "default"), Deletion::Background);
        sim.settle();
        let left: Vec<Kind> = Kind::ALL.iter().copied().filter(|kind| !sim.all(*kind).is_empty()).collect();
        assert_eq!(left, [Kind::Node]);
    });
}

#[test]
fn a_daemon_runs_once_on_every_node_that_takes_it() {
    in_any_order(|sim| {
        let agent = sim.create(Kind::DaemonSet, daemon_set("agent", "myapp:v1"));
        sim.settle();
        assert_eq!(
            by_node(&sim.pods()),
            BTreeMap::from([("node1".into(), 1), ("node2".into(), 1), ("node3".into(), 1)])
        );
        sim.create(Kind::Node, node("node4", "False"));
        sim.settle();
        assert_eq!(sim.pods().len(), 3, "not ready, and not tolerated");
        let tolerant = json!([{"operator": "Exists"}]);
        sim.patch(&agent, json!({"spec": {"template": {"spec": {"tolerations": tolerant}}}}));
        sim.settle();
        assert_eq!(by_node(&sim.pods()).len(), 4);
        let status = sim.get(&agent)["status"].clone();
        for count in [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "numberAvailable",
            "updatedNumberScheduled",
        ] {
            assert_eq!(status[count], 4, "{count}");
        }
        sim.delete(&id(Kind::Node, "node2"), Deletion::Background);
        sim.settle();
        assert_eq!(by_node(&sim.pods()).keys().cloned().collect::<Vec<_>>(), ["node1", "node3", "node4"]);
        let pod = pod_id(sim.pods()[0]);
        sim.delete(&pod, Deletion::Background);
        sim.settle();
        assert_eq!(by_node(&sim.pods()).len(), 3, "a deleted daemon comes back");
    });
}

fn pod_id(pod: &Pod) -> Id {
    id(Kind::Pod, pod.metadata.name.as_deref().unwrap())
}

#[test]
fn a_daemon_that_runs_survives_its_node_becoming_unready() {
    in_any_order(|sim| {
        sim.create(Kind::DaemonSet, daemon_set("agent", "myapp:v1"));
        sim.settle();
        let names: Vec<_> = sim.pods().iter().map(|pod| pod.metadata.name.clone()).collect();
        sim.patch_status(&id(Kind::Node, "node1"), json!({"conditions": [{"type": "Ready", "status": "False"}]}));
        sim.settle();
        assert_eq!(sim.pods().iter().map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>(), names);
        assert_eq!(sim.get(&id(Kind::Node, "node1"))["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    });
}

#[test]
fn pods_wait_for_a_node_and_say_why() {
    in_any_order(|sim| {
        for number in 1..=3 {
            let node = id(Kind::Node, &format!("node{number}"));
            sim.patch_status(&node, json!({"conditions": [{"type": "Ready", "status": "False"}]}));
        }
        sim.settle();
        sim.create(Kind::Deployment, deployment("web", 1, "myapp:v1"));
        sim.settle();
        let expected = "0/3 nodes are available: 3 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.";
        let pod = sim.pods()[0].clone();
        let scheduled = pods::condition(&pod, "PodScheduled").unwrap();
        assert_eq!(
            (scheduled.status.as_str(), scheduled.reason.as_deref(), scheduled.message.as_deref()),
            ("False", Some("Unschedulable"), Some(expected))
        );
        let failed: Vec<_> = sim.reports.iter().filter(|r| r.reason == "FailedScheduling").collect();
        assert_eq!((failed.len(), failed[0].warning, failed[0].message.as_str()), (1, true, expected));
        sim.patch_status(&id(Kind::Node, "node2"), json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        sim.settle();
        assert_eq!(pods::node(sim.pods()[0]), Some("node2"));
        assert!(pods::ready(sim.pods()[0]));
    });
}

#[test]
fn a_silent_node_is_unknown_and_its_pods_serve_nobody() {
    in_any_order(|sim| {
        sim.create(Kind::Namespace, json!({"metadata": {"name": "kube-node-lease"}}));
        sim.create(Kind::Deployment, deployment("web", 3, "myapp:v1"));
        sim.create(Kind::Service, service("web"));
        sim.settle();
        assert_eq!(ready_in_slices(sim, "web").len(), 3);
        // Not even a kubelet makes these pods ready again: they are on silent nodes.
        sim.becomes_ready = |_| false;
        sim.advance(39);
        assert_eq!(condition(&sim.get(&id(Kind::Node, "node1")), "Ready").0, "True");
        sim.advance(2);
        assert_eq!(condition(&sim.get(&id(Kind::Node, "node1")), "Ready"), ("Unknown", "NodeStatusUnknown"));
        assert_eq!(sim.get(&id(Kind::Node, "node1"))["spec"]["taints"][0]["key"], "node.kubernetes.io/unreachable");
        assert_eq!(ready_in_slices(sim, "web"), Vec::<String>::new());
    });
}

#[test]
fn the_first_nodes_get_the_lowest_blocks_and_freed_ones_are_used_again() {
    in_any_order(|sim| {
        sim.settle();
        let block = |sim: &Sim, name: &str| sim.get(&id(Kind::Node, name))["spec"]["podCIDR"].clone();
        assert_eq!(block(sim, "node1"), "10.244.0.0/24");
        assert_eq!(block(sim, "node2"), "10.244.1.0/24");
        assert_eq!(sim.get(&id(Kind::Node, "node3"))["spec"]["podCIDRs"], json!(["10.244.2.0/24"]));
        sim.delete(&id(Kind::Node, "node2"), Deletion::Background);
        sim.create(Kind::Node, node("node4", "True"));
        sim.settle();
        assert_eq!(block(sim, "node4"), "10.244.1.0/24");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the order of events and wherever writes fail, the end is the same.
    #[test]
    fn the_end_does_not_depend_on_the_order(seed: u64, fail in 0..2u64, sizes in prop::collection::vec(0..7usize, 1..4)) {
        let mut sim = Sim::with_nodes(seed, 3);
        sim.fail_one_in = fail * 10;
        let web = sim.create(Kind::Deployment, deployment("web", 2, "myapp:v0"));
        sim.create(Kind::Service, service("web"));
        for (version, size) in sizes.iter().enumerate() {
            let image = json!([{"name": "web", "image": format!("myapp:v{version}"), "ports": [{"name": "http", "containerPort": 80}]}]);
            sim.patch(&web, json!({"spec": {"replicas": size, "template": {"spec": {"containers": image}}}}));
            if seed.is_multiple_of(2) {
                sim.settle();
            }
        }
        sim.settle();
        let size = *sizes.last().unwrap();
        prop_assert_eq!(sim.pods().len(), size);
        prop_assert_eq!(ready_in_slices(&sim, "web").len(), size);
        let counts = by_node(&sim.pods());
        let spread = counts.values().max().copied().unwrap_or(0);
        prop_assert!(spread <= size.div_ceil(3) + 1, "{:?}", counts);
        let last = format!("myapp:v{}", sizes.len() - 1);
        for pod in sim.pods() {
            prop_assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_ref(), Some(&last));
        }
        let web = sim.get(&web);
        prop_assert_eq!(condition(&web, "Progressing"), ("True", "NewReplicaSetAvailable"));
        prop_assert_eq!(web["status"]["updatedReplicas"].as_u64().unwrap_or(0), u64::try_from(size).unwrap());
    }
}
