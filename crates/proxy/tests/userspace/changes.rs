//! What changes write: as little as possible, to the same end by every road, and whatever fails on the way.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use podwire_kernel::iptables::{Fake, Table, TableState};
use podwire_model::{Family, LoadBalancerIngress, Protocol, ServiceType, TrafficPolicy};
use podwire_proxy::{
    Changes, Tracker,
    mode::{
        self, Applied, DetectLocal, Mode, NodePortAddresses, Settings, StaleFlows,
        userspace::{
            Userspace,
            relay::FakePorts,
            trace::{Fate, Machine, Packet, trace},
        },
    },
    plan::{Backend, Entry, Frontend},
};
use podwire_testkit::{
    build::{endpoint, ip, node_port_service, service, slice},
    packet_table::{self, NODE, OUTSIDE, Outcome, POD_A, POD_B, POD_C, World},
    replay,
};

use super::support;

type OverFakes = Userspace<Fake, FakePorts>;

fn settings() -> Settings {
    support::settings(&packet_table::empty())
}

fn tracker() -> Tracker {
    support::tracker(&packet_table::empty())
}

fn tracking(world: &World) -> Tracker {
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    tracker
}

fn applied_with(world: &World, settings: Settings) -> OverFakes {
    let mut mode = Userspace::new(Fake::new(), FakePorts::default(), settings);
    mode.apply(tracking(world).take_changes().unwrap()).unwrap();
    mode
}

fn applied(world: &World) -> OverFakes {
    applied_with(world, settings())
}

fn table(mode: &OverFakes, table: Table) -> TableState {
    mode.iptables().table(Family::V4, table)
}

/// What becomes of a packet on a node with these addresses, that came in by `input`.
fn fate(mode: &OverFakes, (from, input): (&str, &str), to: &str, protocol: Protocol) -> Fate {
    let to: std::net::SocketAddr = to.parse().unwrap();
    let family = Family::of(&to.ip());
    let [nat, filter] = [Table::Nat, Table::Filter].map(|table| mode.iptables().table(family, table));
    let addresses: Vec<IpAddr> = [packet_table::empty().node_addresses, vec![ip("fd00::1")]].concat();
    let machine = Machine { nat: &nat, filter: &filter, addresses: &addresses, ports: mode.ports() };
    let destination = (to.ip(), to.port());
    trace(&machine, Packet { source: ip(from), destination, protocol, input }).unwrap()
}

fn tcp(mode: &OverFakes, from: &str, to: &str) -> Fate {
    fate(mode, (from, "eth0"), to, Protocol::Tcp)
}

fn relayed(to: &[&str]) -> Fate {
    Fate::Relayed(to.iter().map(|address| Backend { address: ip(address), port: 8080 }).collect())
}

fn assert_rows(mode: &OverFakes, road: &str) {
    let (world, abilities) = (packet_table::world(), support::abilities(mode::find("userspace").unwrap()));
    for row in packet_table::rows() {
        let packet = row.packet;
        let input = packet_table::interface(&packet.from);
        let traced = fate(mode, (&packet.from.to_string(), input), &packet.to.to_string(), packet.protocol);
        let wanted = match row.outcome_by(&world, &abilities) {
            Outcome::Untouched => Fate::Untouched,
            Outcome::Rejected => Fate::Rejected,
            Outcome::Dropped => Fate::Dropped,
            // Every source is replaced in this mode.
            Outcome::Sent(to) => {
                Fate::Relayed(to.iter().map(|(to, _)| Backend { address: to.ip(), port: to.port() }).collect())
            }
        };
        assert_eq!(traced, wanted, "{} ({road})", row.name);
    }
}

#[test]
fn every_row_of_the_packet_table_and_every_road_there() {
    for fail in [None, Some(10)] {
        for (road, states) in replay::roads(&packet_table::history(), &packet_table::empty()) {
            let (mut iptables, mut ports) = (Fake::new(), FakePorts::default());
            if let Some(n) = fail {
                (iptables, ports) = (iptables.failing_one_in(n), ports.failing_one_in(n));
            }
            let mut mode = Userspace::new(iptables, ports, settings());
            let mut tracker = tracker();
            for world in states {
                tracker.set_services(world.services);
                tracker.set_slices(world.slices);
                let mut changes = tracker.take_changes().unwrap();
                let settled = (0..300).any(|_| mode.apply(std::mem::take(&mut changes)).is_ok());
                assert!(settled, "did not succeed in 300 attempts");
            }
            mode.iptables_mut().heal();
            assert_rows(&mode, &format!("{road}, fail: {fail:?}"));
        }
    }
}

