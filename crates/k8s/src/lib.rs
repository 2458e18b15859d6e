//! The only Kubernetes IO of Podwire, and the conversion of its objects into plain values.
//!
//! - [`Client`]: a connection to an API server, from the pod's service account or a kubeconfig.
//! - [`watch`]: an endless stream of [`Event`]s that begins with the complete state and heals itself.
//! - [`watch_checked`]: the same, started anew when it no longer tells what the API says.
//! - [`convert`]: pure functions from API objects to `podwire-model` values.
//!
//! [`kube`] and [`k8s_openapi`] are re-exported, so that every crate of Podwire uses the same version.

mod check;
mod client;
pub mod convert;
mod watch;

pub use check::{Checks, watch_checked};
pub use client::{Client, Error};
pub use k8s_openapi;
pub use kube;
pub use watch::{Event, watch, watch_as};
