//! What is this mode's own: affinity by a map that rules fill, source ranges, ranges of Service addresses, addresses for
//! node ports, ways of telling pods from others.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use podwire_kernel::nftables::{Datum, Element, Fake, Field, Kernel, Mapped, Value};
use podwire_model::{Family, LoadBalancerIngress, Protocol, Service, ServiceType, TrafficPolicy};
use podwire_proxy::{
    Changes,
    mode::{
        DetectLocal, Mode, NodePortAddresses, Settings,
        nftables::{
            Nftables,
            render::TABLE,
            trace::{self, Fate},
        },
    },
    plan::Backend,
};
use podwire_testkit::{
    build::{ip, node_port_service, service, slice},
    namespace::in_namespace,
    packet_table::{self, NODE, OUTSIDE, POD_A, POD_C, World},
};

use super::{
    golden::nft,
    table::{applied, settings, table, tracker},
};

fn world(services: &[Service], endpoints: &[&str]) -> World {
    let slices = services.iter().map(|service| slice(&service.name.name, 8080, endpoints)).collect();
    World { services: services.to_vec(), slices, ..packet_table::empty() }
}

fn with(settings: Settings, world: &World) -> Nftables<Fake> {
    let mut tracker = tracker();
    tracker.set_services(world.services.clone());
    tracker.set_slices(world.slices.clone());
    let mut mode = Nftables::new(Fake::new(), settings);
    mode.apply(tracker.take_changes().unwrap()).unwrap();
    mode
}

fn fates(mode: &Nftables<Fake>, from: &str, to: &str, input: &str) -> BTreeSet<Fate> {
    let to: SocketAddr = to.parse().unwrap();
    let protocol = Protocol::Tcp.number();
    let packet = trace::Packet { source: ip(from), destination: to.ip(), protocol, port: to.port() };
    let family = Family::of(&to.ip());
    let table = podwire_kernel::nftables::Table::new(family.into(), TABLE);
    let local = [packet_table::empty().node_addresses, vec![ip("fd00:25::1")]].concat();
    trace::trace_by(&mode.kernel().ruleset()[&table], packet, &local, input).unwrap()
}

fn sent(to: &[&str], masqueraded: bool) -> BTreeSet<Fate> {
    let backend = |address: &&str| Backend { address: ip(address), port: 8080 };
    to.iter().map(|address| Fate::Sent { to: backend(address), masqueraded }).collect()
}

fn sticky(name: &str, cluster_ip: &str, seconds: u64) -> Service {
    Service { client_ip_affinity: Some(Duration::from_secs(seconds)), ..node_port_service(name, cluster_ip, 30080) }
}

/// Writes into the affinity map what a rule writes when it sends `client` to `backend`.
fn remember(mode: &mut Nftables<Fake>, client: &str, backend: &str) {
    let state = mode.kernel_mut().ruleset_mut().get_mut(&table()).unwrap();
    let wanted = Mapped::Value(Value::concat(&[Datum::Addr(ip(backend)), Datum::Port(8080)]));
    let elements = &state.sets["sticky-endpoints"].elements;
    let found = elements.values().find(|element| element.data == wanted).unwrap();
    let [set, name] = found.key.split(&[Field::Mark, Field::Mark]).unwrap()[..] else { panic!("two numbers") };
    let known = Element::map(Value::concat(&[Datum::Addr(ip(client)), set]), Mapped::Value(Value::concat(&[name])));
    state.sets.get_mut("affinity").unwrap().elements.insert(known.key, known);
}

#[test]
fn a_known_client_keeps_its_endpoint_whatever_else_changes() {
    let all = ["10.244.0.2", "10.244.0.3", "10.244.1.2"];
    let services = [sticky("web", "10.96.0.10", 10800)];
    let mut mode = applied(&world(&services, &all));
    let mut tracker = tracker();
    tracker.set_services(services.clone());
    let mut change = |mode: &mut Nftables<Fake>, endpoints: &[&str]| {
        tracker.set_slices(world(&services, endpoints).slices);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
    };
    let to_vip = |mode: &Nftables<Fake>| fates(mode, "10.244.7.7", "10.96.0.10:80", "");
    assert_eq!(to_vip(&mode), sent(&all, false), "a new client may go anywhere");
    remember(&mut mode, "10.244.7.7", "10.244.1.2");
    assert_eq!(to_vip(&mode), sent(&["10.244.1.2"], false));
    assert_eq!(fates(&mode, "10.244.7.7", "172.25.2.1:30080", ""), sent(&["10.244.1.2"], true), "at the node port too");
    assert_eq!(fates(&mode, "10.244.7.8", "10.96.0.10:80", ""), sent(&all, false), "others as before");
    change(&mut mode, &["10.244.0.2", "10.244.1.2"]);
    assert_eq!(to_vip(&mode), sent(&["10.244.1.2"], false));
    change(&mut mode, &["10.244.0.9", "10.244.0.8", "10.244.0.2", "10.244.1.2"]);
    assert_eq!(to_vip(&mode), sent(&["10.244.1.2"], false));
    change(&mut mode, &["10.244.0.2", "10.244.0.8"]);
    assert_eq!(to_vip(&mode), sent(&["10.244.0.2", "10.244.0.8"], false), "gone at once, before any tidying");
    let chains = &mode.kernel().ruleset()[&table()].chains;
    assert!(chains.contains_key("vip-sticky10800-2") && chains.contains_key("nodeport-masq-sticky10800-2"));
}