#[test]
fn without_services_nothing_is_made() {
    let mut mode = applied(&packet_table::empty());
    assert_eq!(mode.iptables_mut().take_restored(), []);
}

/// Two Services, and the tracker that knows them.
fn started() -> (OverFakes, Tracker) {
    let mut tracker = tracker();
    tracker.set_services([service("web", "10.96.0.10"), service("other", "10.96.0.11")]);
    tracker.set_slices([slice("web", 8080, &[POD_A, POD_B]), slice("other", 8080, &[POD_C])]);
    let mut mode = Userspace::new(Fake::new(), FakePorts::default(), settings());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    mode.iptables_mut().take_restored();
    (mode, tracker)
}

fn apply(mode: &mut OverFakes, tracker: &mut Tracker) -> (Applied, Vec<String>) {
    let applied = mode.apply(tracker.take_changes().unwrap()).unwrap();
    let texts = mode.iptables_mut().take_restored().into_iter().map(|(_, text)| text).collect();
    (applied, texts)
}

#[test]
fn a_change_of_endpoints_writes_nothing() {
    let (mut mode, mut tracker) = started();
    tracker.slice(slice("web", 8080, &[POD_C]));
    assert_eq!(apply(&mut mode, &mut tracker), (Applied::default(), vec![]));
    assert_eq!(tcp(&mode, POD_A, "10.96.0.10:80"), relayed(&[POD_C]));
}

#[test]
fn a_change_of_a_service_writes_its_rules_only() {
    let (mut mode, mut tracker) = started();
    let before = [Table::Nat, Table::Filter].map(|name| table(&mode, name));
    let ports = mode.ports().open_ports().len();
    tracker.service(service("new", "10.96.0.12"));
    tracker.slice(slice("new", 8080, &[POD_C]));
    let (applied, texts) = apply(&mut mode, &mut tracker);
    // Two that lead to the port, two around the port, one for the other ports of the address.
    assert_eq!((applied.written, texts.len()), (5, 1));
    assert!(
        texts[0].lines().all(|line| line.starts_with("-A") || line.starts_with('*') || line == "COMMIT"),
        "{texts:?}"
    );
    assert_eq!(tcp(&mode, OUTSIDE, "10.96.0.12:80"), relayed(&[POD_C]));

    tracker.service_gone(&podwire_testkit::build::name("new"));
    let (applied, texts) = apply(&mut mode, &mut tracker);
    assert_eq!((applied.written, applied.untidy, texts.len()), (3, true, 1));
    assert_eq!(mode.ports().open_ports().len(), ports + 1, "connections may be on their way there");
    assert!(mode.tidy().unwrap());
    assert!(!mode.tidy().unwrap());
    assert_eq!(mode.ports().open_ports().len(), ports);
    assert_eq!([Table::Nat, Table::Filter].map(|name| table(&mode, name)), before);
}

#[test]
fn a_port_is_kept_while_endpoints_come_and_go() {
    let (mut mode, mut tracker) = started();
    let before = table(&mode, Table::Nat);
    tracker.slice(slice("web", 8080, &[]));
    let (applied, _) = apply(&mut mode, &mut tracker);
    assert!(applied.untidy);
    assert_eq!(tcp(&mode, POD_A, "10.96.0.10:80"), Fate::Rejected);
    assert!(mode.tidy().unwrap());
    tracker.slice(slice("web", 8080, &[POD_B]));
    apply(&mut mode, &mut tracker);
    assert!(!mode.tidy().unwrap());
    let rules = |state: &TableState| -> BTreeSet<_> {
        state
            .chains
            .iter()
            .flat_map(|(name, chain)| chain.rules.iter().map(move |rule| format!("{name} {rule}")))
            .collect()
    };
    assert_eq!(rules(&table(&mode, Table::Nat)), rules(&before));
    assert_eq!(tcp(&mode, POD_A, "10.96.0.10:80"), relayed(&[POD_B]));
}

