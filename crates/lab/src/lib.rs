//! A multi-node cluster network on one machine: nodes and pods as namespaces, on an underlay that is a namespace too.

mod error;
pub mod node;
pub mod rootfs;

pub use error::{Error, Result};
