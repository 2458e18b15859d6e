use serde::Deserialize;
use serde_json::json;

use crate::{
    Call, Error, Result, Verb, Version,
    plugin::{self, PLUGINS},
};

/// How a plugin's process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// A result or an error report, as JSON; may be empty.
    pub stdout: String,
    /// Whether it did what it was asked for: exit code 0, else 1.
    pub success: bool,
}

/// Runs the plugin called `name`. `variable` looks up the environment; the network namespace of the calling thread is
/// the host's.
pub fn run(name: &str, variable: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Output {
    match answer(name, variable, stdin) {
        Ok(stdout) => Output { stdout, success: true },
        Err(error) => {
            // In the version of the question where it is known: the caller may not understand another.
            let version = asked_version(stdin).unwrap_or_else(|| Version::default().to_string());
            Output { stdout: json!(error.report(&version)).to_string(), success: false }
        }
    }
}

fn answer(name: &str, variable: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<String> {
    let plugin = plugin::named(name).ok_or_else(|| {
        let detail = format!("called as {name:?}, which is none of its plugins: {}", PLUGINS.join(", "));
        Error::Environment { variable: "argv[0]", detail }
    })?;
    if Verb::from_environment(variable)? == Verb::Version {
        let version = asked_version(stdin).unwrap_or_else(|| Version::default().to_string());
        return Ok(json!({"cniVersion": version, "supportedVersions": Version::ALL}).to_string());
    }
    let call = Call::parse(variable, stdin)?;
    let result = plugin::call(plugin, &call)?;
    Ok(result.map_or(String::new(), |result| result.to_json(call.version).to_string()))
}

fn asked_version(stdin: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    serde_json::from_slice::<Asked>(stdin).ok().map(|asked| asked.version)
}
