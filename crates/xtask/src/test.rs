//! `cargo xtask test`: the tiers of ARCHITECTURE.md, each in one run of the test runner.

use anyhow::{Result, bail};

use crate::{setup, shell, vm};

/// Runs one tier, or all.
pub fn run(args: &[&str]) -> Result<()> {
    setup::run()?;
    match args {
        [] => {
            crates(&["--workspace", "--exclude=podwire"])?;
            lab()?;
            vm::tests::run(&[])
        }
        // Tests that need root say so and pass by when they are not; so unit and netns are one run.
        ["unit" | "netns"] => crates(&["--workspace", "--exclude=podwire"]),
        ["lab"] => lab(),
        ["vm", rest @ ..] => vm::tests::run(rest),
        other => bail!("unknown tier {}: unit, netns, lab or vm", other.join(" ")),
    }
}

/// Whole labs take the machine; a lab's nodes run `podwire-cni`, which the runner builds only for its own crate.
fn lab() -> Result<()> {
    shell::cargo(&["build", "--package=podwire", "--package=podwire-cni"])?;
    crates(&["--package=podwire"])
}

fn crates(which: &[&str]) -> Result<()> {
    let nextest = shell::has("cargo-nextest");
    let mut args = if nextest { vec!["nextest", "run", "--no-fail-fast"] } else { vec!["test", "--no-fail-fast"] };
    args.extend(which);
    shell::cargo(&args)
}
