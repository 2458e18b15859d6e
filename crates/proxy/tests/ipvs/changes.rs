//! What changes write, and that every road leads to the same state.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use podwire_kernel::{
    ipset::{Entry, Ipset as _, Kind, Set},
    iptables::{Iptables as _, Table},
    ipvs::{Change, Connections, Destination, Ipvs as _, Persistence, Service, ServiceKey, Timeouts},
    route::{Address, LinkKind, Route as _},
    sysctl::Sysctl as _,
};
use podwire_model::{Family, LoadBalancerIngress, Protocol, ServiceType, TrafficPolicy};
use podwire_proxy::{
    Changes,
    mode::{Mode, NodePortAddresses, Settings, StaleFlows, ipvs, ipvs::Ipvs, ipvs::kernel::Fake},
    plan::{Backend, Entry as Way, Frontend, Me},
};
use podwire_testkit::{
    build::{ip, node_port_service, service, slice},
    packet_table::{self, NODE, OUTSIDE, Outcome, POD_A, Packet, World},
    replay,
};

use super::table::{applied, assert_rows, bring, kernel, settings, traced, tracker};

fn world(protocol: Protocol, endpoints: &[&str]) -> World {
    let mut web = service("web", "10.96.0.10");
    web.ports[0].protocol = protocol;
    let mut of_web = slice("web", 8080, endpoints);
    of_web.ports[0].protocol = protocol;
    World { services: vec![web], slices: vec![of_web], ..packet_table::empty() }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn vip(protocol: Protocol) -> ServiceKey {
    ServiceKey::Address(protocol, at("10.96.0.10:80"))
}

/// The destinations of a virtual server with their weights.
fn weights(fake: &Fake, key: &ServiceKey) -> Vec<(SocketAddr, u32)> {
    let found = fake.ipvs.table().get(key).map(|(_, found)| found.values().map(|found| found.destination));
    found.into_iter().flatten().map(|to| (to.address, to.weight)).collect()
}

fn entries(fake: &Fake, set: &str) -> BTreeSet<String> {
    fake.ipset.table()[set].1.keys().map(Entry::to_string).collect()
}

/// Everything in a kernel but counters of operations.
pub fn shape(fake: &Fake) -> BTreeSet<String> {
    let mut route = fake.route.clone();
    let ipvs = fake.ipvs.table().iter().map(|entry| format!("{entry:?}"));
    let ipset = fake.ipset.table().iter().map(|entry| format!("{entry:?}"));
    let iptables = [Family::V4, Family::V6].into_iter().flat_map(|family| {
        Table::ALL.map(|table| format!("{family:?} {table} {:?}", fake.iptables.table(family, table)))
    });
    let device = route.link("kube-ipvs0").unwrap().map(|link| link.index);
    let addresses = route.addresses(None).unwrap().into_iter();
    let addresses = addresses.map(|address| format!("{} {}", address.net, Some(address.device) == device));
    ipvs.chain(ipset).chain(iptables).chain(addresses).collect()
}

#[test]
fn every_road_leads_to_the_same_state() {
    let states = packet_table::history();
    let full = packet_table::world();
    let direct = shape(applied(&full).kernel());
    for (road, states) in replay::roads(&states, &packet_table::empty()) {
        let mut mode = Ipvs::new(kernel(&full), settings(&full));
        let mut tracker = tracker();
        for state in &states {
            bring(&mut mode, &mut tracker, state);
        }
        assert_rows(mode.kernel(), &full, road);
        assert_eq!(shape(mode.kernel()), direct, "{road}");
    }
}

#[test]
fn failures_on_the_way_make_no_difference() {
    let full = packet_table::world();
    let direct = shape(applied(&full).kernel());
    let mut mode = Ipvs::new(kernel(&full), settings(&full));
    mode.kernel_mut().fail_one_in(10);
    let mut tracker = tracker();
    for state in packet_table::history() {
        tracker.set_services(state.services);
        tracker.set_slices(state.slices);
        let _ = mode.apply(tracker.take_changes().unwrap());
        let _ = mode.tidy();
    }
    let settled = (0..300).any(|_| mode.apply(Changes::default()).is_ok() && matches!(mode.tidy(), Ok(false)));
    assert!(settled);
    mode.kernel_mut().heal();
    assert_rows(mode.kernel(), &full, "over failures");
    assert_eq!(shape(mode.kernel()), direct);
}

#[test]
fn a_restart_writes_nothing_when_all_is_in_place() {
    let world = packet_table::world();
    let kernel = applied(&world).kernel().clone();
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    let mut again = Ipvs::new(kernel.clone(), settings(&world));
    let done = again.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!((done.written, done.full, done.untidy), (0, true, false));
    assert_eq!(done.stale.iter().filter(|stale| matches!(stale, StaleFlows::To(..))).count(), 0);
    assert_eq!(shape(again.kernel()), shape(&kernel));
    assert_eq!(again.kernel().ipvs.changes(), kernel.ipvs.changes());
    assert_eq!(again.kernel().ipset.changes(), kernel.ipset.changes());
}

#[test]
fn virtual_servers_look_as_ipvsadm_should_show_them() {
    let mut world = world(Protocol::Tcp, &["10.244.0.2", "10.244.0.3"]);
    let mut sticky = service("sticky", "10.96.0.11");
    sticky.client_ip_affinity = Some(Duration::from_secs(10800));
    world.services.push(sticky);
    world.slices.push(slice("sticky", 8080, &["10.244.0.2"]));
    let mode = applied(&world);
    let (server, destinations) = &mode.kernel().ipvs.table()[&vip(Protocol::Tcp)];
    assert_eq!(*server, Service::new(vip(Protocol::Tcp), "rr"));
    let destinations: Vec<_> = destinations.values().map(|found| found.destination).collect();
    assert_eq!(destinations, ["10.244.0.2:8080", "10.244.0.3:8080"].map(|to| Destination::new(at(to), 1)));
    let (sticky, _) = &mode.kernel().ipvs.table()[&ServiceKey::Address(Protocol::Tcp, at("10.96.0.11:80"))];
    assert_eq!(sticky.persistence, Some(Persistence { timeout: Duration::from_secs(10800), prefix: 32 }));
    let mut route = mode.kernel().route.clone();
    let device = route.link("kube-ipvs0").unwrap().unwrap();
    assert_eq!((&device.kind, device.up), (&LinkKind::Dummy, false));
    let held: Vec<_> =
        route.addresses(Some(device.index)).unwrap().into_iter().map(|address| address.net.to_string()).collect();
    assert_eq!(held, ["10.96.0.10/32", "10.96.0.11/32"]);
    assert_eq!(
        entries(mode.kernel(), "KUBE-CLUSTER-IP"),
        ["10.96.0.10,tcp:80", "10.96.0.11,tcp:80"].map(String::from).into()
    );
    assert_eq!(entries(mode.kernel(), "KUBE-IPVS-IPS"), ["10.96.0.10", "10.96.0.11"].map(String::from).into());
}

#[test]
fn one_endpoint_is_one_message_however_many_there_are() {
    let mut world = packet_table::empty();
    for number in 0..200_u8 {
        let name = format!("web-{number}");
        world.services.push(service(&name, &format!("10.96.1.{number}")));
        let endpoints: Vec<_> = (0..50).map(|n| format!("10.244.{number}.{n}@node2")).collect();
        world.slices.push(slice(&name, 80, &endpoints.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    let mut mode = Ipvs::new(kernel(&world), settings(&world));
    let mut tracker = tracker();
    bring(&mut mode, &mut tracker, &world);
    let before = (mode.kernel().ipvs.changes(), mode.kernel().ipset.changes(), mode.kernel().route.operations());
    let reads = (mode.kernel().ipvs.reads(), mode.kernel().ipset.reads());
    let mut more = slice("web-7", 80, &["10.244.7.99@node2"]);
    more.name = podwire_testkit::build::name("web-7-2");
    tracker.slice(more.clone());
    let done = mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!((done.written, done.full, done.untidy), (1, false, false));
    assert_eq!(mode.kernel().ipvs.changes(), (before.0.0 + 1, before.0.1 + 1));
    tracker.slice_gone(&more.name);
    let done = mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!((done.written, done.full, done.untidy), (1, false, true));
    // Its weight became zero; it goes in a second.
    assert!(!mode.tidy().unwrap());
    assert_eq!(mode.kernel().ipvs.changes(), (before.0.0 + 3, before.0.1 + 3));
    assert_eq!((mode.kernel().ipset.changes(), mode.kernel().route.operations()), (before.1, before.2));
    assert_eq!((mode.kernel().ipvs.reads(), mode.kernel().ipset.reads()), (reads.0 + 1, reads.1));
}

#[test]
fn an_endpoint_with_connections_drains_and_comes_back() {
    let mut mode = Ipvs::new(kernel(&packet_table::empty()), settings(&packet_table::empty()));
    let mut tracker = tracker();
    let both = world(Protocol::Tcp, &["10.244.0.2", "10.244.0.3"]);
    bring(&mut mode, &mut tracker, &both);
    let (a, b) = (at("10.244.0.2:8080"), at("10.244.0.3:8080"));
    let key = vip(Protocol::Tcp);
    mode.kernel_mut().ipvs.connect(&key, &a, Connections { active: 1, ..Connections::default() });
    tracker.set_slices(world(Protocol::Tcp, &["10.244.0.3"]).slices);
    assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().untidy);
    for _ in 0..3 {
        assert!(mode.tidy().unwrap());
        assert_eq!(weights(mode.kernel(), &key), [(a, 0), (b, 1)]);
    }
    // It comes back while it drains, …
    tracker.set_slices(both.slices.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(weights(mode.kernel(), &key), [(a, 1), (b, 1)]);
    assert!(!mode.tidy().unwrap());
    // … goes again, over a restart, and at last its connection ends.
    tracker.set_slices(world(Protocol::Tcp, &["10.244.0.3"]).slices);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    let mut again = Ipvs::new(mode.kernel().clone(), settings(&both));
    let done = again.apply(tracker.take_all().unwrap()).unwrap();
    assert_eq!((done.written, done.untidy), (0, true));
    again.kernel_mut().ipvs.connect(&key, &a, Connections::default());
    assert!(!again.tidy().unwrap());
    assert_eq!(weights(again.kernel(), &key), [(b, 1)]);
}

#[test]
fn a_service_that_goes_keeps_its_address_until_the_last_connection_ends() {
    let before = world(Protocol::Tcp, &["10.244.0.2"]);
    let mut mode = Ipvs::new(kernel(&before), settings(&before));
    let mut tracker = tracker();
    bring(&mut mode, &mut tracker, &before);
    let (key, a) = (vip(Protocol::Tcp), at("10.244.0.2:8080"));
    mode.kernel_mut().ipvs.connect(&key, &a, Connections { active: 1, ..Connections::default() });
    tracker.set_services([]);
    assert!(mode.apply(tracker.take_changes().unwrap()).unwrap().untidy);
    assert!(mode.tidy().unwrap());
    let packet = Packet { from: ip(POD_A), to: at("10.96.0.10:80"), protocol: Protocol::Tcp };
    assert_eq!(weights(mode.kernel(), &key), [(a, 0)]);
    assert_eq!(traced(mode.kernel(), &packet), Outcome::Rejected);
    assert_eq!(entries(mode.kernel(), "KUBE-IPVS-IPS"), ["10.96.0.10".to_owned()].into());
    // Another Service gets the address meanwhile.
    tracker.set_services(before.services.clone());
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    assert_eq!(weights(mode.kernel(), &key), [(a, 1)]);
    tracker.set_services([]);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    mode.kernel_mut().ipvs.connect(&key, &a, Connections::default());
    assert!(!mode.tidy().unwrap());
    assert_eq!(shape(mode.kernel()), shape(applied(&packet_table::empty()).kernel()));
}

#[test]
fn udp_endpoints_go_at_once_and_their_flows_are_reported() {
    let frontend = Frontend { entry: Way::Address(ip("10.96.0.10")), protocol: Protocol::Udp, port: 80 };
    let to = |address| StaleFlows::To(frontend, Backend { address: ip(address), port: 8080 });
    let mut mode = Ipvs::new(kernel(&packet_table::empty()), settings(&packet_table::empty()));
    let mut tracker = tracker();
    let mut step = |mode: &mut Ipvs<Fake>, endpoints: &[&str]| {
        let world = world(Protocol::Udp, endpoints);
        tracker.set_services(world.services);
        tracker.set_slices(world.slices);
        let done = mode.apply(tracker.take_changes().unwrap()).unwrap();
        assert!(!done.untidy);
        done.stale
    };
    assert_eq!(step(&mut mode, &["10.244.0.2", "10.244.0.3"]), [StaleFlows::Untranslated(frontend)]);
    assert_eq!(step(&mut mode, &["10.244.0.3"]), [to("10.244.0.2")]);
    assert_eq!(weights(mode.kernel(), &vip(Protocol::Udp)), [(at("10.244.0.3:8080"), 1)]);
    assert_eq!(step(&mut mode, &[]), [to("10.244.0.3")]);
}

#[test]
fn udp_endpoints_that_went_while_no_proxy_ran_are_reported() {
    let udp = |name: &str, address: &str, node_port, endpoints: &[&str]| {
        let mut service = node_port_service(name, address, node_port);
        service.ports[0].protocol = Protocol::Udp;
        let mut slice = slice(name, 53, endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        (service, slice)
    };
    let (stays, stays_slice) = udp("stays", "10.96.0.10", 30053, &["10.244.0.2", "10.244.0.3"]);
    let (goes, goes_slice) = udp("goes", "10.96.0.11", 30054, &["10.244.0.4"]);
    let before =
        World { services: vec![stays.clone(), goes], slices: vec![stays_slice, goes_slice], ..packet_table::empty() };
    let kernel = applied(&before).kernel().clone();
    let mut tracker = tracker();
    tracker.set_services([stays]);
    tracker.set_slices([udp("stays", "10.96.0.10", 30053, &["10.244.0.3"]).1]);
    let mut restarted = Ipvs::new(kernel, settings(&before));
    let stale = restarted.apply(tracker.take_changes().unwrap()).unwrap().stale;
    let gone: BTreeSet<_> = stale.into_iter().filter(|stale| matches!(stale, StaleFlows::To(..))).collect();
    let frontend = |entry, port| Frontend { entry, protocol: Protocol::Udp, port };
    let to = |frontend, address| StaleFlows::To(frontend, Backend { address: ip(address), port: 53 });
    let expected = BTreeSet::from([
        to(frontend(Way::Address(ip("10.96.0.10")), 80), "10.244.0.2"),
        to(frontend(Way::NodePort(Family::V4), 30053), "10.244.0.2"),
        to(frontend(Way::Address(ip("10.96.0.11")), 80), "10.244.0.4"),
        to(frontend(Way::NodePort(Family::V4), 30054), "10.244.0.4"),
    ]);
    assert_eq!(gone, expected);
}

#[test]
fn rules_do_not_grow_with_services() {
    let count = |services: u8| {
        let mut world = packet_table::world();
        for number in 0..services {
            let name = format!("web-{number}");
            world.services.push(node_port_service(&name, &format!("10.97.0.{number}"), 31000 + u16::from(number)));
            world.slices.push(slice(&name, 80, &["10.244.0.2"]));
        }
        let mode = applied(&world);
        let tables = Table::ALL.map(|table| mode.kernel().iptables.table(Family::V4, table));
        tables.iter().flat_map(|table| table.chains.values()).map(|chain| chain.rules.len()).sum::<usize>()
    };
    assert_eq!(count(0), count(200));
    assert!(count(0) < 60, "{}", count(0));
}

#[test]
fn source_ranges_are_for_everyone_and_for_the_balancer_address_only() {
    let mut web = node_port_service("web", "10.96.0.10", 30080);
    web.kind = ServiceType::LoadBalancer;
    web.load_balancer = vec![LoadBalancerIngress { ip: ip("192.0.2.20"), proxied: false }];
    web.source_ranges = vec!["172.25.2.0/25".parse().unwrap(), "10.244.0.2/32".parse().unwrap()];
    let world =
        World { services: vec![web], slices: vec![slice("web", 8080, &["10.244.1.2"])], ..packet_table::empty() };
    let mut mode = Ipvs::new(kernel(&world), settings(&world));
    let me = Me { node: "node1".into(), addresses: vec![ip(NODE)], ..Me::default() };
    bring(&mut mode, &mut podwire_proxy::Tracker::new(me), &world);
    let outcome =
        |from: &str, to: &str| traced(mode.kernel(), &Packet { from: ip(from), to: at(to), protocol: Protocol::Tcp });
    let sent = Outcome::Sent([(at("10.244.1.2:8080"), true)].into());
    assert_eq!(outcome(OUTSIDE, "192.0.2.20:80"), Outcome::Dropped);
    assert_eq!(outcome("172.25.2.7", "192.0.2.20:80"), sent);
    assert_eq!(outcome(POD_A, "192.0.2.20:80"), sent);
    assert_eq!(outcome("10.244.0.3", "192.0.2.20:80"), Outcome::Dropped);
    // This node sends from the address itself, which it holds.
    assert!(entries(mode.kernel(), "KUBE-LOAD-BALANCER-SOURCE-IP").contains("192.0.2.20,tcp:80,192.0.2.20"));
    assert_eq!(outcome(OUTSIDE, "172.25.2.1:30080"), sent);
}

#[test]
fn service_ranges_drop_what_no_service_has() {
    let world = world(Protocol::Tcp, &["10.244.1.2"]);
    let settings = Settings { service_ranges: vec!["10.96.0.0/16".parse().unwrap()], ..settings(&world) };
    let mut mode = Ipvs::new(kernel(&world), settings);
    bring(&mut mode, &mut tracker(), &world);
    let outcome =
        |from: &str, to: &str| traced(mode.kernel(), &Packet { from: ip(from), to: at(to), protocol: Protocol::Tcp });
    for from in [POD_A, OUTSIDE, NODE] {
        assert_eq!(outcome(from, "10.96.7.7:80"), Outcome::Dropped);
        assert_eq!(outcome(from, "10.96.0.10:81"), Outcome::Rejected);
        assert_eq!(outcome(from, "10.97.0.1:80"), Outcome::Untouched);
    }
}

#[test]
fn node_ports_answer_at_the_addresses_asked_for_and_move_with_them() {
    let world = World {
        services: vec![node_port_service("web", "10.96.0.10", 30080)],
        slices: vec![slice("web", 8080, &["10.244.1.2"])],
        ..packet_table::empty()
    };
    let served = |mode: &Ipvs<Fake>| -> BTreeSet<SocketAddr> {
        let keys = mode.kernel().ipvs.table().keys();
        keys.filter_map(|key| if let ServiceKey::Address(_, to) = key { Some(*to) } else { None })
            .filter(|to| to.port() == 30080)
            .collect()
    };
    let with = |addresses, ips: &[&str]| {
        let node_ips = ips.iter().map(|text| ip(text)).collect();
        let settings = Settings { node_port_addresses: addresses, node_ips, ..settings(&world) };
        let mut mode = Ipvs::new(kernel(&world), settings);
        bring(&mut mode, &mut tracker(), &world);
        mode
    };
    let mut all = with(NodePortAddresses::All, &[]);
    let both = BTreeSet::from([at("172.25.2.1:30080"), at("10.244.0.1:30080")]);
    assert_eq!(served(&all), both);
    assert_eq!(served(&with(NodePortAddresses::Primary, &[NODE])), [at("172.25.2.1:30080")].into());
    let range = NodePortAddresses::Ranges(vec!["10.244.0.0/24".parse().unwrap()]);
    assert_eq!(served(&with(range, &[])), [at("10.244.0.1:30080")].into());

    let device = all.kernel_mut().route.add_device("cni0");
    let new = Address::new(device, ip("10.9.0.1"));
    all.kernel_mut().route.add_address(&new).unwrap();
    assert!(all.disturbed().unwrap());
    all.apply(Changes::default()).unwrap();
    assert!(served(&all).contains(&at("10.9.0.1:30080")));
    all.kernel_mut().route.delete_address(&new).unwrap();
    assert!(all.disturbed().unwrap());
    all.apply(Changes::default()).unwrap();
    assert!(!all.tidy().unwrap());
    assert_eq!(served(&all), both);
    assert!(!all.disturbed().unwrap());
}

#[test]
fn an_external_ip_that_the_node_has_itself_leaves_its_other_ports_alone() {
    let mut web = service("web", "10.96.0.10");
    web.external_ips = vec![ip(NODE)];
    let world =
        World { services: vec![web], slices: vec![slice("web", 8080, &["10.244.1.2"])], ..packet_table::empty() };
    let mode = applied(&world);
    let outcome = |to: &str| traced(mode.kernel(), &Packet { from: ip(OUTSIDE), to: at(to), protocol: Protocol::Tcp });
    assert_eq!(outcome("172.25.2.1:80"), Outcome::Sent([(at("10.244.1.2:8080"), true)].into()));
    assert_eq!(outcome("172.25.2.1:22"), Outcome::Untouched);
    assert!(!entries(mode.kernel(), "KUBE-IPVS-IPS").contains(NODE));
}

#[test]
fn local_policy_and_affinity_pick_by_the_client_inside() {
    let mut web = node_port_service("web", "10.96.0.10", 30080);
    web.external_policy = TrafficPolicy::Local;
    web.client_ip_affinity = Some(Duration::from_secs(60));
    let world = World {
        services: vec![web],
        slices: vec![slice("web", 8080, &["10.244.0.2@node1", "10.244.1.2@node2"])],
        ..packet_table::empty()
    };
    let mode = applied(&world);
    let by_mark: Vec<_> =
        mode.kernel().ipvs.table().values().filter(|(s, _)| matches!(s.key, ServiceKey::Mark(..))).collect();
    assert_eq!(by_mark.len(), 1);
    assert_eq!((&*by_mark[0].0.scheduler, by_mark[0].0.persistence), ("sh", None));
    assert_eq!(by_mark[0].1.len(), 2);
}

#[test]
fn parameters_and_timeouts_are_kube_proxys() {
    let world = packet_table::empty();
    let mut wanted = settings(&world);
    wanted.ipvs.strict_arp = true;
    wanted.ipvs.timeouts = [Duration::from_secs(1000), Duration::ZERO, Duration::from_secs(30)];
    let mut mode = Ipvs::new(kernel(&world), wanted);
    bring(&mut mode, &mut tracker(), &world);
    let read = |key| mode.kernel().sysctl.read(key).unwrap();
    let values = [
        "net/ipv4/vs/conntrack",
        "net/ipv4/vs/expire_nodest_conn",
        "net/ipv4/vs/expire_quiescent_template",
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/arp_ignore",
        "net/ipv4/conf/all/arp_announce",
        "net/ipv4/vs/conn_reuse_mode",
    ]
    .map(read);
    assert_eq!(values, ["1", "1", "1", "1", "1", "2", "1"]);
    let expected = Timeouts { tcp: Duration::from_secs(1000), tcp_fin: Duration::ZERO, udp: Duration::from_secs(30) };
    assert_eq!(mode.kernel().ipvs.clone().timeouts().unwrap(), expected);

    let mut old = kernel(&world);
    old.sysctl.write("kernel/osrelease", "5.4.0").unwrap();
    let mut mode = Ipvs::new(old, settings(&world));
    bring(&mut mode, &mut tracker(), &world);
    assert_eq!(mode.kernel().sysctl.read("net/ipv4/vs/conn_reuse_mode").unwrap(), "0");
}

#[test]
fn a_scheduler_that_is_not_there_is_named() {
    let world = world(Protocol::Tcp, &["10.244.1.2"]);
    let with = |scheduler: &str| {
        let mut settings = settings(&world);
        settings.ipvs.scheduler = scheduler.to_owned();
        settings
    };
    let mut fake = kernel(&world);
    fake.ipvs.only_schedulers(&["rr"]);
    let mut mode = Ipvs::new(fake, with("mh"));
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    let error = mode.apply(tracker.take_changes().unwrap()).unwrap_err().to_string();
    assert!(error.contains("there is no scheduler mh (is the module ip_vs_mh loaded?)"), "{error}");
    let Err(error) = (ipvs::MODE.open)(&with("round-robin")) else { panic!("opened") };
    assert!(error.to_string().contains("Linux has rr wrr"), "{error}");
}

#[test]
fn virtual_servers_of_others_stay_where_they_are_excluded() {
    let world = world(Protocol::Tcp, &["10.244.1.2"]);
    let mut settings = settings(&world);
    settings.ipvs.exclude = vec!["192.0.2.0/24".parse().unwrap()];
    let mut fake = kernel(&world);
    let theirs = ServiceKey::Address(Protocol::Tcp, at("192.0.2.1:443"));
    let leftover = ServiceKey::Address(Protocol::Tcp, at("10.96.9.9:443"));
    let by_mark = ServiceKey::Mark(Family::V4, 7);
    let add = [theirs, leftover, by_mark].map(|key| Change::AddService(Service::new(key, "rr")));
    fake.ipvs.change(&add).unwrap();
    let mut mode = Ipvs::new(fake, settings.clone());
    bring(&mut mode, &mut tracker(), &world);
    let keys: BTreeSet<_> = mode.kernel().ipvs.table().keys().copied().collect();
    assert_eq!(keys, [theirs, by_mark, vip(Protocol::Tcp)].into());
    assert!(!mode.disturbed().unwrap() && !mode.disturbed().unwrap());
    ipvs::remove(mode.kernel_mut(), &settings).unwrap();
    assert_eq!(mode.kernel().ipvs.table().keys().copied().collect::<BTreeSet<_>>(), [theirs, by_mark].into());
}

#[test]
fn cleanup_leaves_nothing_also_of_kube_proxy() {
    let world = packet_table::world();
    let mut fake = kernel(&world);
    let before = shape(&fake);
    let kube_proxys = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
        -A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER\n\
        -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\nCOMMIT\n";
    fake.iptables.restore(Family::V4, kube_proxys).unwrap();
    fake.ipset.create(&Set::new("KUBE-LOAD-BALANCER", Kind::HashIpPort, Family::V4)).unwrap();
    fake.ipset.create(&Set::new("KUBE-HEALTH-CHECK-NODE-PORT", Kind::BitmapPort, Family::V4)).unwrap();
    let mut mode = Ipvs::new(fake, settings(&world));
    bring(&mut mode, &mut tracker(), &world);
    for _ in 0..2 {
        ipvs::remove(mode.kernel_mut(), &settings(&world)).unwrap();
    }
    let mut left = shape(mode.kernel());
    left.retain(|line| !before.contains(line));
    // The chain that its iptables mode has as well is that mode's to remove.
    assert!(left.iter().all(|line| line.contains("KUBE-SERVICES")) && left.len() == 1, "{left:#?}");
    assert_eq!(mode.kernel().iptables.table(Family::V4, Table::Nat).rules("KUBE-SERVICES"), &[] as &[String]);
}
