//! `podwire lint`: says where a manifest is not YAML, more precisely than `kubectl apply` does.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Check manifests for YAML mistakes: line, column and field of each
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests, each one or more YAML documents
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Prints one line for each sound file and an error for each other one; fails if there was an error.
pub fn run(args: &Args) -> Result<()> {
    let mut broken = 0;
    for file in &args.files {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        match check(&text) {
            Ok(1) => println!("{name}: sound YAML, 1 document"),
            Ok(documents) => println!("{name}: sound YAML, {documents} documents"),
            Err(mistake) => {
                broken += 1;
                eprintln!("{name}:{mistake}");
            }
        }
    }
    if broken > 0 {
        bail!("{broken} of {} files are not YAML", args.files.len());
    }
    Ok(())
}

/// The number of documents in `text`, or `line:column: in FIELD: problem` and the lines around it.
fn check(text: &str) -> Result<usize, String> {
    let error = match serde_saphyr::from_multiple::<serde_json::Value>(text) {
        Ok(documents) => return Ok(documents.len()),
        Err(error) => error,
    };
    let Some(at) = error.location() else { return Err(format!(" {}", error.without_snippet())) };
    let lines: Vec<&str> = text.lines().collect();
    let line = usize::try_from(at.line()).unwrap_or(usize::MAX).clamp(1, lines.len().max(1));
    let path = enclosing_field(&lines[..line - 1]);
    let field = if path.is_empty() { String::new() } else { format!("in {path}: ") };
    let message = error.without_snippet().to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let mut report = format!("{line}:{}: {field}{message}", at.column());
    let caret = format!("{}^", " ".repeat(usize::try_from(at.column()).unwrap_or(1).saturating_sub(1)));
    let first = line.saturating_sub(2);
    for (offset, shown) in lines[first..line].iter().enumerate() {
        report += &format!("\n{:>5} | {shown}", first + offset + 1);
    }
    report += &format!("\n      | {caret}");
    if let Some(hint) = hint(&lines, line) {
        report += &format!("\n        {hint}");
    }
    Err(report)
}

/// The path of the mapping keys that are open after `lines`, by their indentation: `spec.ports`.
fn enclosing_field(lines: &[&str]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    let mut limit = usize::MAX;
    for line in lines.iter().rev() {
        if line.starts_with("---") {
            break;
        }
        let content = line.trim_start().trim_start_matches("- ");
        let indent = line.len() - content.len();
        let Some((key, _)) = content.split_once(':') else { continue };
        if indent < limit && !key.starts_with('#') {
            keys.push(key);
            limit = indent;
        }
    }
    keys.reverse();
    keys.join(".")
}

/// The commonest mistake: a list item that stands left of the key that holds the list.
fn hint(lines: &[&str], line: usize) -> Option<String> {
    let (key, item) = (lines.get(line.checked_sub(2)?)?, lines.get(line - 1)?);
    let indent = |text: &str| text.len() - text.trim_start().len();
    let is_outside = key.trim_end().ends_with(':') && item.trim_start().starts_with("- ") && indent(item) < indent(key);
    is_outside.then(|| {
        format!(
            "the list item begins in column {}, its key in column {}: indent it by {} more",
            indent(item) + 1,
            indent(key) + 1,
            indent(key) - indent(item)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISPRINTS: [&str; 2] = [
        include_str!("../../../examples/misprinted/clusterip.yml"),
        include_str!("../../../examples/misprinted/nodeport.yml"),
    ];

    #[test]
    fn the_seeds_misprints_are_named_by_line_column_and_field() {
        for text in MISPRINTS {
            let mistake = check(text).unwrap_err();
            assert!(mistake.starts_with("10:2: in spec.ports: "), "{mistake}");
            assert!(mistake.ends_with("indent it by 1 more"), "{mistake}");
        }
    }

    #[test]
    fn the_corrected_manifests_are_sound() {
        assert_eq!(check(include_str!("../../../examples/demo-clusterip.yml")), Ok(2));
        assert_eq!(check(include_str!("../../../examples/exsvc.yml")), Ok(1));
    }

    #[test]
    fn any_text_is_judged_without_panic() {
        for text in ["", "\n\n", ":", "a: [", "- \u{1}", "é: {", "a:\n\t- b", "%YAML", "&a *a", "---\n...\n}"] {
            let _ = check(text);
        }
    }
}
