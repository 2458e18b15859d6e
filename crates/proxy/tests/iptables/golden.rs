//! What the real programs print of the real kernel, of both kinds.

use std::{fmt::Write as _, time::Duration};

use podwire_kernel::iptables::{Backend, Fake, Iptables, Real, Table};
use podwire_model::{Family, LoadBalancerIngress, ServiceType, TrafficPolicy};
use podwire_proxy::mode::{
    Mode, Settings,
    iptables::{IptablesMode, remove},
};
use podwire_testkit::{
    build::{ip, node_port_service, service, slice},
    namespace::in_namespace,
    packet_table::{self, World},
};

use super::table::{settings, tracking};

/// A Service of each shape.
fn world() -> World {
    let mut world = packet_table::empty();
    let (here, there) = ("10.244.0.2@node1", "10.244.1.2@node2");
    let mut add = |service: podwire_model::Service, endpoints: &[&str]| {
        world.slices.push(slice(&service.name.to_string(), 8080, endpoints));
        world.services.push(service);
    };
    add(service("ns/plain", "10.96.0.1"), &[here, there]);
    let mut local = node_port_service("ns/local", "10.96.0.2", 30002);
    local.external_policy = TrafficPolicy::Local;
    add(local, &[here, there]);
    let mut away = node_port_service("ns/away", "10.96.0.3", 30003);
    away.external_policy = TrafficPolicy::Local;
    add(away, &[there]);
    let mut balanced = node_port_service("ns/balanced", "10.96.0.4", 30004);
    balanced.kind = ServiceType::LoadBalancer;
    balanced.load_balancer = vec![LoadBalancerIngress { ip: ip("192.0.2.4"), proxied: false }];
    balanced.external_ips = vec![ip("192.0.2.5")];
    balanced.source_ranges = vec!["203.0.113.0/25".parse().unwrap()];
    add(balanced, &[there]);
    let mut sticky = service("ns/sticky", "10.96.0.6");
    sticky.client_ip_affinity = Some(Duration::from_secs(10800));
    add(sticky, &[here, there]);
    add(node_port_service("ns/none", "10.96.0.7", 30007), &[]);
    let mut six = node_port_service("ns/six", "fd00:10:96::8", 30008);
    six.client_ip_affinity = Some(Duration::from_secs(60));
    add(six, &["fd00:10:244::2", "fd00:10:244::3"]);
    world
}

/// Everything in the tables, as `iptables-save` has it.
fn listed(iptables: &mut impl Iptables) -> String {
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        for table in [Table::Nat, Table::Filter, Table::Mangle] {
            writeln!(text, "# {family:?}\n*{table}").unwrap();
            let state = iptables.save(family, table).unwrap();
            for (name, chain) in &state.chains {
                writeln!(text, ":{name} {} [0:0]", chain.policy.as_deref().unwrap_or("-")).unwrap();
            }
            for (name, chain) in &state.chains {
                chain.rules.iter().for_each(|rule| writeln!(text, "-A {name} {rule}").unwrap());
            }
            writeln!(text, "COMMIT").unwrap();
        }
    }
    text
}

fn start<K: Iptables>(iptables: K, settings: Settings) -> IptablesMode<K> {
    let mut mode = IptablesMode::new(iptables, settings);
    mode.apply(tracking(&world()).take_changes().unwrap()).unwrap();
    mode
}

#[test]
fn the_rules_are_as_they_are_meant() {
    let mut mode = start(Fake::new(), settings(&world()));
    assert_eq!(listed(mode.iptables_mut()), include_str!("rules.txt"));
}

#[test]
fn the_real_programs_print_the_same_and_a_restart_writes_nothing() {
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(|| {
            let open = || Real::open(Some(backend)).unwrap();
            let empty = listed(&mut open());
            start(open(), settings(&world()));
            assert_eq!(listed(&mut open()), include_str!("rules.txt"), "{backend:?}");
            let mut again = IptablesMode::new(open(), settings(&world()));
            let applied = again.apply(tracking(&world()).take_changes().unwrap()).unwrap();
            assert_eq!((applied.written, applied.full), (0, true), "{backend:?}");
            assert!(!again.disturbed().unwrap(), "{backend:?}");
            remove(&mut open()).unwrap();
            // The tables stay, with the kernel's own chains: iptables does not take them away either.
            assert!(listed(&mut open()).lines().filter(|line| line.contains("KUBE-")).count() == 0, "{empty}");
        });
    }
}

#[test]
fn the_real_programs_understand_what_is_restored() {
    let mut fake = start(Fake::new(), settings(&world())).iptables().clone();
    let restored = fake.take_restored();
    assert!(restored.len() > 4);
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(|| {
            let mut real = Real::open(Some(backend)).unwrap();
            for (family, text) in &restored {
                // One table of each text at a time: what is only tested is not there for the next text.
                real.test(*family, text).unwrap_or_else(|error| panic!("{backend:?}: {error}"));
                real.restore(*family, text).unwrap();
            }
        });
    }
}
