//! What is published for a Service, pod state by pod state.

use serde_json::{Value, json};

use super::{
    fixtures::{id, node, service},
    sim::Sim,
};
use crate::controllers::{action::Deletion, world::Kind};

/// A pod of `app: web` on node1 with one container port `http`.
fn pod(name: &str, ip: &str, port: u16, ready: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:07Z"}],
        },
    })
}

fn sim() -> Sim {
    let mut sim = Sim::new(1);
    let mut node = node("node1", "True");
    node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "a"});
    sim.create(Kind::Node, node);
    sim
}

/// The endpoints of all slices as `address ready serving terminating`, sorted.
fn endpoints(sim: &Sim) -> Vec<String> {
    let slices = sim.all(Kind::EndpointSlice);
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().unwrap());
    let mut lines: Vec<String> = endpoints
        .map(|e| {
            let c = &e["conditions"];
            format!("{} {} {} {}", e["addresses"][0].as_str().unwrap(), c["ready"], c["serving"], c["terminating"])
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn conditions_follow_the_pod() {
    for (publish, pod_ready, deleted, expected, in_endpoints) in [
        (false, "True", false, "10.244.0.2 true true false", "addresses"),
        (false, "False", false, "10.244.0.2 false false false", "notReadyAddresses"),
        (false, "True", true, "10.244.0.2 false true true", ""),
        (false, "False", true, "10.244.0.2 false false true", ""),
        (true, "False", false, "10.244.0.2 true false false", "addresses"),
        (true, "False", true, "10.244.0.2 true false true", "addresses"),
    ] {
        let mut sim = sim();
        let mut service = service("web");
        service["spec"]["publishNotReadyAddresses"] = json!(publish);
        sim.create(Kind::Service, service);
        let pod = sim.create(Kind::Pod, pod("a", "10.244.0.2", 80, pod_ready));
        if deleted {
            sim.delete(&pod, Deletion::Background);
        }
        sim.settle_controllers();
        assert_eq!(endpoints(&sim), [expected]);
        let subsets = sim.get(&id(Kind::Endpoints, "web"))["subsets"].clone();
        let lists = ["addresses", "notReadyAddresses"];
        let found = lists.into_iter().find(|list| subsets[0][list][0]["ip"] == "10.244.0.2");
        assert_eq!(found.unwrap_or_default(), in_endpoints, "{expected}");
    }
}

#[test]
fn a_slice_looks_as_upstream_writes_it() {
    let mut sim = sim();
    sim.create(Kind::Service, service("web"));
    let mut named = pod("a", "10.244.0.2", 8080, "True");
    named["spec"]["hostname"] = json!("first");
    named["spec"]["subdomain"] = json!("web");
    sim.create(Kind::Pod, named);
    sim.settle_controllers();
    let slice = sim.all(Kind::EndpointSlice)[0];
    assert!(slice["metadata"]["name"].as_str().unwrap().starts_with("web-"));
    assert_eq!(
        slice["metadata"]["labels"],
        json!({
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            "kubernetes.io/service-name": "web",
            "tier": "web",
        })
    );
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
    assert_eq!(
        slice["metadata"]["annotations"],
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:07Z"})
    );
    assert_eq!(
        (&slice["addressType"], &slice["ports"]),
        (&json!("IPv4"), &json!([{"name": "", "port": 8080, "protocol": "TCP"}]),)
    );
    let endpoint = &slice["endpoints"][0];
    assert_eq!(endpoint["hostname"], "first");
    assert_eq!((&endpoint["nodeName"], &endpoint["zone"]), (&json!("node1"), &json!("a")));
    assert_eq!((&endpoint["targetRef"]["kind"], &endpoint["targetRef"]["name"]), (&json!("Pod"), &json!("a")));
}

#[test]
fn a_named_port_may_differ_from_pod_to_pod() {
    let mut sim = sim();
    sim.create(Kind::Service, service("web"));
    for (name, ip, port) in [("a", "10.244.0.2", 80), ("b", "10.244.0.3", 8080), ("c", "10.244.0.4", 80)] {
        sim.create(Kind::Pod, pod(name, ip, port, "True"));
    }
    let mut none = pod("d", "10.244.0.5", 80, "True");
    none["spec"]["containers"][0]["ports"][0]["name"] = json!("other");
    sim.create(Kind::Pod, none);
    sim.settle_controllers();
    let mut groups: Vec<(String, usize)> = sim
        .all(Kind::EndpointSlice)
        .iter()
        .map(|slice| (slice["ports"][0]["port"].to_string(), slice["endpoints"].as_array().unwrap().len()))
        .collect();
    groups.sort();
    assert_eq!(groups, [("80".into(), 2), ("8080".into(), 1), ("null".into(), 1)]);
    let subsets = sim.get(&id(Kind::Endpoints, "web"))["subsets"].clone();
    assert_eq!(subsets.as_array().unwrap().len(), 2, "one for each port; a pod without the port is in none");
}

#[test]
fn headless_services_and_those_without_pods_or_selector() {
    let mut sim = sim();
    let mut headless = service("web");
    headless["spec"]["clusterIP"] = json!("None");
    headless["spec"].as_object_mut().unwrap().remove("ports");
    let web = sim.create(Kind::Service, headless);
    sim.create(Kind::Service, json!({"metadata": {"name": "manual"}, "spec": {"ports": [{"port": 80}]}}));
    sim.create(Kind::Endpoints, json!({"metadata": {"name": "manual"}}));
    sim.settle_controllers();
    assert_eq!(endpoints(&sim), Vec::<String>::new());
    let slices = sim.all(Kind::EndpointSlice);
    assert_eq!(slices.len(), 1, "a slice that says that nobody serves, and none for a Service without selector");
    assert_eq!(slices[0]["metadata"]["labels"]["service.kubernetes.io/headless"], "");
    sim.create(Kind::Pod, pod("a", "10.244.0.2", 80, "True"));
    sim.settle_controllers();
    assert_eq!(endpoints(&sim), ["10.244.0.2 true true false"]);
    assert_eq!(sim.all(Kind::EndpointSlice).len(), 1);
    sim.delete(&web, Deletion::Background);
    sim.settle_controllers();
    assert_eq!(sim.all(Kind::EndpointSlice).len(), 0);
    assert_eq!(sim.all(Kind::Endpoints).len(), 1, "the user's own Endpoints stay");
}

#[test]
fn slices_hold_a_hundred_and_a_change_writes_one() {
    let mut sim = sim();
    sim.create(Kind::Service, service("web"));
    for number in 0..250 {
        sim.create(Kind::Pod, pod(&format!("p{number:03}"), &format!("10.244.1.{number}"), 80, "True"));
    }
    sim.settle_controllers();
    let sizes = |sim: &Sim| {
        let slices = sim.all(Kind::EndpointSlice);
        let mut sizes: Vec<usize> = slices.iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&sim).iter().sum::<usize>(), 250);
    assert!(sizes(&sim).iter().all(|size| *size <= 100));
    let revisions = |sim: &Sim| -> Vec<Value> {
        sim.all(Kind::EndpointSlice).iter().map(|slice| slice["metadata"]["resourceVersion"].clone()).collect()
    };
    let before = revisions(&sim);
    sim.patch_status(&id(Kind::Pod, "p007"), json!({"conditions": [{"type": "Ready", "status": "False"}]}));
    sim.settle_controllers();
    let changed = before.iter().zip(revisions(&sim)).filter(|(before, after)| **before != *after).count();
    assert_eq!(changed, 1);
    for number in 0..250 {
        sim.delete(&id(Kind::Pod, &format!("p{number:03}")), Deletion::Force);
    }
    sim.settle_controllers();
    assert_eq!(sizes(&sim), [0], "one empty slice stays");
}
