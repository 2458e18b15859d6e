//! Real packets through every mode: the packet table, and what clients see while Services change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod client;
mod net;
mod rows;
mod sctp;
mod server;
mod updates;
