//! Clients during a storm of changes.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use podwire_testkit::{
    build::{ip, service, slice},
    packet_table::{self, NODE, OUTSIDE, POD_A, POD_B, POD_C, World},
    random::Random,
};

use super::{
    driver::{Driver, on_node},
    net::Net,
};

/// How many endpoints come and go in all …
const CHANGES: usize = 10_000;
/// … and what a mode may take for them. Changes that come while it writes are taken together, as a proxy does it.
const TIME: Duration = Duration::from_secs(8);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn no_connection_fails_in_a_storm_of_changes() {
    on_node(|net, description| {
        let mut driver = Driver::start(description);
        driver.set(&world(&[POD_A])).unwrap();
        let done = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients = [NODE, OUTSIDE, POD_A, POD_B].map(|from| scope.spawn(move || attempts(net, from, done)));
            storm(&mut driver);
            done.store(true, Ordering::Relaxed);
            for client in clients {
                let attempts = client.join().unwrap().unwrap_or_else(|failed| panic!("{}: {failed}", description.name));
                assert!(attempts > 20, "{} mode: only {attempts} attempts", description.name);
            }
        });
    });
}

fn world(endpoints: &[&str]) -> World {
    // What may reach itself must say that it is here.
    let placed: Vec<_> =
        endpoints.iter().map(|pod| format!("{pod}@{}", if *pod == POD_C { "node2" } else { "node1" })).collect();
    World {
        services: vec![service("web", "10.96.0.10")],
        slices: vec![slice("web", 8080, &placed.iter().map(String::as_str).collect::<Vec<_>>())],
        ..packet_table::empty()
    }
}

/// Endpoints come and go, one at a time; at least one is always there. All of them go on answering.
fn storm(driver: &mut Driver) {
    let mut random = Random::new(5);
    let mut current = vec![POD_A];
    let (begin, mut tidied) = (Instant::now(), Instant::now());
    let mut change = 0;
    while change < CHANGES {
        // What would have come at an even pace until now.
        let due = (begin.elapsed().as_secs_f64() / TIME.as_secs_f64() * CHANGES as f64) as usize + 1;
        while change < due.min(CHANGES) {
            let endpoint = random.pick(&[POD_A, POD_B, POD_C]);
            match current.iter().position(|known| *known == endpoint) {
                Some(at) if current.len() > 1 => drop(current.remove(at)),
                Some(_) => {}
                None => current.push(endpoint),
            }
            change += 1;
        }
        driver.set(&world(&current)).unwrap();
        if tidied.elapsed() > Duration::from_secs(1) {
            driver.mode.tidy().unwrap();
            tidied = Instant::now();
        }
    }
}

/// How many connections succeeded until it was over, or what the first failure was. A connection may take longer than a
/// lost packet's repetition: on a machine with much else to do, time says nothing.
fn attempts(net: &Net, from: &str, done: &AtomicBool) -> Result<usize, String> {
    net.at(&ip(from), || {
        let mut attempt = 0;
        while !done.load(Ordering::Relaxed) {
            if let Err(error) = greeting() {
                done.store(true, Ordering::Relaxed);
                return Err(format!("attempt {attempt} from {from}: {error}"));
            }
            attempt += 1;
        }
        Ok(attempt)
    })
}

/// What an endpoint says first.
fn greeting() -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&([10, 96, 0, 10], 80).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
