//! The iptables mode over the strict fake and over the kernel, with both kinds of iptables.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod golden;
mod table;
