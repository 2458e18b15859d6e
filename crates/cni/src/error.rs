use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use crate::Version;

/// What this crate's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plugin did not do what it was asked for; [`Error::code`] is the number that the caller sees.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The version is unknown, or too old for the command.
    #[error("CNI version {asked:?} cannot be served: {detail}")]
    Version {
        /// The `cniVersion` of the configuration.
        asked: String,
        /// Why not.
        detail: String,
    },

    /// A field of the configuration asks for what is not supported.
    #[error("field {field:?} is not supported: {detail}")]
    Unsupported {
        /// Its name, as in the configuration.
        field: &'static str,
        /// What to do instead.
        detail: String,
    },

    /// The container is not there; nothing was done for it, nothing is to be cleaned up.
    #[error("there is no container to work on: {0}")]
    UnknownContainer(String),

    /// An environment variable is missing or wrong.
    #[error("environment variable {variable}: {detail}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        detail: String,
    },

    /// A file could not be read or written, a program not started.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The failure.
        source: io::Error,
    },

    /// JSON that is none, or has the wrong shape.
    #[error("cannot decode {what}: {detail}")]
    Decode {
        /// Which JSON.
        what: String,
        /// What is wrong, and where.
        detail: String,
    },

    /// The configuration makes no sense.
    #[error("network configuration: {0}")]
    Config(String),

    /// It may work later.
    #[error("{0}; try again")]
    TryAgain(String),

    /// (STATUS) The plugin cannot serve ADD now.
    #[error("not ready: {0}")]
    NotReady(String),

    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] podwire_kernel::Error),

    /// What should be created is there already.
    #[error("{0}")]
    Exists(String),

    /// Every address is taken, or a requested one cannot be had.
    #[error("{0}")]
    NoAddress(String),

    /// (CHECK) The container's network is not as ADD left it.
    #[error("the network of the container is not as it was set up: {0}")]
    NotAsSetUp(String),

    /// Another plugin failed, by its own account.
    #[error("plugin {plugin} failed: {}{}", report.msg, details(&report.details))]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// What it reported.
        report: ErrorReport,
    },

    /// Several things failed in a teardown that went on.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

/// An error as it crosses the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// The version that was asked for.
    #[serde(rename = "cniVersion", default, skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// Up to 99: the specification's; from 100: the plugin's own.
    pub code: u32,
    /// In a few words.
    pub msg: String,
    /// At length.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// The specification's code, or from 100 our own.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Unsupported { .. } => 2,
            Self::UnknownContainer(_) => 3,
            Self::Environment { .. } => 4,
            Self::Io { .. } => 5,
            Self::Decode { .. } => 6,
            Self::Config(_) => 7,
            Self::TryAgain(_) => 11,
            Self::NotReady(_) => 50,
            Self::Kernel(_) => 100,
            Self::Exists(_) => 101,
            Self::NoAddress(_) => 102,
            Self::NotAsSetUp(_) => 103,
            Self::Plugin { report, .. } => report.code,
            Self::Several(errors) => errors.first().map_or(100, Self::code),
        }
    }

    /// The error as the protocol wants it.
    pub fn report(&self, version: &str) -> ErrorReport {
        let (msg, details) = match self {
            Self::Plugin { report, .. } => (report.msg.clone(), report.details.clone()),
            other => (other.to_string(), String::new()),
        };
        ErrorReport { cni_version: version.to_owned(), code: self.code(), msg, details }
    }

    pub(crate) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        Self::Io { what: format!("{what} {}", path.display()), source }
    }

    pub(crate) fn decode(what: impl Into<String>, error: &serde_json::Error) -> Self {
        Self::Decode { what: what.into(), detail: error.to_string() }
    }

    pub(crate) fn version(asked: &str, detail: &str) -> Self {
        let known: Vec<&str> = Version::ALL.iter().map(|version| version.as_str()).collect();
        Self::Version { asked: asked.to_owned(), detail: format!("{detail}; served are {}", known.join(", ")) }
    }
}

/// Joins the results of a teardown that goes on after an error.
pub(crate) fn all(results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

fn details(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(": {details}") }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ")
}
