//! `cargo xtask setup`: installs from Debian what is missing, and nothing else.

use std::path::Path;

use anyhow::{Result, bail};

use crate::shell;

/// A program that the tests and the demo run, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("conntrack", "conntrack"),
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
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("tcpdump", "tcpdump"),
];

/// What benchmarks compare with, by a file of it; without them the comparison is left out.
const PEERS: &[(&str, &str)] = &[("/usr/lib/cni/bridge", "containernetworking-plugins")];

/// Installs the packages of the programs that are missing.
pub fn run() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(program, _)| !shell::has(program)).map(|(_, p)| *p).collect();
    install(&missing)
}

/// Installs what is missing of what benchmarks compare with, if that is possible.
pub fn peers() {
    let missing: Vec<&str> = PEERS.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, p)| *p).collect();
    if let Err(error) = install(&missing) {
        eprintln!("measuring without a comparison: {error:#}");
    }
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
