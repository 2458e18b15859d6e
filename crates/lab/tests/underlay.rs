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
    topology::{self, GATEWAY, Options},
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
    Options {
        name: "underlay-test".into(),
        nodes,
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        upstream_dns: None,
    }
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
    let mut underlay = Underlay::new().unwrap();
    let machines: Vec<_> = options(2).nodes().into_iter().chain([topology::client()]).collect();
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
    let mut underlay = Underlay::new().unwrap();
    let networks: Vec<_> = options(8).nodes().iter().map(|machine| underlay.attach(machine).unwrap()).collect();
    assert!(in_namespace(&networks[0], "ping", &["-c1", "-W1", "172.25.2.254"]).0);
    let (_, seen) = in_namespace(&networks[0], "ip", &["neigh", "show", "172.25.2.254"]);
    assert!(seen.contains("lladdr 0a:58:ac:19:02:fe"), "one that no port can take away: {seen}");
}

#[test]
fn a_socket_listens_for_the_machines_from_wherever_it_is_used() {
    if !is_capable() {
        return;
    }
    let mut underlay = Underlay::new().unwrap();
    let network = underlay.attach(&topology::client()).unwrap();
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
    assert_eq!(answer.parse::<Ipv4Addr>().unwrap(), topology::CLIENT);
    server.join().unwrap();
    assert!(underlay.listen(6443).is_ok(), "the port is free again");
}
