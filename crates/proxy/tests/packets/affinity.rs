//! `sessionAffinity: ClientIP` with real packets.

use std::{net::IpAddr, net::SocketAddr, time::Duration};

use podwire_model::Protocol;
use podwire_testkit::{
    build::service,
    packet_table::{FAMILIES, NODE, OUTSIDE, POD_A, POD_B, POD_C, World, address, empty},
};

use super::{
    client::connect,
    net::{Net, modes},
};

/// A Service in both families whose clients keep their endpoint for so long.
fn world(timeout: Duration, endpoints: &[&str]) -> World {
    let mut web = service("web", "10.96.0.10");
    web.cluster_ips = FAMILIES.map(|family| address("10.96.0.10", family)).into();
    web.client_ip_affinity = Some(timeout);
    let slices = FAMILIES.map(|family| {
        let endpoints: Vec<_> = endpoints.iter().map(|v4| address(v4, family).to_string()).collect();
        let mut slice =
            podwire_testkit::build::slice("web", 8080, &endpoints.iter().map(String::as_str).collect::<Vec<_>>());
        slice.name.name = format!("web-{family:?}").into();
        slice.family = family;
        slice
    });
    World { services: vec![web], slices: slices.into(), ..empty() }
}

/// Whoever comes by this node: pods of another one have their own proxy. In both families.
fn clients() -> Vec<IpAddr> {
    let machines = [POD_A, POD_B, OUTSIDE, NODE].into_iter();
    machines.flat_map(|machine| FAMILIES.map(|family| address(machine, family))).collect()
}

/// The endpoint that answers each client.
fn endpoints(net: &Net, clients: &[IpAddr]) -> Vec<IpAddr> {
    let endpoint = |client: &IpAddr| {
        let family = podwire_model::Family::of(client);
        let to = SocketAddr::new(address("10.96.0.10", family), 80);
        let seen = net.at(client, || connect(*client, to, Protocol::Tcp));
        seen.endpoint().unwrap_or_else(|| panic!("{client}: {seen:?}"))
    };
    clients.iter().map(endpoint).collect()
}

#[test]
fn clients_keep_their_endpoint_while_others_come_and_go() {
    const LONG: Duration = Duration::from_secs(600);
    for mode in modes() {
        let Some(net) = Net::build() else { return };
        let clients = clients();
        let mut proxy = net.proxy(mode, &world(LONG, &[POD_A, POD_B, POD_C]));
        let first = endpoints(&net, &clients);
        for _ in 0..3 {
            assert_eq!(endpoints(&net, &clients), first, "{} mode", mode.name);
        }
        proxy.set(&world(LONG, &[POD_B, POD_C]));
        let second = endpoints(&net, &clients);
        for ((client, before), after) in clients.iter().zip(&first).zip(&second) {
            let gone = *before == address(POD_A, podwire_model::Family::of(client));
            assert_eq!(before != after, gone, "{} mode: {client} went from {before} to {after}", mode.name);
        }
        // The kernel's memory of an endpoint's clients (`recent`) goes with its chain.
        proxy.tidy();
        proxy.set(&world(LONG, &[POD_A, POD_B, POD_C]));
        assert_eq!(endpoints(&net, &clients), second, "{} mode: one more endpoint", mode.name);
        // Who relays keeps clients in its own memory.
        if mode.keeps_sources {
            drop(proxy);
            let _restarted = net.proxy(mode, &world(LONG, &[POD_A, POD_B, POD_C]));
            assert_eq!(endpoints(&net, &clients), second, "{} mode: another proxy", mode.name);
        }
    }
}

#[test]
fn clients_that_were_away_for_longer_than_the_timeout_choose_anew() {
    const SHORT: Duration = Duration::from_secs(2);
    // In ipvs mode the kernel remembers a client for as long as it remembers one of its connections, which is two minutes
    // after the end of it (`ip_vs_conn_expire`, IP_VS_TCP_S_TIME_WAIT); tests/ipvs looks at the timeout that it was given.
    let modes = modes().filter(|mode| mode.name != "ipvs");
    std::thread::scope(|scope| {
        for mode in modes {
            scope.spawn(move || {
                let Some(net) = Net::build() else { return };
                let clients = clients();
                let _proxy = net.proxy(mode, &world(SHORT, &[POD_A, POD_B, POD_C]));
                let first = endpoints(&net, &clients);
                let chosen_anew = || {
                    std::thread::sleep(SHORT + Duration::from_millis(1500));
                    endpoints(&net, &clients) != first
                };
                // That all of them choose the same twice more happens once in millions of runs.
                assert!(chosen_anew() || chosen_anew(), "{} mode", mode.name);
            });
        }
    });
}
