//! What clients see while Services change.

use std::{
    io::{BufRead, BufReader, Write},
    time::{Duration, Instant},
};

use podwire_model::Protocol;
use podwire_testkit::{
    build::{ip, service, slice},
    packet_table::{self, NODE, POD_A, POD_B, POD_C, World},
};

use super::{
    client::{ask, connect, tcp_client, udp_client},
    net::{Net, modes},
};

const VIP: &str = "10.96.0.10:80";

fn world(protocol: Protocol, endpoints: &[&str]) -> World {
    let mut web = service("web", "10.96.0.10");
    web.ports[0].protocol = protocol;
    let mut of_web = slice("web", 8080, endpoints);
    of_web.ports[0].protocol = protocol;
    World { services: vec![web], slices: vec![of_web], ..packet_table::empty() }
}

#[test]
fn established_connections_outlive_their_endpoint_and_a_restart_of_the_proxy() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let mut proxy = net.proxy(mode, &world(Protocol::Tcp, &[POD_A]));
        let stream = net.at(&ip(NODE), || tcp_client(ip(NODE), VIP.parse().unwrap()).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with(POD_A));
        let mut echo = |text: &str| {
            writeln!(&stream, "{text}").unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), text, "{} mode", mode.name);
        };
        echo("before");
        proxy.set(&world(Protocol::Tcp, &[POD_B, POD_C]));
        echo("the endpoint is gone from the Service");
        proxy.set(&packet_table::empty());
        echo("the Service is gone");
        drop(proxy);
        let _restarted = net.proxy(mode, &world(Protocol::Tcp, &[POD_C]));
        echo("the proxy is another one");
        let fresh = net.at(&ip(NODE), || connect(ip(NODE), VIP.parse().unwrap(), Protocol::Tcp));
        assert_eq!(fresh.endpoint(), Some(ip(POD_C)), "{fresh:?}");
    }
}

#[test]
fn new_connections_never_fail_during_a_rolling_update() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let mut proxy = net.proxy(mode, &world(Protocol::Tcp, &[POD_A]));
        let done = std::sync::atomic::AtomicBool::new(false);
        let attempts = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                net.at(&ip(NODE), || {
                    let (mut attempts, begin) = (0, Instant::now());
                    while !done.load(std::sync::atomic::Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(20)
                    {
                        let seen = connect(ip(NODE), VIP.parse().unwrap(), Protocol::Tcp);
                        assert!(seen.endpoint().is_some(), "{} mode, attempt {attempts}: {seen:?}", mode.name);
                        attempts += 1;
                    }
                    attempts
                })
            });
            for endpoints in
                [&[POD_A, POD_B][..], &[POD_B], &[POD_B, POD_C], &[POD_C], &[POD_C, POD_A], &[POD_A]].repeat(50)
            {
                proxy.set(&world(Protocol::Tcp, endpoints));
                std::thread::sleep(Duration::from_millis(1));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            client.join().unwrap()
        });
        assert!(attempts > 50, "only {attempts} attempts");
    }
}

#[test]
fn a_udp_client_that_keeps_its_port_moves_to_another_endpoint() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let mut proxy = net.proxy(mode, &world(Protocol::Udp, &[]));
        let socket = net.at(&ip(NODE), || udp_client(ip(NODE), VIP.parse().unwrap()).unwrap());
        assert!(ask(&socket).is_err(), "there is no endpoint");
        for endpoint in [POD_A, POD_B, POD_C] {
            proxy.set(&world(Protocol::Udp, &[endpoint]));
            // The first attempt may bring the refusal of an earlier packet.
            let answer = ask(&socket).or_else(|_| ask(&socket)).unwrap();
            assert!(answer.starts_with(endpoint), "{answer}, expected {endpoint} ({} mode)", mode.name);
        }
        proxy.set(&world(Protocol::Udp, &[]));
        assert!(ask(&socket).is_err(), "the last endpoint is gone");
    }
}

#[test]
fn a_udp_client_moves_also_when_its_endpoint_went_while_no_proxy_ran() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let proxy = net.proxy(mode, &world(Protocol::Udp, &[POD_A]));
        let socket = net.at(&ip(NODE), || udp_client(ip(NODE), VIP.parse().unwrap()).unwrap());
        assert!(ask(&socket).unwrap().starts_with(POD_A));
        drop(proxy);
        let proxy = net.proxy(mode, &world(Protocol::Udp, &[POD_B]));
        assert!(ask(&socket).unwrap().starts_with(POD_B), "{} mode", mode.name);
        drop(proxy);
        let _proxy = net.proxy(mode, &packet_table::empty());
        assert!(ask(&socket).is_err(), "the Service is gone ({} mode)", mode.name);
    }
}

#[test]
fn cleanup_leaves_nothing_and_does_it_twice() {
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let _proxy = net.proxy(mode, &packet_table::world());
        for _ in 0..2 {
            net.at(&ip(NODE), || (mode.cleanup)().unwrap());
            let seen = net.at(&ip(POD_A), || connect(ip(POD_A), "10.96.0.10:80".parse().unwrap(), Protocol::Tcp));
            assert_eq!(seen.endpoint(), None, "{seen:?}");
        }
    }
}
