//! The same rules, loaded by the kernel's usual tools.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio, id},
    time::Duration,
};

use podwire_kernel::ns::Namespace;

use super::{
    Result,
    process::{End, finish, output},
};

/// A tool that needs longer is ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("podwire-bench-proxy-{}-{name}", id())))
    }
}

/// How long the tools need that load such rules from text, given what a mode made in this namespace; each in a new one.
/// None for modes without such a tool. A tool that was ended has that in its name.
pub fn load_again(mode: &str) -> Result<Vec<(String, Duration)>> {
    match mode {
        "nftables" => by_nft(),
        "iptables" => by_iptables(),
        _ => Ok(Vec::new()),
    }
}

/// nft is given what it lists. Only the few rules that look a random number up in a concatenation are left out, for
/// which its language has no type.
fn by_nft() -> Result<Vec<(String, Duration)>> {
    let listed = Command::new("nft").args(["--stateless", "list", "ruleset"]).output()?;
    if !listed.status.success() {
        return Err(format!("nft list ruleset: {}", String::from_utf8_lossy(&listed.stderr)).into());
    }
    let listed = String::from_utf8(listed.stdout)?;
    let loadable: Vec<&str> = listed.lines().filter(|line| !line.contains(" map @")).collect();
    let file = Scratch::new("rules.nft");
    fs::write(&file.0, loadable.join("\n") + "\n")?;
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(&file.0);
    Ok(vec![timed("nft -f", nft)?])
}

/// Both kinds of iptables-restore are given what iptables-save prints, in one piece.
fn by_iptables() -> Result<Vec<(String, Duration)>> {
    let saved = ["iptables-nft-save", "iptables-legacy-save"].map(|program| {
        let text = output(&mut Command::new(program), PATIENCE)?.unwrap_or_default();
        Ok(text)
    });
    let saved: Vec<String> = saved.into_iter().collect::<Result<_>>()?;
    let Some(text) = saved.iter().find(|text| text.contains("KUBE-SERVICES")) else {
        eprintln!("iptables-restore is left out: iptables-save did not print the rules in {PATIENCE:?}");
        return Ok(Vec::new());
    };
    let file = Scratch::new("rules.iptables");
    fs::write(&file.0, text)?;
    let restore = |program: &str| {
        let mut restore = Command::new(program);
        restore.arg(&file.0);
        timed(program, restore)
    };
    ["iptables-nft-restore", "iptables-legacy-restore"].map(restore).into_iter().collect()
}

/// Runs a tool in a new network namespace, for as long as [`PATIENCE`] allows.
fn timed(name: &str, mut tool: Command) -> Result<(String, Duration)> {
    let start = || tool.stdin(Stdio::null()).spawn().map_err(|error| podwire_kernel::Error::io("start it", error));
    let child = Namespace::new_net()?.run(start)?;
    Ok(match finish(child, &format!("{tool:?}"), PATIENCE)? {
        End::Done(time) => (name.to_owned(), time),
        End::TimeUp(time) => (format!("{name} (ended unfinished)"), time),
    })
}
