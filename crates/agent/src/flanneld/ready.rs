//! What tells others on this node that pods can be attached: subnet.env for the CNI plugin, and the CNI configuration for the
//! container runtime.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use podwire_overlay::subnet_env::{SubnetEnv, write_atomically};

use super::args::Own;

/// Writes subnet.env unless it is as it should be. Says whether it was written.
///
/// # Errors
/// The folder or the file cannot be written.
pub(super) fn tell_plugin(env: &SubnetEnv, path: &Path) -> anyhow::Result<bool> {
    let wanted = env.to_string();
    let differs = !fs::read(path).is_ok_and(|found| found == wanted.as_bytes());
    if differs {
        env.write(path)?;
    }
    Ok(differs)
}

/// Copies the CNI configuration as `--cni-conf-src` and `--cni-conf-dst` say, unless it is there. Says whether it was
/// copied.
///
/// # Errors
/// The source is missing or no JSON object, or the destination cannot be written.
pub(super) fn tell_runtime(own: &Own) -> anyhow::Result<bool> {
    let (Some(source), Some(destination)) = (&own.cni_conf_src, &own.cni_conf_dst) else { return Ok(false) };
    let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    if fs::read(destination).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    let json: serde_json::Value =
        serde_json::from_slice(&content).with_context(|| format!("{} is not valid JSON", source.display()))?;
    ensure!(json.is_object(), "{} is not a JSON object", source.display());
    write_atomically(destination, &content)?;
    Ok(true)
}
