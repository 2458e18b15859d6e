//! What mapping a port costs, with none there and with a thousand: `portmap` alone, started as a process.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use podwire_kernel::{
    ns::Namespace,
    route::{Address, NewLink, NewLinkKind, Route, RouteSocket},
};
use podwire_testkit::bench::percentile;
use serde_json::{Value, json};

use super::{Result, report};

/// Ports mapped and unmapped, one after the other.
const ROUNDS: u16 = 30;
/// Ports that are there already, in the second case.
const FULL: u16 = 1000;
/// Ports of one container of those.
const EACH: u16 = 50;

/// Measures ours and the reference plugin, each on a node of its own.
pub fn measure(ours: &Path, reference: Option<&Path>) -> Result<()> {
    let own = both_cases(ours)?;
    let peer = reference.map(both_cases).transpose()?;
    for (at, case) in ["portmap, first mapping", "portmap, 1001st mapping"].into_iter().enumerate() {
        for (verb, name) in ["ADD, median", "DEL, median"].into_iter().enumerate() {
            report(case, name, ("ms", own[at][verb]), peer.map(|peer| peer[at][verb]));
        }
    }
    Ok(())
}

/// Medians of ADD and DEL, in milliseconds: with no port mapped before, and with many.
fn both_cases(bin: &Path) -> Result<[[f64; 2]; 2]> {
    Namespace::new_net()?.run(|| {
        // Where the containers would be.
        let mut route = RouteSocket::open()?;
        let bridge = route.create_link(&NewLink { up: true, ..NewLink::new("cni0", NewLinkKind::Bridge) })?;
        route.add_address(&Address::new(bridge.index, "10.1.0.1/16".parse::<podwire_model::IpNet>()?))?;
        let empty = medians(bin)?;
        for first in (0..FULL).step_by(EACH.into()) {
            call(bin, "ADD", 10_000 + first, EACH)?;
        }
        Ok([empty, medians(bin)?])
    })
}

fn medians(bin: &Path) -> Result<[f64; 2]> {
    let mut took: [Vec<Duration>; 2] = Default::default();
    for round in 0..ROUNDS {
        for (verb, times) in ["ADD", "DEL"].into_iter().zip(&mut took) {
            times.push(call(bin, verb, 1000 + round, 1)?);
        }
    }
    Ok(took.map(|times| percentile(&times, 50)))
}

/// Executes portmap for a container of which `count` ports from `first` on are mapped.
fn call(bin: &Path, verb: &str, first: u16, count: u16) -> Result<Duration> {
    let [high, low] = first.to_be_bytes();
    let mappings: Vec<Value> =
        (first..first + count).map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"})).collect();
    let previous = json!({"cniVersion": "1.0.0", "ips": [{"address": format!("10.1.{high}.{low}/16")}]});
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "portmap",
        "runtimeConfig": {"portMappings": mappings}, "prevResult": previous,
    });
    let begin = Instant::now();
    let mut child = Command::new(bin.join("portmap"))
        .envs([("CNI_COMMAND", verb), ("CNI_NETNS", "/proc/self/ns/net"), ("CNI_IFNAME", "eth0")])
        .env("CNI_CONTAINERID", format!("container-{first}"))
        .env("CNI_PATH", bin)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no standard input")?.write_all(config.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let took = begin.elapsed();
    match output.status.success() {
        true => Ok(took),
        false => Err(format!("portmap: {}", String::from_utf8_lossy(&output.stdout)).into()),
    }
}
