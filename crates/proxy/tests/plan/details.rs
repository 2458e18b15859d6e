//! What a packet's fate does not show.

use std::{collections::BTreeSet, time::Duration};

use podwire_model::{IpNet, Node, TrafficPolicy};
use podwire_proxy::plan::Treatment;
use podwire_testkit::{
    build::{ip, node, service, slice},
    packet_table::{NODE, World, empty},
};

use super::support::{planned, tracker};

fn treatment(world: &World, address: &str) -> Treatment {
    let changes = planned(world);
    let at = |entry: podwire_proxy::plan::Entry| entry == podwire_proxy::plan::Entry::Address(ip(address));
    changes.frontends.into_iter().find(|(frontend, _)| at(frontend.entry)).unwrap().1.unwrap()
}

#[test]
fn nobody_keeps_its_endpoint_longer_than_a_day() {
    let mut sticky = service("sticky", "10.96.0.1");
    for (asked, kept) in [(60, 60), (86_400, 86_400), (100_000, 86_400)] {
        sticky.client_ip_affinity = Some(Duration::from_secs(asked));
        let world = World { services: vec![sticky.clone()], ..empty() };
        assert_eq!(treatment(&world, "10.96.0.1").affinity, Some(Duration::from_secs(kept)));
    }
}

#[test]
fn a_node_that_may_use_a_load_balancer_may_send_from_its_address() {
    let mut balanced = podwire_testkit::build::node_port_service("lb", "10.96.0.1", 30080);
    balanced.kind = podwire_model::ServiceType::LoadBalancer;
    balanced.load_balancer = vec![podwire_model::LoadBalancerIngress { ip: ip("192.0.2.1"), proxied: false }];
    let sources = |range: &str| {
        let range: IpNet = range.parse().unwrap();
        let world = World {
            services: vec![podwire_model::Service { source_ranges: vec![range], ..balanced.clone() }],
            ..empty()
        };
        treatment(&world, "192.0.2.1").sources.unwrap().iter().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    assert_eq!(sources("172.25.2.9/24"), ["172.25.2.0/24", "192.0.2.1/32"].map(str::to_owned).into());
    assert_eq!(sources("198.51.100.0/24"), ["198.51.100.0/24".to_owned()].into());
}

#[test]
fn only_what_can_reach_itself_through_this_node_is_masqueraded_when_it_does() {
    let endpoints = ["10.244.0.2@node1", "10.244.0.9", "10.244.1.2@node2", "172.25.2.254"];
    let hairpin = |policy| {
        let mut web = podwire_testkit::build::node_port_service("web", "10.96.0.1", 30080);
        web.external_policy = policy;
        let world = World { services: vec![web], slices: vec![slice("web", 80, &endpoints)], ..empty() };
        planned(&world).hairpin.into_iter().map(|(address, _)| address).collect::<Vec<_>>()
    };
    // 10.244.0.9 does not say where it is, but this node's pods have such addresses.
    assert_eq!(hairpin(TrafficPolicy::Cluster), [ip("10.244.0.2"), ip("10.244.0.9")]);
    // Pods of other nodes come unmasqueraded with policy Local.
    assert_eq!(hairpin(TrafficPolicy::Local).len(), 4);
}

#[test]
fn what_is_learnt_of_the_node_changes_plans() {
    let world = empty();
    let mut tracker = tracker(&world);
    let mut zoned = slice("web", 80, &["10.244.0.2@node1", "10.244.1.2@node2"]);
    zoned.endpoints[0].hint_zones = vec!["zone-a".into()];
    zoned.endpoints[1].hint_zones = vec!["zone-b".into()];
    tracker.set_services([service("web", "10.96.0.1")]);
    tracker.set_slices([zoned]);
    tracker.take_changes();
    let same = Node {
        zone: Some("zone-a".into()),
        internal_ips: world.node_addresses.clone(),
        pod_cidrs: podwire_testkit::packet_table::FAMILIES
            .map(|family| podwire_testkit::packet_table::range("10.244.0.0/24", family))
            .into(),
        ..node("node1", NODE)
    };
    tracker.node(&same);
    assert!(tracker.take_changes().unwrap().is_empty());
    tracker.node(&Node { name: "node2".into(), zone: None, ..same.clone() });
    assert!(tracker.take_changes().unwrap().is_empty());
    tracker.node(&Node { zone: Some("zone-b".into()), ..same });
    assert_eq!(tracker.take_changes().unwrap().frontends.len(), 1);
}
