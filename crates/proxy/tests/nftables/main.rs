//! The nftables mode over the strict fake and over the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod golden;
mod repair;
mod semantics;
mod table;
