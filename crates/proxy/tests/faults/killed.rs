//! Proxies that are killed at any moment.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use podwire_proxy::mode::{Description, find, iptables};
use podwire_testkit::{
    build::{endpoint, service, slice},
    packet_table::{self, World},
    random::Random,
};

use super::driver::{Driver, check_rows, on_node};

/// In the environment of a child: which mode to run until it is killed, and the seed of its worlds.
const CHILD: &str = "PODWIRE_TEST_RUN_UNTIL_KILLED";
/// How often a proxy is killed.
const KILLS: usize = 50;
/// What a mode may take for all of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// The table's world among so many other Services that changing them takes a while.
fn world(random: &mut Random, size: usize) -> World {
    let mut world = packet_table::brief().world;
    for number in 0..size {
        let name = format!("other-{number}");
        world.services.push(service(&name, &format!("10.97.{}.{}", number / 200, 1 + number % 200)));
        let mut other = slice(&name, 8080, &[]);
        other.endpoints = (0..random.below(6)).map(|_| endpoint(&format!("10.245.0.{}", random.below(250)))).collect();
        world.slices.push(other);
    }
    world
}

/// Not a test by itself: what [`a_killed_proxy_harms_nobody_and_the_next_one_goes_on`] starts and kills.
#[test]
fn run_until_killed() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let (mode, seed) = what.split_once(' ').unwrap();
    let description = description(mode);
    let mut random = Random::new(seed.parse().unwrap());
    let mut driver = Driver::start(description);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        driver.set(&world(&mut random, size(description))).unwrap();
        driver.mode.tidy().unwrap();
    }
}

/// Modes by the names that [`name`] gives them.
fn description(name: &str) -> &'static Description {
    if name == "iptables-legacy" { &iptables::LEGACY } else { find(name).unwrap() }
}

fn name(description: &Description) -> &'static str {
    if std::ptr::eq(description.name, iptables::LEGACY.name)
        && description.open as usize == iptables::LEGACY.open as usize
    {
        "iptables-legacy"
    } else {
        description.name
    }
}

/// Services besides those of the table: a sync should take as long as the pauses before the kills.
fn size(description: &Description) -> usize {
    if description.name == "nftables" { 2000 } else { 40 }
}

#[test]
fn a_killed_proxy_harms_nobody_and_the_next_one_goes_on() {
    on_node(|net, description| {
        let mode = name(description);
        let mut random = Random::new(1);
        Driver::start(description).set(&world(&mut random, 10)).unwrap();
        // Where packets pass through the proxy itself, a connection ends with it.
        let stream = description.keeps_sources.then(connection);
        let (begin, mut kills) = (Instant::now(), 0);
        while kills < KILLS && begin.elapsed() < PATIENCE {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "killed::run_until_killed"]).env(CHILD, format!("{mode} {kills}"));
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(Duration::from_millis(5 + random.below(150) as u64));
            assert!(child.try_wait().unwrap().is_none(), "{mode}: the proxy ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            if let Some(stream) = &stream {
                echo(stream, &format!("{mode}: after {kills} kills"));
            }
        }
        assert!(kills >= KILLS, "{mode}: only {kills} kills in {PATIENCE:?}");
        let mut last = Driver::start(description);
        let end = packet_table::brief().world;
        last.set(&end).unwrap();
        last.calm_down();
        check_rows(net, &packet_table::brief().rows, description.keeps_sources, mode);
        if let Some(stream) = &stream {
            echo(stream, &format!("{mode}: at the end"));
            drop(last);
            let written = Driver::start(description).set(&end).unwrap();
            assert_eq!(written, 0, "{mode}: something was still missing or too much");
        }
    });
}

/// A connection through a Service.
fn connection() -> TcpStream {
    let stream = TcpStream::connect_timeout(&"10.96.0.10:80".parse().unwrap(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = String::new();
    BufReader::new(&stream).read_line(&mut greeting).unwrap();
    assert!(greeting.starts_with("10.244."), "{greeting}");
    stream
}

fn echo(mut stream: &TcpStream, text: &str) {
    writeln!(stream, "{text}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(answer.trim_end(), text);
}
