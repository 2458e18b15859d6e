//! The underlay, made for real: machines reach each other and the gateway, and the host gets nothing.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use podwire_kernel::{Error, ns::Namespace};
use podwire_lab::{
    backend::Backend,
    topology::{GATEWAY, Options},
    underlay::Underlay,
};

/// Whether namespaces can be made here; in CI they must.
fn is_capable() -> bool {
    match Namespace::new_net() {
        Err(error) if error.is_not_permitted() && std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {error}");
            false
        }
        result => result.map(|_| true).unwrap(),
    }
}

fn options(nodes: u16) -> Options {
    Options { nodes, ..Options::stock("underlay-test") }
}

fn in_namespace(network: &Namespace, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = network
        .run(|| Command::new(program).args(arguments).output().map_err(|error| Error::io(program, error)))
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn machines_reach_each_other_and_only_each_other() {
    if !is_capable() {
        return;
    }
    let host_links = || Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
    let before = host_links();
    let mut underlay = Underlay::new(&options(2)).unwrap();
    let machines = options(2).machines();
    let networks: Vec<_> = machines.iter().map(|machine| underlay.attach(machine).unwrap()).collect();
    for network in &networks {
        for address in machines.iter().map(|machine| machine.address).chain([GATEWAY]) {
            let (reached, text) = in_namespace(network, "ping", &["-c1", "-W1", &address.to_string()]);
            assert!(reached, "{address}: {text}");
        }
        let (_, routes) = in_namespace(network, "ip", &["-4", "route"]);
        assert!(routes.starts_with("default via 172.25.2.254 dev eth0"), "{routes}");
        let (_, link) = in_namespace(network, "ip", &["-o", "link", "show", "eth0"]);
        assert!(link.contains("mtu 1500") && link.contains("UP"), "{link}");
    }
    let nowhere = networks[0].run(|| {
        let service = (Ipv4Addr::new(10, 96, 0, 1), 443).into();
        let error = TcpStream::connect_timeout(&service, Duration::from_secs(30)).unwrap_err();
        Ok::<_, Error>(error.kind())
    });
    let said = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
    assert!(said.contains(&nowhere.unwrap()), "the gateway says that it leads nowhere");
    underlay.attach(&machines[0]).unwrap_err();
    assert_eq!(host_links(), before, "the host's links changed");
}

#[test]
fn the_gateway_keeps_its_hardware_address_while_machines_are_connected() {
    if !is_capable() {
        return;
    }
    let mut underlay = Underlay::new(&options(8)).unwrap();
    let networks: Vec<_> = options(8).nodes().iter().map(|machine| underlay.attach(machine).unwrap()).collect();
    assert!(in_namespace(&networks[0], "ping", &["-c1", "-W1", "172.25.2.254"]).0);
    let (_, seen) = in_namespace(&networks[0], "ip", &["neigh", "show", "172.25.2.254"]);
    assert!(seen.contains("lladdr 0a:58:ac:19:02:fe"), "one that no port can take away: {seen}");
}

/// Where a machine sends what is for `address`, as `ip route get` says it.
fn way(network: &Namespace, address: &str) -> String {
    in_namespace(network, "ip", &["route", "get", address]).1
}

#[test]
fn a_router_joins_two_networks() {
    if !is_capable() {
        return;
    }
    let options = Options { subnets: 2, dual_stack: true, mtu: 1400, ..options(3) };
    let mut underlay = Underlay::new(&options).unwrap();
    let machines = options.machines();
    let networks: Vec<_> = machines.iter().map(|machine| underlay.attach(machine).unwrap()).collect();
    for network in &networks {
        let others = machines.iter().flat_map(|machine| machine.addresses());
        for address in others.chain([GATEWAY.into()]).map(|address| address.to_string()) {
            let (reached, text) = in_namespace(network, "ping", &["-c1", "-W1", &address]);
            assert!(reached, "{address}: {text}");
        }
        let full = ["-c1", "-W1", "-M", "do", "-s", "1372", "172.25.3.2"];
        assert!(in_namespace(network, "ping", &full).0, "a packet of 1400 bytes passes whole");
    }
    assert!(way(&networks[0], "172.25.2.3").starts_with("172.25.2.3 dev eth0"), "node1 and node3 are neighbours");
    assert!(way(&networks[0], "172.25.3.2").starts_with("172.25.3.2 via 172.25.2.254"), "node2 is behind the router");
    assert!(way(&networks[1], "172.25.2.1").starts_with("172.25.2.1 via 172.25.3.254"));
    assert!(way(&networks[1], "fd00:172:25:2::1").contains("via fd00:172:25:3::254"));
    let (_, link) = in_namespace(&networks[1], "ip", &["-o", "link", "show", "eth0"]);
    assert!(link.contains("mtu 1400"), "{link}");
}

#[test]
fn for_a_backend_that_routes_nothing_the_router_knows_the_way_to_pods() {
    if !is_capable() {
        return;
    }
    let options = Options { subnets: 2, dual_stack: true, backend: Backend::Alloc, ..options(2) };
    let mut underlay = Underlay::new(&options).unwrap();
    let networks: Vec<_> = options.nodes().iter().map(|machine| underlay.attach(machine).unwrap()).collect();
    for (pod, address) in [("10.244.1.2", "10.244.1.2/32"), ("fd00:10:244:1::2", "fd00:10:244:1::2/128")] {
        assert!(in_namespace(&networks[1], "ip", &["address", "add", address, "dev", "lo"]).0);
        let (reached, text) = in_namespace(&networks[0], "ping", &["-c1", "-W1", pod]);
        assert!(reached, "{text}");
    }
}

#[test]
fn a_socket_listens_for_the_machines_from_wherever_it_is_used() {
    if !is_capable() {
        return;
    }
    let client = options(1).client();
    let mut underlay = Underlay::new(&options(1)).unwrap();
    let network = underlay.attach(&client).unwrap();
    let listener: TcpListener = underlay.listen(6443).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
    });
    let mut stream = network
        .run(|| {
            TcpStream::connect_timeout(&(GATEWAY, 6443).into(), Duration::from_secs(5))
                .map_err(|error| Error::io("connect", error))
        })
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.parse::<Ipv4Addr>().unwrap(), client.address);
    server.join().unwrap();
    assert!(underlay.listen(6443).is_ok(), "the port is free again");
}
