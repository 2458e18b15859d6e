//! `cargo xtask layers`: which crate may use which, as the map in ARCHITECTURE.md has it.

use anyhow::{Context, Result, bail};

use crate::shell;

/// A crate of ours and the crates of ours that its code may use. Dependencies of tests are free.
const LAYERS: &[(&str, &[&str])] = &[
    ("podwire-model", &[]),
    ("podwire-k8s", &["podwire-model"]),
    ("podwire-kernel", &["podwire-model"]),
    ("podwire-proxy", &["podwire-model", "podwire-kernel"]),
    ("podwire-overlay", &["podwire-model", "podwire-kernel"]),
    ("podwire-cni", &["podwire-model", "podwire-kernel"]),
    ("podwire-dns", &["podwire-model", "podwire-kernel"]),
    ("podwire-apiserver", &["podwire-k8s"]),
    (
        "podwire-agent",
        &[
            "podwire-model",
            "podwire-k8s",
            "podwire-kernel",
            "podwire-proxy",
            "podwire-overlay",
            "podwire-cni",
            "podwire-dns",
        ],
    ),
    ("podwire-lab", &["podwire-model", "podwire-k8s", "podwire-kernel", "podwire-apiserver", "podwire-cni"]),
    ("podwire", &["podwire-agent", "podwire-lab"]),
    ("podwire-testkit", &["podwire-model", "podwire-kernel"]),
    ("xtask", &[]),
];

/// Fails on every dependency that the table does not list.
pub fn run() -> Result<()> {
    let metadata = shell::output(&shell::cargo_program(), ["metadata", "--format-version=1", "--no-deps"])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let ours = |name: &str| LAYERS.iter().find(|(known, _)| *known == name);
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ours(name) else {
            wrong.push(format!("{name}: not in the table of crates/xtask/src/layers.rs"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|d| d["kind"].is_null()) {
            let used = dependency["name"].as_str().unwrap_or_default();
            if ours(used).is_some() && !allowed.contains(&used) {
                wrong.push(format!("{name} uses {used}: ARCHITECTURE.md does not allow it"));
            }
        }
    }
    if wrong.is_empty() {
        println!("layers: {} crates, each uses only what it may", packages.len());
        return Ok(());
    }
    bail!("layers:\n  {}", wrong.join("\n  "))
}
