//! How long planning takes and how much memory it needs at 5,006 Services with 50 endpoints each:
//! `cargo test --release -p podwire-proxy --test plan -- --ignored --nocapture`.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use podwire_model::{EndpointSlice, Service};
use podwire_testkit::{
    bench::{milliseconds, percentile, resident_memory},
    build,
    packet_table::empty,
};

use super::support::tracker;

const SERVICES: u32 = 5006;
const ENDPOINTS: u32 = 50;

fn service(number: u32) -> Service {
    build::service(&format!("service-{number}"), &Ipv4Addr::from_bits(0x0a60_0001 + number).to_string())
}

/// Every hundredth endpoint is on this node.
fn slice(number: u32) -> EndpointSlice {
    let endpoint = |each: u32| {
        let all = number * ENDPOINTS + each;
        format!("{}@node{}", Ipv4Addr::from_bits(0x0a80_0000 | all), all % 100)
    };
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    build::slice(&format!("service-{number}"), 8080, &endpoints.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn a_large_cluster_is_planned_at_once_and_a_change_in_no_time() {
    let idle = resident_memory().unwrap();
    let mut tracker = tracker(&empty());
    // As from a list that is read one by one.
    let begin = Instant::now();
    tracker.set_services((0..SERVICES).map(service));
    tracker.set_slices((0..SERVICES).map(slice));
    let (made, begin) = (begin.elapsed(), Instant::now());
    let changes = tracker.take_changes().unwrap();
    let planned = begin.elapsed();
    assert_eq!(changes.frontends.len(), SERVICES as usize);
    drop(changes);
    let memory = resident_memory().unwrap() - idle;

    let changed: Vec<Duration> = (0..1000)
        .map(|number| {
            let mut changed = slice(number);
            changed.endpoints[7].address = Ipv4Addr::from_bits(0x0afa_0000 | number).into();
            let begin = Instant::now();
            tracker.slice(changed);
            let changes = tracker.take_changes().unwrap();
            let took = begin.elapsed();
            assert_eq!(changes.frontends.len(), 1);
            took
        })
        .collect();
    println!("objects made and taken: {:.1} ms", milliseconds(made));
    println!("all planned: {:.1} ms", milliseconds(planned));
    println!("memory: {memory:.1} MB");
    let of = |percent| percentile(&changed, percent) * 1000.0;
    println!("one slice changed: {:.1} µs median, {:.1} µs p99", of(50), of(99));
}