#[test]
fn a_restart_takes_the_ports_again_and_writes_nothing() {
    let world = packet_table::world();
    let first = applied(&world);
    let mut fake = first.iptables().clone();
    fake.take_restored();
    let mut second = Userspace::new(fake, FakePorts::default(), settings());
    let report = second.apply(tracking(&world).take_changes().unwrap()).unwrap();
    assert_eq!(report, Applied { full: true, ..Applied::default() });
    assert_eq!(second.iptables_mut().take_restored(), []);
    let keys = |mode: &OverFakes| mode.ports().open_ports().keys().copied().collect::<Vec<_>>();
    assert_eq!(keys(&second), keys(&first));
}

#[test]
fn udp_that_goes_to_another_port_now_is_forgotten() {
    let mut udp = service("dns", "10.96.0.53");
    udp.ports[0].protocol = Protocol::Udp;
    let mut of_udp = slice("dns", 8080, &[POD_A]);
    of_udp.ports[0].protocol = Protocol::Udp;
    let world = World { services: vec![udp], slices: vec![of_udp], ..packet_table::empty() };
    let mut mode = Userspace::new(Fake::new(), FakePorts::default(), settings());
    let frontend = Frontend { entry: Entry::Address(ip("10.96.0.53")), protocol: Protocol::Udp, port: 80 };
    let first = mode.apply(tracking(&world).take_changes().unwrap()).unwrap();
    assert_eq!(first.stale, [StaleFlows::Untranslated(frontend)]);
    let filter = StaleFlows::Redirected(frontend, 40_000).filter();
    assert_eq!(
        (filter.original_destination, filter.reply_source, filter.reply_port),
        (Some(ip("10.96.0.53")), None, Some(40_000))
    );

    // The port went to somebody else while no proxy ran; later the Service went too.
    let mut ports = FakePorts::default();
    ports.take(40_000);
    let mut mode = Userspace::new(mode.iptables().clone(), ports, settings());
    let second = mode.apply(tracking(&world).take_changes().unwrap()).unwrap();
    assert_eq!(second.stale, [StaleFlows::Redirected(frontend, 40_000)]);
    assert_eq!(fate(&mode, (POD_B, "eth0"), "10.96.0.53:80", Protocol::Udp), relayed(&[POD_A]));
    let mut mode = Userspace::new(mode.iptables().clone(), FakePorts::default(), settings());
    let third = mode.apply(tracking(&packet_table::empty()).take_changes().unwrap()).unwrap();
    assert_eq!(third.stale, [StaleFlows::Redirected(frontend, 40_001)]);
    assert!(table(&mode, Table::Nat).chains.keys().all(|chain| !chain.starts_with("KUBE-")), "nothing is left");
}

#[test]
fn what_others_change_is_repaired() {
    let world = packet_table::world();
    let mut mode = applied(&world);
    assert!(!mode.disturbed().unwrap());
    let chains = &mut mode.iptables_mut().table_mut(Family::V4, Table::Nat).chains;
    chains.get_mut("PREROUTING").unwrap().rules.push("-j RETURN".to_owned());
    assert!(!mode.disturbed().unwrap(), "not ours");
    let hurts: [fn(&mut Fake); 4] = [
        |fake| fake.table_mut(Family::V4, Table::Nat).chains.get_mut("PREROUTING").unwrap().rules.clear(),
        |fake| drop(fake.table_mut(Family::V4, Table::Filter).chains.remove("KUBE-PORTALS-CONTAINER")),
        |fake| fake.table_mut(Family::V4, Table::Nat).chains.get_mut("KUBE-PORTALS-HOST").unwrap().rules.truncate(3),
        |fake| {
            let rule = "-p tcp -m tcp --dport 1 -j REDIRECT --to-ports 2".to_owned();
            fake.table_mut(Family::V4, Table::Nat).chains.get_mut("KUBE-NODEPORT-HOST").unwrap().rules.push(rule);
        },
    ];
    let right = [Table::Nat, Table::Filter].map(|name| table(&mode, name));
    for hurt in hurts {
        hurt(mode.iptables_mut());
        assert!(mode.disturbed().unwrap());
        let repaired = mode.apply(Changes::default()).unwrap();
        assert!(repaired.full && repaired.written > 0);
        assert!(!mode.disturbed().unwrap());
        assert_rows(&mode, "repaired");
        assert_eq!(table(&mode, Table::Filter), right[1]);
    }
    assert_eq!(mode.apply(Changes::default()).unwrap().written, 0);
}

