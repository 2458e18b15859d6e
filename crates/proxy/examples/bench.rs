//! Times the modes in the network namespace it is started in: run it as `unshare --net`, never on the host's network.
//!
//! `bench MODE SERVICES ENDPOINTS_EACH` prints one JSON object a line: bench, case, metric, value, unit.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use podwire_model::{EndpointSlice, Service};
use podwire_proxy::{
    Tracker,
    mode::{self, Settings},
    plan::Me,
};
use podwire_testkit::build;

/// How many times a single endpoint is changed.
const CHANGES: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_else(|| "nftables".to_owned());
    let services: u32 = arguments.next().map_or(Ok(1000), |text| text.parse())?;
    let each: u32 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let case = format!("{mode} {services}x{each}");

    let description = mode::find(&mode)?;
    let settings = Settings { pod_ranges: vec!["10.128.0.0/9".parse()?], ..Settings::default() };
    let mut proxy = (description.open)(&settings)?;
    let mut tracker = Tracker::new(Me { node: "node1".into(), ..Me::default() });
    let (objects, mut slices): (Vec<_>, Vec<_>) = (0..services).map(|number| service(number, each)).unzip();

    let begin = Instant::now();
    tracker.set_services(objects);
    tracker.set_slices(slices.clone());
    let changes = tracker.take_changes().ok_or("no plan")?;
    report(&case, "plan", begin.elapsed());
    let begin = Instant::now();
    proxy.apply(changes)?;
    report(&case, "cold sync", begin.elapsed());

    let mut times = Vec::new();
    for change in 0..CHANGES {
        let slice = &mut slices[change % services as usize];
        slice.endpoints[0].address = address(250 << 16 | change as u32);
        let begin = Instant::now();
        tracker.slice(slice.clone());
        proxy.apply(tracker.take_changes().ok_or("no plan")?)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    report(&case, "one endpoint replaced, median", times[CHANGES / 2]);
    report(&case, "one endpoint replaced, 99th percentile", times[CHANGES * 99 / 100]);

    let mut times = Vec::new();
    for change in 0..CHANGES {
        let slice = &mut slices[change % services as usize];
        slice.endpoints.push(build::endpoint(&address(251 << 16 | change as u32).to_string()));
        let begin = Instant::now();
        tracker.slice(slice.clone());
        proxy.apply(tracker.take_changes().ok_or("no plan")?)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    report(&case, "one endpoint added, median", times[CHANGES / 2]);
    report(&case, "one endpoint added, 99th percentile", times[CHANGES * 99 / 100]);

    let begin = Instant::now();
    let mut restarted = (description.open)(&settings)?;
    let mut tracker_ = Tracker::new(Me { node: "node1".into(), ..Me::default() });
    tracker_.set_services((0..services).map(|number| service(number, each).0));
    tracker_.set_slices(slices);
    let applied = restarted.apply(tracker_.take_changes().ok_or("no plan")?)?;
    report(&case, "restart with nothing to do", begin.elapsed());
    assert!(applied.full);
    Ok(())
}

fn service(number: u32, endpoints: u32) -> (Service, EndpointSlice) {
    let name = format!("service-{number}");
    let service = build::service(&name, &Ipv4Addr::from_bits(0x0a60_0000 + number + 1).to_string());
    let addresses: Vec<_> = (0..endpoints).map(|index| address(number * endpoints + index).to_string()).collect();
    let slice = build::slice(&name, 8080, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
    (service, slice)
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a80_0000 | number).into()
}

fn report(case: &str, metric: &str, time: Duration) {
    let value = time.as_secs_f64() * 1000.0;
    println!(r#"{{"bench":"proxy","case":"{case}","metric":"{metric}","value":{value:.4},"unit":"ms"}}"#);
}
