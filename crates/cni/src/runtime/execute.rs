use std::{
    collections::BTreeMap,
    env,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Map, Value};

use crate::{Error, Result, Verb, error::ErrorReport};

/// The environment of a plugin's process.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
    /// The other `CNI_` variables.
    pub variables: BTreeMap<&'static str, String>,
}

/// The file of the plugin called `kind`.
pub fn find(bin_dirs: &[PathBuf], kind: &str) -> Result<PathBuf> {
    let found = bin_dirs.iter().map(|folder| folder.join(kind)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let folders: Vec<String> = bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
        Error::Config(format!("there is no plugin {kind:?} in {}", folders.join(", ")))
    })
}

/// Executes a plugin and returns what it wrote; null when it wrote nothing.
pub fn execute(kind: &str, environment: &Environment, config: &Map<String, Value>) -> Result<Value> {
    let program = find(&environment.bin_dirs, kind)?;
    let failed = |error| Error::io("execute", &program, error);
    let path = env::join_paths(&environment.bin_dirs).map_err(|error| Error::Config(error.to_string()))?;
    let mut command = Command::new(&program);
    for inherited in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        command.env_remove(inherited);
    }
    let mut child = command
        .env("CNI_COMMAND", environment.verb.as_str())
        .env("CNI_PATH", path)
        .envs(&environment.variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A plugin that dies before it has read everything is judged by what it says, not by the broken pipe.
    if let Some(mut stdin) = child.stdin.take() {
        _ = stdin.write_all(Value::Object(config.clone()).to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| ErrorReport {
            cni_version: String::new(),
            code: 100,
            msg: format!("it ended with {}", output.status),
            details: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
        return Err(Error::Plugin { plugin: kind.to_owned(), report });
    }
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| Error::decode(format!("what plugin {kind} wrote"), &error))
}