#[test]
fn a_local_policy_has_a_set_of_its_own() {
    let mut web = sticky("web", "10.96.0.10", 60);
    web.external_policy = TrafficPolicy::Local;
    let mut mode = applied(&world(&[web], &["10.244.0.2@node1", "10.244.1.2@node2"]));
    assert_eq!(fates(&mode, OUTSIDE, "172.25.2.1:30080", ""), sent(&["10.244.0.2"], false));
    // As if the same address had come through the cluster IP before.
    remember(&mut mode, OUTSIDE, "10.244.1.2");
    assert_eq!(fates(&mode, OUTSIDE, "172.25.2.1:30080", ""), sent(&["10.244.0.2"], false));
    assert_eq!(fates(&mode, OUTSIDE, "10.96.0.10:80", ""), sent(&["10.244.1.2"], true));
}

fn balanced(name: &str, ranges: &[&str]) -> Service {
    let mut service = node_port_service(name, "10.96.0.10", 30080);
    service.kind = ServiceType::LoadBalancer;
    service.load_balancer = vec![LoadBalancerIngress { ip: ip("192.0.2.20"), proxied: false }];
    service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    service
}

#[test]
fn only_allowed_sources_enter_at_a_load_balancers_address() {
    let ranges = ["198.51.100.0/25", "198.51.100.7/32", "203.0.113.9/32"];
    let mut mode = applied(&world(&[balanced("web", &ranges)], &["10.244.1.2"]));
    let lb = |mode: &Nftables<Fake>, from: &str| fates(mode, from, "192.0.2.20:80", "");
    for from in ["198.51.100.0", "198.51.100.7", "198.51.100.127", "203.0.113.9"] {
        assert_eq!(lb(&mode, from), sent(&["10.244.1.2"], true), "{from}");
    }
    for from in ["198.51.100.128", "203.0.113.8", OUTSIDE, POD_A, NODE] {
        assert_eq!(lb(&mode, from), [Fate::Dropped].into(), "{from}");
        assert_eq!(fates(&mode, from, "172.25.2.1:30080", ""), sent(&["10.244.1.2"], true), "the node port is open");
    }
    let change = |mode: &mut Nftables<Fake>, world: &World| {
        let mut tracker = tracker();
        tracker.set_services(world.services.clone());
        tracker.set_slices(world.slices.clone());
        mode.apply(tracker.take_changes().unwrap()).unwrap();
    };
    change(&mut mode, &world(&[balanced("web", &["203.0.113.8/31"])], &["10.244.1.2"]));
    assert_eq!(lb(&mode, "203.0.113.8"), sent(&["10.244.1.2"], true));
    assert_eq!(lb(&mode, "198.51.100.7"), [Fate::Dropped].into());
    change(&mut mode, &world(&[balanced("web", &["203.0.113.8/31"])], &[]));
    assert_eq!(lb(&mode, "203.0.113.8"), [Fate::Rejected].into());
    assert_eq!(lb(&mode, "198.51.100.7"), [Fate::Dropped].into());
    change(&mut mode, &world(&[balanced("web", &[])], &["10.244.1.2"]));
    assert_eq!(lb(&mode, "198.51.100.7"), sent(&["10.244.1.2"], true));
    assert!(mode.kernel().ruleset()[&table()].sets["allowed-sources"].elements.is_empty());
}

