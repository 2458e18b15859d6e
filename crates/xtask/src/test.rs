//! `cargo xtask test`: the tiers of ARCHITECTURE.md, each in one run of the test runner.

use anyhow::{Result, bail};

use crate::{setup, shell};

/// Runs one tier, or all.
pub fn run(args: &[&str]) -> Result<()> {
    setup::run()?;
    match args {
        [] => {
            crates(&["--workspace", "--exclude=podwire"])?;
            crates(&["--package=podwire"])
        }
        // Tests that need root say so and pass by when they are not; so unit and netns are one run.
        ["unit" | "netns"] => crates(&["--workspace", "--exclude=podwire"]),
        ["lab"] => crates(&["--package=podwire"]),
        other => bail!("unknown tier {}: unit, netns or lab", other.join(" ")),
    }
}

fn crates(which: &[&str]) -> Result<()> {
    let nextest = shell::has("cargo-nextest");
    let mut args = if nextest { vec!["nextest", "run", "--no-fail-fast"] } else { vec!["test", "--no-fail-fast"] };
    args.extend(which);
    shell::cargo(&args)
}