#[test]
fn a_port_that_cannot_be_opened_is_refused_and_everything_else_served() {
    let (mut mode, mut tracker) = started();
    *mode.ports_mut() = mode.ports().clone().failing_one_in(1);
    tracker.service(service("new", "10.96.0.12"));
    tracker.slice(slice("new", 8080, &[POD_C]));
    tracker.slice(slice("web", 8080, &[POD_B]));
    let error = mode.apply(tracker.take_changes().unwrap()).unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    assert_eq!(tcp(&mode, POD_A, "10.96.0.12:80"), Fate::Rejected);
    assert_eq!(tcp(&mode, POD_A, "10.96.0.10:80"), relayed(&[POD_B]));
    mode.ports_mut().heal();
    mode.apply(Changes::default()).unwrap();
    assert_eq!(tcp(&mode, POD_A, "10.96.0.12:80"), relayed(&[POD_C]));
}

/// One Service with everything, whose traffic from outside stays on the node.
fn local_world() -> World {
    let mut web = node_port_service("web", "10.96.0.10", 30080);
    web.kind = ServiceType::LoadBalancer;
    web.external_policy = TrafficPolicy::Local;
    web.client_ip_affinity = Some(Duration::from_secs(60));
    web.load_balancer = vec![LoadBalancerIngress { ip: ip("192.0.2.1"), proxied: false }];
    web.source_ranges = vec!["10.0.0.0/8".parse().unwrap(), "172.25.2.250/32".parse().unwrap()];
    let mut slice = slice("web", 8080, &[POD_A, POD_C]);
    slice.endpoints = [format!("{POD_A}@node1"), format!("{POD_C}@node2")].iter().map(|text| endpoint(text)).collect();
    World { services: vec![web], slices: vec![slice], ..packet_table::empty() }
}

#[test]
fn allowed_sources_enter_and_others_do_not() {
    let mode = applied(&local_world());
    let lb = "192.0.2.1:80";
    assert_eq!(tcp(&mode, POD_B, lb), relayed(&[POD_A, POD_C]), "a pod, within the larger range");
    assert_eq!(tcp(&mode, "10.1.2.3", lb), relayed(&[POD_A]), "from outside, within that range");
    assert_eq!(tcp(&mode, OUTSIDE, lb), relayed(&[POD_A]));
    assert_eq!(tcp(&mode, "172.25.2.251", lb), Fate::Dropped);
    assert_eq!(tcp(&mode, NODE, lb), Fate::Dropped, "the node is in no range");
    assert_eq!(tcp(&mode, "172.25.2.251", "172.25.2.1:30080"), relayed(&[POD_A]), "node ports are for everyone");
}

#[test]
fn pods_are_told_by_interface_too() {
    for (detect_local, inside) in [
        (DetectLocal::Interface("cni0".to_owned()), "cni0"),
        (DetectLocal::InterfacePrefix("veth".to_owned()), "veth1234"),
    ] {
        let mode = applied_with(&local_world(), Settings { detect_local, ..settings() });
        let from = |input| fate(&mode, (OUTSIDE, input), "172.25.2.1:30080", Protocol::Tcp);
        assert_eq!(from(inside), relayed(&[POD_A, POD_C]));
        assert_eq!(from("eth0"), relayed(&[POD_A]));
        assert_eq!(tcp(&mode, NODE, "172.25.2.1:30080"), relayed(&[POD_A, POD_C]));
    }
    let mode = applied_with(&local_world(), Settings { detect_local: DetectLocal::Unknown, ..settings() });
    assert_eq!(tcp(&mode, POD_B, "172.25.2.1:30080"), relayed(&[POD_A]));
}