#[test]
fn addresses_of_the_service_range_that_no_service_has_are_dropped() {
    let world = world(&[service("web", "10.96.0.10"), service("six", "fd00:10:96::a")], &["10.244.1.2"]);
    let ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(|range| range.parse().unwrap()).to_vec();
    let mode = with(Settings { service_ranges: ranges, ..settings(&world) }, &world);
    for (to, fate) in [
        ("10.96.7.7:80", Fate::Dropped),
        ("10.96.0.10:81", Fate::Rejected),
        ("10.97.0.1:80", Fate::Untouched),
        ("[fd00:10:96::b]:80", Fate::Dropped),
        ("[fd00:10:96::a]:81", Fate::Rejected),
        ("[fd00:10:97::a]:80", Fate::Untouched),
    ] {
        let from = if to.starts_with('[') { "fd00:10:244::7" } else { POD_C };
        assert_eq!(fates(&mode, from, to, ""), [fate].into(), "{to}");
    }
}

#[test]
fn node_ports_answer_at_the_addresses_that_are_said() {
    let mut six = node_port_service("six", "fd00:10:96::a", 30080);
    six.ports[0].node_port = Some(30080);
    let mut world = world(&[node_port_service("web", "10.96.0.10", 30080)], &["10.244.1.2"]);
    world.services.push(six);
    world.slices.push(slice("six", 8080, &["fd00:10:244::2"]));
    let answers = |addresses, at: &str| {
        let node_ips = [NODE, "fd00:25::1"].map(ip).to_vec();
        let mode = with(Settings { node_port_addresses: addresses, node_ips, ..settings(&world) }, &world);
        let from = if at.starts_with('[') { "fd00:99::1" } else { OUTSIDE };
        let fates = fates(&mode, from, &format!("{at}:30080"), "");
        assert!(fates == [Fate::Untouched].into() || matches!(fates.first(), Some(Fate::Sent { .. })), "{fates:?}");
        fates != [Fate::Untouched].into()
    };
    let ranges = |text: &str| NodePortAddresses::Ranges(vec![text.parse().unwrap()]);
    let other = "10.244.0.1";
    assert_eq!([NODE, other, "127.0.0.1"].map(|at| answers(NodePortAddresses::All, at)), [true, true, false]);
    assert_eq!([NODE, other, "127.0.0.1"].map(|at| answers(NodePortAddresses::Primary, at)), [true, false, false]);
    assert_eq!([NODE, other].map(|at| answers(ranges("10.244.0.0/24"), at)), [false, true]);
    assert_eq!([NODE, other].map(|at| answers(ranges("fd00:25::/64"), at)), [true, true], "none of this family: all");
    assert!(answers(NodePortAddresses::Primary, "[fd00:25::1]"));
    assert!(answers(ranges("fd00:25::/64"), "[fd00:25::1]"));
    assert!(!answers(ranges("fd00:26::/64"), "[fd00:25::1]"));
}

#[test]
fn pods_are_told_from_others_in_every_way() {
    let mut web = node_port_service("web", "10.96.0.10", 30080);
    web.external_policy = TrafficPolicy::Local;
    let world = world(&[web], &["10.244.0.2@node1", "10.244.1.2@node2"]);
    let (all, local) = (["10.244.0.2", "10.244.1.2"], ["10.244.0.2"]);
    let interface = DetectLocal::Interface("cni0".to_owned());
    let prefix = DetectLocal::InterfacePrefix("veth".to_owned());
    for (detect_local, input, is_pod) in [
        (interface.clone(), "cni0", true),
        (interface.clone(), "cni01", false),
        (interface, "eth0", false),
        (prefix.clone(), "veth12ab", true),
        (prefix, "eth0", false),
    ] {
        let mode = with(Settings { detect_local: detect_local.clone(), ..settings(&world) }, &world);
        let from = "203.0.113.77";
        assert_eq!(fates(&mode, from, "10.96.0.10:80", input), sent(&all, !is_pod), "{detect_local:?} {input}");
        let expected = sent(if is_pod { &all } else { &local }, false);
        assert_eq!(fates(&mode, from, "172.25.2.1:30080", input), expected, "{detect_local:?} {input}");
        assert_eq!(fates(&mode, NODE, "10.96.0.10:80", ""), sent(&all, true), "{detect_local:?}: this node is no pod");
    }
    let mode = with(Settings { detect_local: DetectLocal::Unknown, ..settings(&world) }, &world);
    assert_eq!(fates(&mode, OUTSIDE, "10.96.0.10:80", "eth0"), sent(&all, false), "nobody can tell");
    assert_eq!(fates(&mode, OUTSIDE, "172.25.2.1:30080", "eth0"), sent(&local, false));
}

