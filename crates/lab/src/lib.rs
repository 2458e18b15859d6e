//! A multi-node cluster network on one machine: nodes and pods as namespaces, on an underlay that is a namespace too.

mod enter;
mod error;
mod init;
mod manifests;
pub mod node;
mod preflight;
mod progress;
mod ready;
pub mod rootfs;
pub mod state;
pub mod status;
pub mod topology;
pub mod underlay;

pub use error::{Error, Result};
