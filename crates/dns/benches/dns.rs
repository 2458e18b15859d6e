//! Answers from a large cluster: parse, answer and encode on one thread, and queries over the loopback.
//! Prints one JSON object a line, for `cargo xtask bench dns`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark fails by panicking")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{LOCALHOST, arrival, service, slice};
use domain::base::iana::{Class, Rtype};
use podwire_dns::{
    message::{DnsName, Query, Transport},
    program::{Environment, Program},
    router::{Progress, Router},
    server::Server,
    view::View,
};
use podwire_testkit::bench::{Measured, resident_memory};
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};

/// Services in the measured cluster; one in ten is headless.
const SERVICES: u32 = 5_000;
/// Endpoints of each Service.
const ENDPOINTS: u32 = 5;
/// Sockets that ask at once over the loopback.
const CLIENTS: usize = 8;
/// How long each case is measured.
const TIME: Duration = Duration::from_secs(2);

const COREFILE: &str = ".:0 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    cache 30
    loadbalance
}
";

#[tokio::main]
async fn main() {
    let environment = Environment::new(LOCALHOST);
    let idle = resident_memory().unwrap();
    environment.cluster.update(1, |view| print("fill the view", "rate", apply_all(view), "objects/s"));
    print("fill the view", "resident memory after it", resident_memory().unwrap() - idle, "MB");
    environment.cluster.set_synced();
    let program = Program::new(COREFILE, &environment).unwrap();
    let router = program.routers.values().next().unwrap().clone();
    for (case, name, qtype) in [
        ("in-process cluster-ip A", "svc-1.bench.svc.cluster.local", Rtype::A),
        ("in-process headless A", "svc-10.bench.svc.cluster.local", Rtype::A),
        ("in-process SRV", "_http._tcp.svc-1.bench.svc.cluster.local", Rtype::SRV),
        ("in-process PTR", "1.0.96.10.in-addr.arpa", Rtype::PTR),
        ("in-process NXDOMAIN", "example.org.bench.svc.cluster.local", Rtype::A),
    ] {
        print(case, "rate", in_process(&router, &question(name, qtype)), "answers/s");
    }
    let server = Server::start(program, environment).await.unwrap();
    let address = server.addresses().next().unwrap();
    let rate = loopback(address, question("svc-1.bench.svc.cluster.local", Rtype::A)).await;
    print("udp over loopback, client included", "rate", rate, "answers/s");
}

fn print(case: &str, metric: &str, value: f64, unit: &str) {
    println!("{}", Measured { bench: "dns", case, metric, value, unit, peer: None });
}

/// Fills the view and gives the number of objects applied a second.
fn apply_all(view: &mut View) -> f64 {
    let address = |base: [u8; 4], number: u32| Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + number).to_string();
    let mut objects = Vec::new();
    for number in 0..SERVICES {
        let name = format!("svc-{number}");
        let cluster_ip = address([10, 96, 0, 0], number);
        let cluster_ips = if number % 10 == 0 { vec![] } else { vec![cluster_ip.as_str()] };
        let endpoints = (0..ENDPOINTS).map(|endpoint| address([10, 128, 0, 0], number * ENDPOINTS + endpoint));
        let endpoints: Vec<String> = endpoints.collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        objects.push((
            service(&format!("bench/{name}"), &cluster_ips, &["http/tcp/80"]),
            slice(&format!("bench/{name}-0"), &name, &["http/tcp/8080"], &endpoints),
        ));
    }
    let begin = Instant::now();
    for (service, slice) in objects {
        view.apply_service(service);
        view.apply_slice(slice);
    }
    f64::from(2 * SERVICES) / begin.elapsed().as_secs_f64()
}

fn in_process(router: &Arc<Router>, packet: &[u8]) -> f64 {
    let (begin, mut count, mut buffer) = (Instant::now(), 0_u32, Vec::new());
    let mut arrival = arrival(Transport::Udp);
    while begin.elapsed() < TIME {
        for random in 0..100 {
            arrival.random = random;
            let query = Query::parse(packet, arrival).unwrap();
            let Progress::Done(reply) = router.begin(&query) else { panic!("nobody else has to be asked") };
            buffer = reply.encode(&query, buffer);
            count += 1;
        }
    }
    f64::from(count) / begin.elapsed().as_secs_f64()
}

async fn loopback(server: SocketAddr, packet: Vec<u8>) -> f64 {
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let packet = packet.clone();
        clients.spawn(async move {
            let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
            socket.connect(server).await.unwrap();
            let (mut answer, mut count) = ([0; 512], 0_u32);
            while begin.elapsed() < TIME {
                socket.send(&packet).await.unwrap();
                // A lost datagram does not count, and is not waited for longer than this.
                if timeout(Duration::from_millis(100), socket.recv(&mut answer)).await.is_ok() {
                    count += 1;
                }
            }
            count
        });
    }
    let answers: u32 = clients.join_all().await.into_iter().sum();
    f64::from(answers) / begin.elapsed().as_secs_f64()
}

fn question(name: &str, qtype: Rtype) -> Vec<u8> {
    let query = Query {
        id: 0,
        recursion_desired: true,
        checking_disabled: false,
        authentic_data: false,
        name: DnsName::bytes_from_str(name).unwrap(),
        qtype,
        qclass: Class::IN,
        edns: None,
        options: Vec::new(),
        arrival: arrival(Transport::Udp),
        depth: 0,
    };
    query.encode(1)
}
