//! `cargo xtask tidy`: what a reader would stumble over. Size is a question, not a law, so it is only listed; a mode,
//! backend or plugin without a README, a `unwrap` excused without a reason, or a left-over stub fails.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Lines in a file above which it is listed.
const LONG_FILE: usize = 500;
/// Lines in a function above which it is listed.
const LONG_FUNCTION: usize = 70;
/// Folders whose sub-folders are one mode or backend each, and owe a README.
const FAMILIES: &[&str] = &["crates/proxy/src/mode", "crates/overlay/src/backend", "crates/cni/src/plugin"];

/// Lists what is large, fails on what is forbidden.
pub fn run() -> Result<()> {
    let root = shell::root();
    let files = shell::output("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])?;
    let mut wrong = Vec::new();
    for name in files.lines() {
        let Ok(text) = std::fs::read_to_string(root.join(name)) else { continue };
        inspect(name, &text, &mut wrong);
    }
    for family in FAMILIES {
        for folder in folders(&root.join(family))? {
            if !folder.join("README.md").is_file() {
                wrong.push(format!("{}: no README.md", folder.display()));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("tidy:\n  {}", wrong.join("\n  ")) }
}

fn inspect(name: &str, text: &str, wrong: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LONG_FILE {
        println!("{name}: {} lines", lines.len());
    }
    let mut start = None;
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "const fn "]
            .iter()
            .any(|head| code.starts_with(head));
        if is_function && line.ends_with('{') {
            start = Some((number, line.len() - code.len()));
        }
        if let Some((first, indent)) = start
            && code == "}"
            && line.len() - code.len() == indent
        {
            if number - first > LONG_FUNCTION {
                println!("{name}:{}: a function of {} lines", first + 1, number - first + 1);
            }
            start = None;
        }
        if STUBS.iter().any(|stub| line.contains(stub)) && !name.ends_with("xtask/src/tidy.rs") {
            wrong.push(format!("{name}:{}: left-over stub: {}", number + 1, code));
        }
        let allows = code.starts_with("#[allow(") || code.starts_with("#![allow(");
        // `unsafe` has its SAFETY line; helpers of tests may unwrap as tests do.
        let explained = code.contains("reason") || code.contains("unsafe_code") || name.contains("/tests/");
        if allows && !explained && !code.ends_with('(') {
            wrong.push(format!("{name}:{}: an allow without a reason", number + 1));
        }
    }
}

const STUBS: &[&str] = &["todo!(", "unimplemented!(", "FIXME", "TODO", "XXX", "#[ignore"];

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(parent).with_context(|| parent.display().to_string())?;
    Ok(entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect())
}