#[test]
fn the_kernel_takes_ranges_that_overlap_those_before() {
    in_namespace(|| {
        let mut tracker = tracker();
        tracker.set_slices([slice("web", 8080, &["10.244.1.2"])]);
        let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&packet_table::empty()));
        let mut allowed = |ranges: &[&str]| {
            tracker.set_services([balanced("web", ranges)]);
            mode.apply(tracker.take_changes().unwrap()).unwrap();
            let listed = nft(&["list", "set", "ip", "podwire", "allowed-sources"]);
            let ranges: BTreeSet<String> = listed
                .split("192.0.2.20 . tcp . 80 . ")
                .skip(1)
                .map(|rest| rest[..rest.find([',', ' ']).unwrap()].to_owned())
                .collect();
            ranges
        };
        for ranges in [&["203.0.113.0/25", "198.51.100.7/32"][..], &["203.0.113.0/24"], &["203.0.113.128/25"], &[]] {
            let expected = ranges.iter().map(|range| range.trim_end_matches("/32").to_owned()).collect();
            assert_eq!(allowed(ranges), expected);
        }
    });
}

/// Endpoints that are addresses of `lo`, each with a listener that says which it is.
fn listen(addresses: &[IpAddr]) {
    for address in addresses {
        let text = address.to_string();
        let arguments = ["addr", "add", &text, "dev", "lo", "nodad"];
        let arguments = if address.is_ipv4() { &arguments[..5] } else { &arguments[..] };
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
        let listener = TcpListener::bind((*address, 8080)).unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(stream.local_addr().unwrap().to_string().as_bytes());
            }
        });
    }
}

fn endpoint_of(vip: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&vip.parse().unwrap(), Duration::from_secs(30)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Seconds that clients stick. More than a busy machine lets pass between two connections.
const STICK: u64 = 6;

fn clients_stick(vip: &str, addresses: &[&str], timeout: u64) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| ip(address)).collect();
    let vip_address = vip.parse::<SocketAddr>().unwrap().ip();
    let route = ["route", "add", &vip_address.to_string(), "dev", "lo"];
    for arguments in [&["link", "set", "lo", "up"][..], &route] {
        let status = Command::new("ip").args(arguments).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    }
    listen(&addresses);
    let web = sticky("web", &vip_address.to_string(), timeout);
    let mut tracker = tracker();
    tracker.set_services([web]);
    let mut mode = Nftables::new(Kernel::open().unwrap(), settings(&packet_table::empty()));
    let mut change = |endpoints: &[String]| {
        tracker.set_slices([slice("web", 8080, &endpoints.iter().map(String::as_str).collect::<Vec<_>>())]);
        mode.apply(tracker.take_changes().unwrap()).unwrap();
    };
    let mut endpoints: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    change(&endpoints);
    for _ in 0..3 {
        let first = endpoint_of(vip);
        let chosen = first.parse::<SocketAddr>().unwrap().ip().to_string();
        assert!(endpoints.contains(&chosen));
        let always = || (0..20).all(|_| endpoint_of(vip) == first);
        assert!(always());
        let other = endpoints.iter().position(|endpoint| *endpoint != chosen).unwrap();
        endpoints.remove(other);
        change(&endpoints);
        assert!(always(), "another endpoint went");
        endpoints.retain(|endpoint| *endpoint != chosen);
        change(&endpoints);
    }
    let family = if vip_address.is_ipv4() { "ip" } else { "ip6" };
    let remembered = || nft(&["list", "map", family, "podwire", "affinity"]).matches("expires").count();
    endpoint_of(vip);
    assert_eq!(remembered(), 1);
    thread::sleep(Duration::from_secs(timeout) + Duration::from_millis(300));
    assert_eq!(remembered(), 0, "a client is forgotten in time");
    assert!(!mode.disturbed().unwrap(), "what rules and time do is not news");
    assert_eq!(mode.apply(Changes::default()).unwrap().written, 0);
}

#[test]
fn clients_stick_for_their_time() {
    let endpoints: Vec<String> = (1..=9).map(|n| format!("10.244.0.{n}")).collect();
    in_namespace(move || {
        clients_stick("10.96.0.10:80", &endpoints.iter().map(String::as_str).collect::<Vec<_>>(), STICK);
    });
}

#[test]
fn clients_stick_with_ipv6() {
    let endpoints: Vec<String> = (1..=9).map(|n| format!("fd00:10:244::{n}")).collect();
    in_namespace(move || {
        clients_stick("[fd00:10:96::a]:80", &endpoints.iter().map(String::as_str).collect::<Vec<_>>(), STICK);
    });
}
