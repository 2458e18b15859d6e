//! An embedded Kubernetes API: enough of kube-apiserver, in-process and in memory, for `kubectl`, client libraries and
//! the network agents of a lab.
//!
//! A request passes through these modules, in this order:
//!
//! - `http`: TLS connection → parsed path → one generic handler for each verb;
//! - [`kinds`]: the one table of what is served. A new kind is a new row;
//! - `registry`: the verbs on stored objects; with `patch`, `strict` and `admission` on the way of what is written;
//! - [`store`]: objects by key with one global revision, and their recent history for watches;
//! - `table`: what `kubectl get` prints.
//!
//! Pods' logs and commands are reached through [`remote::NodeProxy`]. Every authenticated caller may do everything:
//! there is no authorization.

mod admission;
mod auth;
mod bootstrap;
pub mod controllers;
mod http;
pub mod kinds;
mod object;
mod patch;
mod protobuf;
mod random;
mod registry;
pub mod remote;
mod selector;
mod server;
mod status;
pub mod store;
mod strict;
mod table;

pub use server::{Builder, Server};
pub use status::Status;

/// Why a server could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate could not be made.
    #[error("cannot make the API server's certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate was not accepted by the TLS library.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
    /// The service range has no address to give.
    #[error("the service range {0} is too small: it needs room for two addresses at least")]
    ServiceRange(ipnet::IpNet),
    /// Two service ranges, and not one of each family.
    #[error("the service ranges {0} and {1} are of the same family: expected one of IPv4 and one of IPv6")]
    ServiceRanges(ipnet::IpNet, ipnet::IpNet),
    /// A socket cannot be served on.
    #[error("cannot listen on the given socket: {0}")]
    Listen(std::io::Error),
    /// An object every cluster has could not be created.
    #[error("cannot create the cluster's first objects: {0}")]
    Bootstrap(Status),
}
