//! `cargo xtask setup`: installs from Debian what is missing, and nothing else.

use anyhow::{Result, bail};

use crate::shell;

/// A program that the tests and the demo run, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("ip", "iproute2"),
    ("kubectl", "kubernetes-client"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
];

/// Installs the packages of the programs that are missing.
pub fn run() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(program, _)| !shell::has(program)).map(|(_, p)| *p).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing from Debian: {}", missing.join(" "));
    if shell::output("id", ["-u"])?.trim() != "0" {
        bail!("not root; run: sudo apt-get install {}", missing.join(" "));
    }
    if !shell::has("apt-get") {
        bail!("no apt-get here; install by hand what has these programs: {}", missing.join(" "));
    }
    shell::run("apt-get", ["update", "-qq"])?;
    let mut install =
        vec!["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "--no-install-recommends"];
    install.extend(missing);
    shell::run("env", install)
}
