//! `cargo xtask bench`: runs the measurements that the project keeps and shows them as one table.
//!
//! A benchmark is a `[[bench]]` of the crate that it measures, without a harness. It prints one JSON object a line:
//! `bench`, `case`, `metric`, `value`, `unit`, and where there is a peer in the same run, `peer`, `peer_value`, `ratio`
//! (value ÷ peer_value).

use std::{fs::File, io::Write};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{demo, setup, shell};

/// The benchmarks: a name, and the crate that holds a bench target of that name; `lab` is measured here.
const BENCHES: &[(&str, Option<&str>)] = &[
    ("proxy", Some("podwire-proxy")),
    ("kube-proxy", Some("podwire-agent")),
    ("overlay", Some("podwire-overlay")),
    ("cni", Some("podwire-cni")),
    ("dns", Some("podwire-dns")),
    ("lab", None),
];

/// Runs the named benchmark, or all. What follows `--` is for the benchmark.
pub fn run(args: &[&str]) -> Result<()> {
    let (args, own) = args.split_at(args.iter().position(|arg| *arg == "--").unwrap_or(args.len()));
    let own = own.strip_prefix(&["--"]).unwrap_or_default();
    let (mut name, mut file) = (None, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--json" => file = Some(*rest.next().context("--json needs a file")?),
            other if name.is_none() && !other.starts_with('-') => name = Some(other),
            other => bail!("unknown argument {other}"),
        }
    }
    let chosen: Vec<_> = BENCHES.iter().filter(|(bench, _)| name.is_none_or(|n| n == *bench)).collect();
    if chosen.is_empty() {
        let known: Vec<&str> = BENCHES.iter().map(|(bench, _)| *bench).collect();
        bail!("no benchmark {:?}; there are: {}", name.unwrap_or_default(), known.join(", "));
    }
    if !own.is_empty() && chosen.len() > 1 {
        bail!("{own:?} is for one benchmark: name it");
    }
    setup::run()?;
    setup::peers();
    let mut results = Vec::new();
    for (bench, package) in chosen {
        eprintln!("measuring {bench} …");
        match package {
            Some(package) => results.extend(measured(bench, package, own)?),
            None => results.extend(demo::bench()?),
        }
    }
    table(&results);
    if let Some(path) = file {
        let mut out = File::create(path).with_context(|| format!("cannot write {path}"))?;
        for result in &results {
            writeln!(out, "{result}")?;
        }
    }
    Ok(())
}

fn measured(bench: &str, package: &str, own: &[&str]) -> Result<Vec<Value>> {
    let command = [&["bench", "--quiet", "--package", package, "--bench", bench, "--"], own].concat();
    let printed = shell::output(&shell::cargo_program(), command)?;
    let lines = printed.lines().filter(|line| line.starts_with('{'));
    let results: Vec<Value> =
        lines.map(serde_json::from_str).collect::<Result<_, _>>().context("a benchmark's line")?;
    if results.is_empty() {
        bail!("benchmark {bench} of {package} printed no result");
    }
    Ok(results)
}

fn table(results: &[Value]) {
    let text = |value: &Value| match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), round),
        _ => String::new(),
    };
    let head = ["bench", "case", "metric", "value", "unit", "peer", "peer_value", "ratio"];
    let rows: Vec<Vec<String>> =
        results.iter().map(|result| head.iter().map(|key| text(&result[*key])).collect()).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    };
    line(&mut head.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Three significant digits, no exponent.
fn round(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    format!("{value:.digits$}")
}
