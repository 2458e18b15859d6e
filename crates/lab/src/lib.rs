//! A multi-node cluster network on one machine: nodes and pods as namespaces, on an underlay that is a namespace too.

pub mod backend;
pub mod cli;
pub mod container;
mod control_plane;
mod dns_relay;
mod enter;
mod enter_pod;
mod error;
mod init;
pub mod kubelet;
mod launch;
mod manifests;
pub mod myapp;
pub mod node;
mod preflight;
mod progress;
mod ready;
pub mod rootfs;
pub mod state;
pub mod status;
mod supervisor;
pub mod topology;
pub mod underlay;

pub use error::{Error, Result};