#[test]
fn node_ports_answer_where_they_shall() {
    let at = |settings: Settings, to: &str| tcp(&applied_with(&local_world(), settings), NODE, to);
    let (all, other, loopback) = ("172.25.2.1:30080", "10.244.0.1:30080", "127.0.0.1:30080");
    let primary = || Settings {
        node_port_addresses: NodePortAddresses::Primary,
        node_ips: vec![ip("fd00::1"), ip(NODE)],
        ..settings()
    };
    let ranges = |text: &str| Settings {
        node_port_addresses: NodePortAddresses::Ranges(vec![text.parse().unwrap()]),
        ..settings()
    };
    let served = relayed(&[POD_A, POD_C]);
    for to in [all, other, loopback] {
        assert_eq!(at(settings(), to), served, "{to}");
    }
    let not_there = || Settings { localhost_node_ports: false, ..settings() };
    assert_eq!([all, other, loopback].map(|to| at(not_there(), to)), [served.clone(), served.clone(), Fate::Untouched]);
    assert_eq!([all, other, loopback].map(|to| at(primary(), to)), [served.clone(), Fate::Untouched, Fate::Untouched]);
    assert_eq!([all, other].map(|to| at(ranges("10.244.0.0/24"), to)), [Fate::Untouched, served.clone()]);
    assert_eq!([all, other].map(|to| at(ranges("0.0.0.0/0"), to)), [served.clone(), served]);
}

#[test]
fn unallocated_addresses_are_dropped_and_a_local_port_takes_only_what_was_redirected() {
    let mode = applied_with(
        &packet_table::world(),
        Settings { service_ranges: vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()], ..settings() },
    );
    for from in [POD_A, NODE, OUTSIDE] {
        assert_eq!(tcp(&mode, from, "10.96.7.7:80"), Fate::Dropped);
        assert_eq!(tcp(&mode, from, "10.96.0.10:81"), Fate::Rejected);
    }
    assert_eq!(tcp(&mode, "fd00:244::2", "[fd96::7]:80"), Fate::Dropped);
    let (_, _, port) = *mode.ports().open_ports().keys().next().unwrap();
    for from in [POD_A, NODE, OUTSIDE] {
        assert_eq!(tcp(&mode, from, &format!("{NODE}:{port}")), Fate::Rejected);
    }
}

#[test]
fn six_is_served_as_four_and_sctp_is_refused() {
    let mut dual = node_port_service("web", "10.96.0.10", 30080);
    dual.cluster_ips.push(ip("fd96::10"));
    dual.ports.push(podwire_testkit::build::port("sctp", Protocol::Sctp, 132));
    dual.ports[0].name = "web".into();
    let mut slices = [slice("web", 8080, &[POD_A]), slice("web", 8080, &["fd00:244::2"])];
    for slice in &mut slices {
        slice.ports[0].name = "web".into();
        let sctp = podwire_model::EndpointPort { name: "sctp".into(), protocol: Protocol::Sctp, port: 8080 };
        slice.ports.push(sctp);
    }
    slices[1].name = podwire_testkit::build::name("web-6");
    let mode = applied(&World { services: vec![dual], slices: slices.into(), ..packet_table::empty() });
    let six = relayed(&["fd00:244::2"]);
    for (from, to) in
        [("fd00:244::9", "[fd96::10]:80"), ("fd00::1", "[fd96::10]:80"), ("2001:db8::1", "[fd00::1]:30080")]
    {
        assert_eq!(tcp(&mode, from, to), six, "{from} to {to}");
    }
    assert_eq!(tcp(&mode, "fd00::1", "[fd96::10]:81"), Fate::Rejected);
    assert_eq!(tcp(&mode, POD_B, "10.96.0.10:80"), relayed(&[POD_A]));
    for to in ["10.96.0.10:132", "[fd96::10]:132"] {
        let from = if to.starts_with('[') { "fd00:244::9" } else { POD_B };
        assert_eq!(fate(&mode, (from, "eth0"), to, Protocol::Sctp), Fate::Rejected);
    }
    assert!(mode.ports().open_ports().keys().all(|(protocol, ..)| *protocol != Protocol::Sctp));
}
