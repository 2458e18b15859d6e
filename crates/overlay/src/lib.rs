//! The overlay between nodes: what flanneld does, as values and pure functions with one reconciler.
//!
//! ```text
//! net-conf.json ─▶ config ─▶ backend ─┐
//! node annotations ─▶ lease ──────────┴▶ plan (links, addresses, neighbours, FDB, routes) ─▶ reconcile ─▶ kernel
//!                                      └▶ masquerade (nftables), subnet_env (for the CNI plugin)
//! ```
//!
//! A backend (`backend::BACKENDS`) says what the kernel should hold for this node and for one peer, and nothing else;
//! [`Overlay`] keeps the whole, compares it with what the kernel holds and applies the difference.

pub mod backend;
#[cfg(test)]
mod battery;
pub mod config;
mod error;
mod kernel;
pub mod lease;
pub mod masquerade;
pub mod plan;
mod reconcile;
pub mod subnet_env;
pub mod uplink;

pub use error::Error;
pub use plan::{Site, Uplink};
pub use reconcile::{Outcome, Overlay};
