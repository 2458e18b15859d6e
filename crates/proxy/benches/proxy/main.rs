//! What carrying Services costs on the running kernel. Prints one JSON object a line, for `cargo xtask bench proxy`.
//!
//! Each case is a process of its own, so that its memory is its own, in network namespaces of its own. By hand:
//!
//! ```text
//! cargo bench -p podwire-proxy --bench proxy -- sync MODE SERVICES ENDPOINTS    a restart, single changes
//!                                               cold MODE SERVICES ENDPOINTS    the first sync alone, in seconds
//!                                               peers MODE SERVICES ENDPOINTS   the same rules by other tools, in seconds
//!                                               memory MODE SERVICES ENDPOINTS
//!                                               load MODE SERVICES ENDPOINTS SECONDS
//!                                               path MODE SERVICES              what clients see
//! ```
//!
//! Without arguments: all of it, for every mode that this kernel can run; `--minute` makes each load one minute long.

mod cluster;
mod net;
mod path;
mod peer;
mod process;
mod sync;

use std::{error::Error, process::Command, time::Duration};

use podwire_kernel::ns::{Kind, Namespace, unshare};
use podwire_proxy::mode::{Description, MODES, find};
use podwire_testkit::bench::{Measured, milliseconds, percentile};

use cluster::Cluster;
use process::End;
use sync::Case;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Services, and endpoints of each: small, usual, and the very large cluster of kubernetes/kubernetes#135639.
const SIZES: &[[u32; 2]] = &[[100, 10], [1000, 10], LARGE];
const LARGE: [u32; 2] = [5006, 50];
/// How many Services there are when the data path is measured.
const PATH_SIZES: &[u32] = &[10, 1000, 10_000];
/// How many cold syncs a median is taken of, where they are short.
const COLD_SYNCS: usize = 5;
/// A first sync that takes longer is not repeated.
const LONG: Duration = Duration::from_secs(5);
/// A case that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(150);

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        [] => measure_all(5),
        ["--minute"] => measure_all(60),
        ["cold", mode, services, each] => {
            println!("{}", case(mode, services, each)?.cold_sync()?.as_secs_f64());
            Ok(())
        }
        ["peers", mode, services, each] => case(mode, services, each)?.load_by_peers(),
        ["sync", mode, services, each] => case(mode, services, each)?.measure_changes(),
        ["memory", mode, services, each] => case(mode, services, each)?.measure_memory(),
        ["load", mode, services, each, seconds] => {
            case(mode, services, each)?.measure_load(Duration::from_secs(seconds.parse()?))
        }
        ["path", mode, services] => path::measure(find(mode)?, services.parse()?),
        _ => Err(format!("unknown arguments {words:?}: see the head of benches/proxy/main.rs").into()),
    }
}

/// A case in a network namespace of its own.
fn case(mode: &str, services: &str, each: &str) -> Result<Case> {
    unshare(&[Kind::Net])?;
    Case::new(find(mode)?, Cluster { services: services.parse()?, each: each.parse()? })
}

/// Everything. What fails is told at once and again by the result; the rest is measured all the same.
fn measure_all(load_seconds: u32) -> Result<()> {
    let mut failed = 0;
    for mode in MODES {
        let elsewhere = Namespace::new_net()?;
        if let Err(error) = elsewhere.run(|| Ok::<_, podwire_kernel::Error>((mode.probe)()))? {
            eprintln!("{} mode is left out: {error}", mode.name);
            continue;
        }
        let [services, each] = LARGE;
        let mut cases: Vec<(&str, Vec<u32>)> = Vec::new();
        for size in SIZES {
            if told(cold_sync(mode, *size)) != Some(true) {
                failed += 1;
                continue;
            }
            cases.push(("sync", size.to_vec()));
            if *size != SIZES[1] {
                cases.push(("memory", size.to_vec()));
            }
            if *size == LARGE {
                cases.push(("load", vec![services, each, load_seconds]));
            }
        }
        cases.extend(PATH_SIZES.iter().map(|services| ("path", vec![*services])));
        for (what, numbers) in cases {
            failed += usize::from(told(case_by_child(what, mode, &numbers)).is_none());
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} cases failed or took too long").into()) }
}

/// The value; or the error on standard error.
fn told<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error| eprintln!("{error}")).ok()
}

fn command(what: &str, mode: &Description, numbers: &[u32]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([what, mode.name]).args(numbers.iter().map(ToString::to_string));
    Ok(command)
}

fn case_by_child(what: &str, mode: &Description, numbers: &[u32]) -> Result<()> {
    let mut command = command(what, mode, numbers)?;
    match process::finish(command.spawn()?, &format!("{command:?}"), PATIENCE)? {
        End::Done(_) => Ok(()),
        End::TimeUp(_) => Err(format!("{command:?}: not done in {PATIENCE:?}").into()),
    }
}

/// The median of a few first syncs, each by a process that has done nothing else; beside it what the peers need.
/// Whether it came to its end.
fn cold_sync(mode: &Description, size: [u32; 2]) -> Result<bool> {
    let [services, each] = size;
    let case = format!("{} {services}x{each}", mode.name);
    let mut times = Vec::new();
    while times.len() < COLD_SYNCS && times.last().is_none_or(|time| *time < LONG) {
        let Some(seconds) = process::output(&mut command("cold", mode, &size)?, PATIENCE)? else {
            print(&case, "cold sync (ended unfinished)", milliseconds(PATIENCE), "ms", None);
            return Ok(false);
        };
        times.push(Duration::from_secs_f64(seconds.trim().parse()?));
    }
    let time = percentile(&times, 50);
    let peers = process::output(&mut command("peers", mode, &size)?, PATIENCE)?.unwrap_or_default();
    for line in peers.lines() {
        let (peer, seconds) = line.rsplit_once(' ').ok_or("a peer's line")?;
        print(&case, "cold sync", time, "ms", Some((peer, seconds.parse::<f64>()? * 1000.0)));
    }
    if peers.is_empty() {
        print(&case, "cold sync", time, "ms", None);
    }
    Ok(true)
}

fn print(case: &str, metric: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) {
    println!("{}", Measured { bench: "proxy", case, metric, value, unit, peer });
}
