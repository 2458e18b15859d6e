//! The userspace mode: its rules over fakes, its relay over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod real;
#[path = "../support/mod.rs"]
mod support;
mod tcp;
mod udp;
