//! `cargo xtask demo`: the seed's demos on a three-node lab, each step as a user would type it, with what came back.

mod ipvs;
mod modes;
mod names;
mod network;
mod scenes;
mod stage;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{setup, shell};
use stage::Stage;

/// Builds, brings a lab up, plays every scene, takes the lab down (unless `--keep`).
pub fn run(args: &[&str]) -> Result<()> {
    let keep = match args {
        [] => false,
        ["--keep"] => true,
        ["--in-machine", binaries] => return ipvs::inside(binaries),
        other => bail!("unknown argument {}; there is --keep", other.join(" ")),
    };
    setup::run()?;
    build()?;
    let mut stage = Stage::new("demo", shell::built("release")?);
    let played = scenes::play(&mut stage);
    if keep {
        println!("\nThe lab stays up: podwire lab status --name demo; podwire lab down --name demo");
    } else {
        stage.title("Take it down");
        stage.show("podwire lab down").succeeds("the lab is gone");
    }
    played?;
    ipvs::play(&mut stage)?;
    stage.verdict()
}

/// The lab's own numbers for `cargo xtask bench lab`: times, memory, sizes.
pub fn bench() -> Result<Vec<Value>> {
    build()?;
    let binaries = shell::built("release")?;
    let mut results = Vec::new();
    let mut add = |case: &str, metric: &str, value: f64, unit: &str| {
        results.push(json!({"bench": "lab", "case": case, "metric": metric, "value": value, "unit": unit}));
    };
    for name in ["podwire", "podwire-cni"] {
        let size = std::fs::metadata(binaries.join(name)).with_context(|| name.to_owned())?.len();
        add(name, "size", size as f64 / 1e6, "MB");
    }
    let mut stage = Stage::new("bench", binaries);
    stage.quiet();
    let begin = Instant::now();
    stage.show("podwire lab up --name bench").succeeds("the lab is up");
    add("3 nodes", "up, until DNS answers", begin.elapsed().as_secs_f64(), "s");
    stage.use_kubeconfig();
    let measured = scenes::measure(&mut stage, &mut add);
    let begin = Instant::now();
    stage.show("podwire lab down --name bench").succeeds("the lab is gone");
    add("3 nodes", "down", begin.elapsed().as_secs_f64(), "s");
    measured?;
    stage.verdict()?;
    Ok(results)
}

fn build() -> Result<()> {
    shell::cargo(&["build", "--release", "--package=podwire", "--package=podwire-cni"])
}
