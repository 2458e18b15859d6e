//! What is wrong with objects is told once, and the others are served.

use podwire_model::{LoadBalancerIngress, ObjectName, Problem, ServiceType, TrafficPolicy};
use podwire_proxy::Tracker;
use podwire_testkit::{
    build::{endpoint, ip, name, node_port_service, service, slice},
    packet_table::empty,
};

use super::support::tracker;

fn started() -> Tracker {
    let mut tracker = tracker(&empty());
    tracker.set_services([]);
    tracker.set_slices([]);
    tracker.take_changes();
    tracker
}

fn told(tracker: &mut Tracker) -> Vec<String> {
    tracker.take_changes();
    tracker.take_problems().iter().map(Problem::to_string).collect()
}

fn noted(object: ObjectName) -> Problem {
    Problem { kind: "EndpointSlice", object, field: "ports.port", what: "0 is not a port".to_owned(), done: "left out" }
}

#[test]
fn a_collision_is_told_of_the_one_that_loses_until_it_ends_and_comes_again() {
    let mut tracker = started();
    let mut first = node_port_service("a", "10.96.0.1", 30080);
    first.external_ips = vec![ip("192.0.2.1")];
    let mut second = node_port_service("b", "10.96.0.2", 30080);
    second.external_ips = vec![ip("192.0.2.1")];
    tracker.service(second.clone());
    assert_eq!(told(&mut tracker), [""; 0]);
    tracker.service(first.clone());
    let collisions = [
        "Service default/b: spec: 192.0.2.1:80/tcp is asked for by Service default/a too; that Service, the first by name, \
         gets it",
        "Service default/b: spec: node port 30080/tcp is asked for by Service default/a too; that Service, the first by \
         name, gets it",
    ];
    assert_eq!(told(&mut tracker), collisions);
    // Neither a change that has nothing to do with it nor the same lists again are news.
    tracker.slice(slice("a", 80, &["10.244.0.2"]));
    assert_eq!(told(&mut tracker), [""; 0]);
    tracker.set_services([first.clone(), second.clone()]);
    assert_eq!(told(&mut tracker), [""; 0]);
    assert_eq!(tracker.problems().count(), 2);
    tracker.service_gone(&first.name);
    assert_eq!(told(&mut tracker), [""; 0]);
    assert_eq!(tracker.problems().count(), 0);
    tracker.service(first);
    assert_eq!(told(&mut tracker), collisions);
}

#[test]
fn what_reading_found_holds_until_the_next_version() {
    let mut tracker = started();
    let bad = slice("web", 80, &["10.244.0.2"]);
    let read = |tracker: &mut Tracker| {
        tracker.slice(bad.clone());
        tracker.note(noted(bad.name.clone()));
    };
    read(&mut tracker);
    let text = "EndpointSlice default/web-1: ports.port: 0 is not a port; left out";
    assert_eq!(told(&mut tracker), [text]);
    read(&mut tracker);
    assert_eq!(told(&mut tracker), [""; 0], "the same again");
    tracker.slice(bad.clone());
    assert_eq!((told(&mut tracker), tracker.problems().count()), (vec![], 0), "repaired");
    read(&mut tracker);
    assert_eq!(told(&mut tracker), [text], "broken again");
    tracker.slice_gone(&bad.name);
    assert_eq!((told(&mut tracker), tracker.problems().count()), (vec![], 0), "gone");
    // What can be read not at all is taken away, and named.
    tracker.note(noted(bad.name));
    assert_eq!(told(&mut tracker).len(), 1);
    tracker.set_slices([]);
    assert_eq!(tracker.problems().count(), 0);
}

#[test]
fn a_health_check_port_belongs_to_one_service() {
    let mut tracker = started();
    for (name, cluster_ip) in [("b", "10.96.0.2"), ("a", "10.96.0.1")] {
        let mut asked = service(name, cluster_ip);
        asked.kind = ServiceType::LoadBalancer;
        asked.external_policy = TrafficPolicy::Local;
        asked.health_check_node_port = Some(31000);
        tracker.service(asked);
    }
    let [problem] = &told(&mut tracker)[..] else { panic!("not one") };
    assert!(problem.starts_with("Service default/b: spec.healthCheckNodePort: port 31000 "), "{problem}");
    assert_eq!(tracker.health_checks().keys().collect::<Vec<_>>(), [&name("a")]);
    tracker.service_gone(&name("a"));
    assert_eq!(told(&mut tracker), [""; 0]);
    assert_eq!(tracker.health_checks().keys().collect::<Vec<_>>(), [&name("b")]);
}

#[test]
fn garbage_leaves_all_others_as_they_are() {
    let mut tracker = started();
    let mut bad = slice("bad", 0, &["fd00::1", "10.244.0.2", "10.244.0.2"]);
    bad.ports.push(bad.ports[0].clone());
    bad.endpoints.extend((0..2000).map(|number| endpoint(&format!("10.250.{}.{}", number / 250, number % 250))));
    let mut odd = service("odd", "10.96.0.3");
    odd.ports.push(odd.ports[0].clone());
    odd.external_ips = vec![ip("10.96.0.3"), ip("10.96.0.3"), ip("fd00::5")];
    odd.load_balancer = vec![LoadBalancerIngress { ip: ip("10.96.0.3"), proxied: false }];
    tracker.set_services([service("good", "10.96.0.1"), service("bad", "10.96.0.2"), odd]);
    tracker.set_slices([bad, slice("good", 80, &["10.244.0.3"])]);
    let changes = tracker.take_changes().unwrap();
    assert_eq!(changes.frontends.len(), 3);
    assert_eq!(changes.cluster_ips.len(), 3);
}
