//! `cargo xtask setup`: installs from Debian what is missing, and nothing else.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program that the tests and the demo run (by its path where it is in no folder of programs), and the Debian package
/// that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
    ("cc", "gcc"),
    ("conntrack", "conntrack"),
    ("crun", "crun"),
    ("ctr", "containerd"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("ip", "iproute2"),
    ("ipset", "ipset"),
    ("iptables", "iptables"),
    ("ipvsadm", "ipvsadm"),
    ("kill", "procps"),
    ("kubectl", "kubernetes-client"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("wg", "wireguard-tools"),
];

/// What benchmarks compare with, by a file of it; without them the comparison is left out.
const PEERS: &[(&str, &str)] = &[("/usr/lib/cni/bridge", "containernetworking-plugins")];

/// The emulator of the vm tier, its package, and the first version with a network card that can do SR-IOV (`igb`).
const EMULATOR: (&str, &str, u32) = ("qemu-system-x86_64", "qemu-system-x86", 8);

/// Installs the packages of the programs that are missing.
pub fn run() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(program, _)| !shell::has(program)).map(|(_, p)| *p).collect();
    install(&missing)?;
    emulator()
}

/// Installs what is missing of what benchmarks compare with, if that is possible.
pub fn peers() {
    let missing: Vec<&str> = PEERS.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, p)| *p).collect();
    if let Err(error) = install(&missing) {
        eprintln!("measuring without a comparison: {error:#}");
    }
}

/// Installs the emulator, or a newer one. Debian 12 has that in its backports only.
fn emulator() -> Result<()> {
    let (program, package, first) = EMULATOR;
    let version = if shell::has(program) { shell::output(program, ["--version"])? } else { String::new() };
    if major(&version).is_some_and(|major| major >= first) {
        return Ok(());
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return install(&[package]);
    }
    add_backports()?;
    // Only the words that follow the option are taken from there, and what they need.
    install(&["--target-release=bookworm-backports", package])
}

/// The first number of `QEMU emulator version 10.0.2 (Debian …)`.
fn major(version: &str) -> Option<u32> {
    version.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// Tells apt of the backports of Debian 12, where it has Debian 12 itself from. Nothing is taken from there unless asked for.
fn add_backports() -> Result<()> {
    const LIST: &str = "/etc/apt/sources.list.d/podwire-backports.list";
    // A fresh machine may have no lists yet, and then apt does not say where it would have them from.
    shell::run("apt-get", ["update", "-qq"])?;
    let format = ["indextargets", "--format=$(RELEASE) $(REPO_URI)", "Created-By: Packages"];
    let known = shell::output("apt-get", format)?;
    let source = |release| known.lines().find_map(|line| line.strip_prefix(release)?.strip_prefix(' '));
    if source("bookworm-backports").is_some() {
        return Ok(());
    }
    let mirror = source("bookworm").context("apt has no source for Debian 12: apt-get update may help")?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    println!("adding {LIST}");
    fs::write(LIST, format!("deb [signed-by={keys}] {mirror} bookworm-backports main\n"))
        .with_context(|| format!("cannot write {LIST}: run as root"))
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing from Debian: {}", packages.join(" "));
    if shell::output("id", ["-u"])?.trim() != "0" {
        bail!("not root; run: sudo apt-get install {}", packages.join(" "));
    }
    if !shell::has("apt-get") {
        bail!("no apt-get here; install by hand what Debian has in: {}", packages.join(" "));
    }
    shell::run("apt-get", ["update", "-qq"])?;
    let mut install =
        vec!["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "--no-install-recommends"];
    install.extend(packages);
    shell::run("env", install)
}
