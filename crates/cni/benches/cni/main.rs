//! What attaching a pod costs: ADD and DEL of `bridge` with `host-local`, from the runtime's call to its answer, which
//! is mostly the start of processes. Prints one JSON object a line, for `cargo xtask bench cni`.
//!
//! The peers are the reference plugins as Debian packages them (`containernetworking-plugins`), where installed: the
//! same configuration and the same runtime, in turns; and for DEL the one netlink request without which no pod is
//! detached. And what `portmap` costs when a thousand ports are mapped already.

mod node;
mod portmap;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use podwire_cni::PLUGINS;
use podwire_testkit::bench::{Measured, milliseconds, percentile};

use self::node::{Node, Took};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
const PEER: &str = "containernetworking-plugins";
/// Pods attached and detached, one after the other.
const ROUNDS: usize = 50;
/// Pods attached at the same time.
const CROWDS: [usize; 3] = [50, 100, 200];
/// What both have of what a node needs.
const COMMON: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

fn main() -> Result<()> {
    let folder = env::temp_dir().join(format!("podwire-bench-cni-{}", process::id()));
    let measured = measure(&folder);
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path) -> Result<()> {
    let program = Path::new(env!("CARGO_BIN_EXE_podwire-cni"));
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    for plugin in PLUGINS {
        std::os::unix::fs::symlink(program, bin.join(plugin))?;
    }
    let has_reference = COMMON.iter().all(|name| Path::new(REFERENCE).join(name).exists());
    let reference = has_reference.then(|| PathBuf::from(REFERENCE));
    for (case, masquerade) in [("bridge with host-local", false), ("bridge with host-local, ipMasq", true)] {
        one_by_one(folder, case, (&bin, reference.as_deref()), masquerade)?;
    }
    crowds(folder, (&bin, reference.as_deref()))?;
    portmap::measure(&bin, reference.as_deref())?;
    let size = |path: &Path| Ok::<_, Box<dyn Error + Send + Sync>>(fs::metadata(path)?.len() as f64 / 1e6);
    let all = || COMMON.iter().map(|name| size(&Path::new(REFERENCE).join(name))).sum::<Result<f64>>();
    let peer = has_reference.then(all).transpose()?;
    report("bridge, host-local, loopback, portmap", "size of the programs", ("MB", size(program)?), peer);
    Ok(())
}

fn report(case: &str, metric: &str, (unit, value): (&str, f64), peer: Option<f64>) {
    report_beside(case, metric, (unit, value), peer.map(|value| (PEER, value)));
}

fn report_beside(case: &str, metric: &str, (unit, value): (&str, f64), peer: Option<(&str, f64)>) {
    println!("{}", Measured { bench: "cni", case, metric, value, unit, peer });
}

type Programs<'a> = (&'a Path, Option<&'a Path>);

/// One pod after the other, each set of programs in turns; and our pods once more, detached by netlink alone.
fn one_by_one(folder: &Path, case: &str, (ours, reference): Programs<'_>, masquerade: bool) -> Result<()> {
    let node = |bin: &Path, name: &str| Node::new(bin, folder.join(name).join(case.replace(' ', "-")), masquerade);
    let ours = node(ours, "ours")?;
    let reference = reference.map(|bin| node(bin, "reference")).transpose()?;
    let (mut own, mut peer, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        own.push(ours.attach_and_detach(round)?);
        if let Some(reference) = &reference {
            peer.push(reference.attach_and_detach(round)?);
        }
        bare.push(ours.attach_and_delete(round)?);
    }
    let times = |all: &[Took], verb: usize| all.iter().map(|took| took[verb]).collect::<Vec<Duration>>();
    for (verb, name) in ["ADD", "DEL"].into_iter().enumerate() {
        for (which, percent) in [("median", 50), ("90th percentile", 90)] {
            let value = percentile(&times(&own, verb), percent);
            let peer = reference.as_ref().map(|_| percentile(&times(&peer, verb), percent));
            report(case, &format!("{name}, {which}"), ("ms", value), peer);
        }
    }
    let bare = Some(("netlink: delete the link", percentile(&bare, 50)));
    report_beside(case, "DEL, median", ("ms", percentile(&times(&own, 1), 50)), bare);
    Ok(())
}

/// Many pods at the same time: what each of them takes does not grow with their number.
fn crowds(folder: &Path, (ours, reference): Programs<'_>) -> Result<()> {
    for crowd in CROWDS {
        let case = format!("bridge with host-local, {crowd} pods at once");
        let attach = |bin: &Path, name: &str| {
            Node::new(bin, folder.join(name).join(format!("crowd-{crowd}")), false)?.attach_crowd(crowd)
        };
        let own = attach(ours, "ours")?;
        let peer = reference.map(|bin| attach(bin, "reference")).transpose()?;
        for (verb, name) in ["ADD of all", "DEL of all"].into_iter().enumerate() {
            report(&case, name, ("ms", milliseconds(own[verb])), peer.map(|took| milliseconds(took[verb])));
        }
        let each = |took: Took| milliseconds(took[0]) / crowd as f64;
        report(&case, "ADD of all, for each pod", ("ms", each(own)), peer.map(each));
    }
    Ok(())
}
