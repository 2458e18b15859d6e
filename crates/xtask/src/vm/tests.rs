//! The vm tier: which test programs run in the machine.

use std::{
    ffi::OsString,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{kernel, machine, quoted};
use crate::shell;

/// A test program of the workspace.
struct Row {
    /// What to call it: `cargo xtask test vm NAME`.
    name: &'static str,
    /// The folder of its crate below `crates`.
    folder: &'static str,
    /// The test target; the crate's unit tests if there is none.
    target: Option<&'static str>,
    /// What the program is told: filters, options of the test harness.
    args: &'static [&'static str],
    /// For programs that go through every proxy mode: those to go through, not all (`PODWIRE_MODES`). The others are tested on
    /// the host, where they are many times faster.
    modes: Option<&'static str>,
}

/// What runs in the machine, in this order: what speaks to its kernel, and not what speaks to fakes.
const TESTS: &[Row] = &[
    // By itself: nobody else may use nf_tables meanwhile.
    Row { name: "no_nftables", folder: "cni", target: Some("pods"), args: &["no_nftables"], modes: None },
    Row { name: "kernel", folder: "kernel", target: None, args: &[], modes: None },
    Row {
        name: "cni",
        folder: "cni",
        target: Some("pods"),
        args: &["portmap", "upper", "vlans_are", "host_device", "sriov"],
        modes: None,
    },
    Row { name: "vxlan", folder: "overlay", target: Some("vxlan"), args: &[], modes: None },
    Row { name: "udp", folder: "overlay", target: Some("udp"), args: &[], modes: None },
    Row { name: "wireguard", folder: "overlay", target: Some("wireguard"), args: &[], modes: None },
    Row { name: "ipip", folder: "overlay", target: Some("ipip"), args: &[], modes: None },
    Row { name: "dual_stack", folder: "overlay", target: Some("dual_stack"), args: &[], modes: None },
    Row { name: "nftables", folder: "proxy", target: Some("nftables"), args: &["golden"], modes: None },
    Row { name: "iptables", folder: "proxy", target: Some("iptables"), args: &["golden"], modes: None },
    Row { name: "ipvs", folder: "proxy", target: Some("ipvs"), args: &["real"], modes: None },
    Row { name: "node_local", folder: "agent", target: Some("node_local"), args: &[], modes: None },
    Row { name: "packets", folder: "proxy", target: Some("packets"), args: &[], modes: Some("ipvs,nftables") },
];
/// How long all of them may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// Builds and runs every row, or the one that `args` names; further words replace its arguments.
pub fn run(args: &[&str]) -> Result<()> {
    let (rows, words): (Vec<&Row>, &[&str]) = match args {
        [] => (TESTS.iter().collect(), &[]),
        [name, words @ ..] => (TESTS.iter().filter(|row| row.name == *name).collect(), words),
    };
    if rows.is_empty() {
        let known: Vec<&str> = TESTS.iter().map(|row| row.name).collect();
        bail!("no test program {:?} in the vm tier; there are: {}", args[0], known.join(", "));
    }
    let kernel = kernel::ready()?;
    let mut script = OsString::from("failed=\n");
    for (row, program) in rows.iter().zip(programs(&rows)?) {
        let words = if words.is_empty() { row.args } else { words };
        script.push(format!("echo; echo '== {} in the machine'; cd ", row.name));
        script.push(quoted(shell::root().join("crates").join(row.folder)));
        script.push("\n");
        // What the caller asks for reaches the machine by itself.
        if let Some(modes) = row.modes.filter(|_| std::env::var_os("PODWIRE_MODES").is_none()) {
            script.push(format!("PODWIRE_MODES={modes} "));
        }
        script.push(quoted(&program));
        script.push(if std::io::stdout().is_terminal() { " --color=always" } else { " --color=never" });
        for word in words {
            script.push(" ");
            script.push(quoted(word));
        }
        script.push(format!(" || failed=\"$failed {}\"\n", row.name));
    }
    script.push("[ -z \"$failed\" ] || { echo; echo \"failed in the machine:$failed\"; exit 1; }\n");
    let begin = Instant::now();
    let status = machine::run(&kernel, &machine::Job { script, folder: shell::root(), limit: LIMIT })?;
    println!("\nLinux {} ran for {:.0} s", kernel.version, begin.elapsed().as_secs_f64());
    if status == 0 { Ok(()) } else { bail!("the vm tier failed: exit status {status}") }
}

/// The executables of `rows`, built.
fn programs(rows: &[&Row]) -> Result<Vec<PathBuf>> {
    let mut args = vec!["test".to_owned(), "--no-run".into(), "--message-format=json-render-diagnostics".into()];
    match rows {
        [row] => {
            args.push(format!("--package=podwire-{}", row.folder));
            args.extend(row.target.map_or(vec!["--lib".into()], |target| vec!["--test".into(), target.into()]));
        }
        // What the netns tier builds, so that it is built already.
        _ => args.extend(["--workspace".into(), "--exclude=podwire".into()]),
    }
    let messages = shell::stdout(&shell::cargo_program(), &args)?;
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    rows.iter().map(|row| program(row, &messages)).collect()
}

fn program(row: &Row, messages: &[Value]) -> Result<PathBuf> {
    let manifest = Path::new("crates").join(row.folder).join("Cargo.toml");
    let is_row = |message: &&Value| {
        let (target, path) = (&message["target"], message["manifest_path"].as_str().unwrap_or_default());
        let kind = if row.target.is_some() { "test" } else { "lib" };
        message["profile"]["test"] == true
            && Path::new(path).ends_with(&manifest)
            && target["kind"][0] == kind
            && row.target.is_none_or(|name| target["name"] == name)
    };
    let executable = messages.iter().find(is_row).and_then(|message| message["executable"].as_str());
    executable.map(PathBuf::from).with_context(|| format!("cargo built no test program for {}", row.name))
}
