//! The parts of Podwire assembled into the programs that run on a node.
//!
//! Each module is one program under the name of what it replaces. It is a thin shell: Kubernetes events go into a
//! pure crate, what comes out goes into the kernel or onto a socket.

pub mod cni_install;
pub mod dns;
pub mod flags;
pub mod flanneld;
pub mod kube_proxy;

mod daemon;
mod events;
mod file_watch;
mod http;
mod metrics;
mod update;
