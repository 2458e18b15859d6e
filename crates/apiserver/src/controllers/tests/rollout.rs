//! Rolling updates never take more than they may.

use serde_json::{Value, json};

use super::{
    fixtures::{daemon_set, deployment, id, service},
    sim::Sim,
};
use crate::controllers::{
    pods,
    world::{Kind, World},
};

fn image(version: &str) -> Value {
    let containers = json!([{"name": "web", "image": version, "ports": [{"name": "http", "containerPort": 80}]}]);
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

/// How many pods serve, and how many replicas are asked for in all.
fn serving_and_asked_for(world: &World) -> (usize, i32) {
    let serving = world.pods.iter().filter(|pod| pods::active(pod) && pods::ready(pod)).count();
    let asked_for = world.replica_sets.iter().filter_map(|set| set.spec.as_ref()?.replicas).sum();
    (serving, asked_for)
}

fn updating(surge: Value, unavailable: Value, invariant: fn(&World)) {
    for seed in 1..=16_u64 {
        let mut sim = Sim::with_nodes(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 3);
        let mut web = deployment("web", 4, "myapp:v1");
        web["spec"]["strategy"] = json!({
            "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
        });
        let web = sim.create(Kind::Deployment, web);
        sim.create(Kind::Service, service("web"));
        sim.settle();
        sim.invariant = invariant;
        sim.fail_one_in = if seed > 8 { 10 } else { 0 };
        for version in ["myapp:v2", "myapp:v1"] {
            sim.patch(&web, image(version));
            sim.settle();
            for pod in sim.pods() {
                assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some(version));
            }
        }
        assert_eq!(sim.pods().len(), 4);
        assert_eq!(sim.all(Kind::ReplicaSet).len(), 2, "going back uses the old ReplicaSet");
        assert_eq!(sim.get(&web)["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    }
}

#[test]
fn one_more_and_none_less() {
    updating(json!(1), json!(0), |world| {
        let (serving, asked_for) = serving_and_asked_for(world);
        assert!(serving >= 4, "only {serving} pods serve");
        assert!(asked_for <= 5, "{asked_for} pods");
    });
}

#[test]
fn none_more_and_one_less() {
    updating(json!(0), json!(1), |world| {
        let (serving, asked_for) = serving_and_asked_for(world);
        assert!(serving >= 3, "only {serving} pods serve");
        assert!(asked_for <= 4, "{asked_for} pods");
    });
}

#[test]
fn percentages() {
    updating(json!("25%"), json!("25%"), |world| {
        let (serving, asked_for) = serving_and_asked_for(world);
        assert!(serving >= 3, "only {serving} pods serve");
        assert!(asked_for <= 5, "{asked_for} pods");
    });
}

#[test]
fn recreate_ends_the_old_before_it_starts_the_new() {
    for seed in 1..=8 {
        let mut sim = Sim::with_nodes(seed, 3);
        let mut web = deployment("web", 3, "myapp:v1");
        web["spec"]["strategy"] = json!({"type": "Recreate"});
        let web = sim.create(Kind::Deployment, web);
        sim.settle();
        sim.invariant = |world| {
            let images = world.pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone());
            let images: std::collections::BTreeSet<String> = images.collect();
            assert!(images.len() <= 1, "both at once: {images:?}");
        };
        sim.patch(&web, image("myapp:v2"));
        sim.settle();
        assert_eq!(sim.pods().len(), 3);
        assert_eq!(sim.pods()[0].spec.as_ref().unwrap().containers[0].image.as_deref(), Some("myapp:v2"));
    }
}

#[test]
fn a_broken_revision_stops_and_times_out() {
    let mut sim = Sim::with_nodes(7, 3);
    let web = sim.create(Kind::Deployment, deployment("web", 4, "myapp:v1"));
    sim.settle();
    for number in 1..=3 {
        // The nodes live on: their Leases are renewed for as long as the test takes.
        let lease = json!({"metadata": {"name": format!("node{number}")}, "spec": {"renewTime": "2026-01-02T00:00:00.000000Z"}});
        sim.create_in("kube-node-lease", Kind::Lease, lease);
    }
    sim.becomes_ready = |pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() != Some("broken");
    sim.patch(&web, image("broken"));
    sim.settle();
    let serving = sim.pods().iter().filter(|pod| pods::ready(pod)).count();
    assert_eq!(serving, 3, "25% of 4 may be missing, no more");
    sim.advance(601);
    let web = sim.get(&web);
    let progressing =
        web["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap();
    assert_eq!((&progressing["status"], &progressing["reason"]), (&json!("False"), &json!("ProgressDeadlineExceeded")));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut sim = Sim::with_nodes(3, 3);
    let web = sim.create(Kind::Deployment, deployment("web", 2, "myapp:v1"));
    sim.settle();
    sim.patch(&web, json!({"spec": {"paused": true, "replicas": 4}}));
    sim.patch(&web, image("myapp:v2"));
    sim.settle();
    assert_eq!((sim.pods().len(), sim.all(Kind::ReplicaSet).len()), (4, 1));
    sim.patch(&web, json!({"spec": {"paused": false}}));
    sim.settle();
    assert_eq!((sim.pods().len(), sim.all(Kind::ReplicaSet).len()), (4, 2));
    let images: Vec<_> = sim.pods().iter().map(|pod| pod.spec.as_ref().unwrap().containers[0].image.clone()).collect();
    assert!(images.iter().all(|image| image.as_deref() == Some("myapp:v2")), "{images:?}");
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut sim = Sim::with_nodes(5, 3);
    let mut web = deployment("web", 2, "myapp:v0");
    web["spec"]["revisionHistoryLimit"] = json!(2);
    let web = sim.create(Kind::Deployment, web);
    for version in 0..6 {
        sim.patch(&web, image(&format!("myapp:v{version}")));
        sim.settle();
    }
    let revisions: Vec<&Value> = sim
        .all(Kind::ReplicaSet)
        .iter()
        .map(|set| &set["metadata"]["annotations"]["deployment.kubernetes.io/revision"])
        .collect();
    assert_eq!(revisions.len(), 3, "{revisions:?}");
}

#[test]
fn min_ready_seconds_delays_the_next_step() {
    let mut sim = Sim::with_nodes(5, 3);
    let mut web = deployment("web", 1, "myapp:v1");
    web["spec"]["minReadySeconds"] = json!(10);
    web["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    let web = sim.create(Kind::Deployment, web);
    sim.settle();
    assert_eq!(sim.get(&web)["status"]["availableReplicas"], Value::Null);
    sim.advance(11);
    assert_eq!(sim.get(&web)["status"]["availableReplicas"], 1);
    sim.patch(&web, image("myapp:v2"));
    sim.settle();
    assert_eq!(sim.pods().len(), 2, "the old pod stays while the new one is young");
    sim.advance(11);
    assert_eq!(sim.pods().len(), 1);
}

#[test]
fn daemons_are_replaced_one_by_one() {
    for seed in 1..=8 {
        let mut sim = Sim::with_nodes(seed, 4);
        let agent = sim.create(Kind::DaemonSet, daemon_set("agent", "myapp:v1"));
        sim.settle();
        sim.invariant = |world| {
            let (serving, _) = serving_and_asked_for(world);
            assert!(serving >= 3, "only {serving} daemons serve");
            assert!(world.pods.iter().count() <= 4);
        };
        sim.patch(&agent, image("myapp:v2"));
        sim.settle();
        let status = sim.get(&id(Kind::DaemonSet, "agent"))["status"].clone();
        assert_eq!((&status["updatedNumberScheduled"], &status["numberAvailable"]), (&json!(4), &json!(4)));
    }
}

#[test]
fn daemons_with_a_surge_overlap_and_on_delete_ones_wait() {
    let mut sim = Sim::with_nodes(9, 3);
    let mut agent = daemon_set("agent", "myapp:v1");
    agent["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    let agent = sim.create(Kind::DaemonSet, agent);
    sim.settle();
    sim.invariant = |world| assert!(serving_and_asked_for(world).0 >= 3);
    sim.patch(&agent, image("myapp:v2"));
    sim.settle();
    assert_eq!(sim.get(&agent)["status"]["updatedNumberScheduled"], 3);
    assert_eq!(sim.pods().len(), 3);
    sim.patch(&agent, json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
    sim.patch(&agent, image("myapp:v3"));
    sim.settle();
    assert_eq!(sim.get(&agent)["status"]["updatedNumberScheduled"], Value::Null);
}
