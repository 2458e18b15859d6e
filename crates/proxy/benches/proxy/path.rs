//! What clients see: the first packet, connections, requests and bytes, through a Service and directly, in turns.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use podwire_model::{Endpoint, EndpointSlice, Service};
use podwire_proxy::mode::{Description, Settings};
use podwire_testkit::{bench::percentile, build, random::Random};

use super::{
    Result,
    cluster::{Cluster, name, vip},
    net::{Net, Port, server},
    print,
    sync::Proxy,
};

/// First packets of each kind.
const CONNECTIONS: usize = 3000;
/// As many before that do not count.
const WARM_UP: usize = 100;
/// Turns of each kind, and how long one is. The median of them counts.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_millis(300);
/// Clients at once.
const CLIENTS: usize = 2;
/// The number of Services where requests and bytes are measured as well: established connections do not depend on it.
const USUAL: u32 = 1000;

/// Measures with so many Services, all with the same endpoint.
pub fn measure(mode: &'static Description, services: u32) -> Result<()> {
    let net = Net::new()?;
    let settings = Settings { detect_local: Cluster::detect_local(), ..Settings::default() };
    let objects = (0..services).map(|number| object(number, Port::Close));
    let special = [object(services, Port::Echo), object(services + 1, Port::Sink)];
    let (all, slices): (Vec<_>, Vec<_>) = objects.chain(special).unzip();
    let _proxy = net.on_node(|| {
        let mut proxy = Proxy::new(mode, &settings)?;
        proxy.sync(all, slices)?;
        Ok(proxy)
    })?;
    let case = format!("{}, {services} Services", mode.name);
    let bare = Net::new()?;
    thread::scope(|scope| {
        scope.spawn(|| first_packets(&case, services, (&net, &bare))).join().map_err(|_| "a panic")?
    })?;
    net.in_client(|| {
        if services == USUAL {
            in_turns(&case, "requests on kept connections", "1/s", (through(services), Port::Echo), requests)?;
            in_turns(&case, "throughput of one connection", "MB/s", (through(services + 1), Port::Sink), bytes)?;
        }
        Ok(())
    })
}

fn object(number: u32, port: Port) -> (Service, EndpointSlice) {
    let endpoints = vec![Endpoint { node: Some("node-0".into()), ..Endpoint::ready(server()) }];
    let slice = EndpointSlice { endpoints, ..build::slice(&name(number), port as u16, &[]) };
    (build::service(&name(number), &vip(number).to_string()), slice)
}

/// The address of a Service.
fn through(number: u32) -> SocketAddr {
    (vip(number), 80).into()
}

/// How long it takes to connect: to a Service chosen at random, to the pod itself past the Services' rules, and to the
/// same in a net without a proxy; and how many connections a client can have one after the other. By medians: now and
/// then a busy machine delays all of them by a tick of its clock, which is not the path's doing.
fn first_packets(case: &str, services: u32, (net, bare): (&Net, &Net)) -> Result<()> {
    let mut random = Random::new(2);
    let mut times: [Vec<[Duration; 2]>; 3] = Default::default();
    for attempt in 0..CONNECTIONS + WARM_UP {
        let service = through(random.below(services as usize) as u32);
        let pod = Port::Close.address();
        for (times, (net, to)) in times.iter_mut().zip([(net, service), (net, pod), (bare, pod)]) {
            net.become_client()?;
            let time = connect(to)?;
            if attempt >= WARM_UP {
                times.push(time);
            }
        }
    }
    let percentiles = |part: usize, percent| {
        times.each_ref().map(|times| {
            let times: Vec<_> = times.iter().map(|parts| parts[part]).collect();
            percentile(&times, percent) * 1000.0
        })
    };
    for (name, percent) in [("median", 50), ("p99", 99)] {
        let [service, past, direct] = percentiles(0, percent);
        print(case, &format!("connect(), {name}"), service, "us", Some(("direct, no proxy", direct)));
        print(
            case,
            &format!("connect() to a pod past the rules, {name}"),
            past,
            "us",
            Some(("direct, no proxy", direct)),
        );
    }
    let [service, _, direct] = percentiles(0, 50);
    print(case, "added to the first packet, median", service - direct, "us", None);
    let [service, _, direct] = percentiles(1, 50);
    print(case, "connections of one client", 1e6 / service, "1/s", Some(("direct, no proxy", 1e6 / direct)));
    Ok(())
}

/// How long `connect()` takes; and with it how long until both sides have closed the connection.
fn connect(to: SocketAddr) -> Result<[Duration; 2]> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(to)?;
    let connected = begin.elapsed();
    // The server closes first, so that the client's port is free again at once.
    if stream.read(&mut [0])? > 0 {
        return Err("the server said something".into());
    }
    drop(stream);
    Ok([connected, begin.elapsed()])
}

/// Prints how much `work` gets done a second at a Service's address, beside the same directly.
fn in_turns(
    case: &str,
    metric: &str,
    unit: &str,
    (service, port): (SocketAddr, Port),
    work: fn(SocketAddr) -> Result<f64>,
) -> Result<()> {
    let (mut by_service, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        by_service.push(work(service)?);
        direct.push(work(port.address())?);
    }
    let middle = |mut amounts: Vec<f64>| {
        amounts.sort_by(f64::total_cmp);
        amounts[TURNS / 2]
    };
    print(case, metric, middle(by_service), unit, Some(("direct", middle(direct))));
    Ok(())
}

/// Requests a second, of 64 bytes, one after the other on each connection.
fn requests(to: SocketAddr) -> Result<f64> {
    by_all_clients(|until| {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let (mut done, mut buffer) = (0_u32, [1; 64]);
        while Instant::now() < until {
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            done += 1;
        }
        Ok(f64::from(done))
    })
}

/// Megabytes a second of one client.
fn bytes(to: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![1; 1 << 17];
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < TURN {
        sent += stream.write(&buffer)?;
    }
    Ok(sent as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

/// What the clients do in a turn, added up, a second.
fn by_all_clients(work: impl Fn(Instant) -> Result<f64> + Sync) -> Result<f64> {
    let begin = Instant::now();
    let total: Result<f64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| work(begin + TURN))).collect();
        clients.into_iter().map(|client| client.join().unwrap_or_else(|_| Err("a client panicked".into()))).sum()
    });
    Ok(total? / begin.elapsed().as_secs_f64())
}
