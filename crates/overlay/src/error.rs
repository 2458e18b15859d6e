use std::{io, path::PathBuf};

/// What can go wrong between net-conf.json and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// net-conf.json is no JSON object.
    #[error("net-conf.json is not valid JSON: {0}")]
    Json(serde_json::Error),
    /// A field of net-conf.json cannot be used; the message names the field and says what is expected.
    #[error("net-conf.json: {field}: {problem}")]
    Config {
        /// Path of the field, for example `Backend.VNI`.
        field: String,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// The annotations or the spec of a node make no lease.
    #[error("node {node}: {problem}")]
    Lease {
        /// The node.
        node: String,
        /// What is wrong, with the annotation's key.
        problem: String,
    },
    /// A peer runs another backend, or the same one so configured that the two do not understand each other. It stays
    /// reachable as it was, if it was: during a change of the backend some nodes are sooner than others.
    #[error("node {node}: {problem}")]
    OtherBackend {
        /// The node.
        node: String,
        /// What it runs, and what this node does.
        problem: String,
    },
    /// This node's facts and the configuration contradict each other.
    #[error("{0}")]
    Site(String),
    /// A file could not be written.
    #[error("writing {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file with this node's WireGuard key.
    #[error("the node's WireGuard key in {path}: {source}", path = path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read or written, or that it holds no key.
        source: io::Error,
    },
    /// The kernel refused a dump or a device that everything else needs.
    #[error(transparent)]
    Kernel(#[from] podwire_kernel::Error),
}

impl Error {
    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }
}
