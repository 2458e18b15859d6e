//! The ipvs mode over the strict fakes and, in the vm tier, over the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod disturbed;
mod golden;
mod real;
#[path = "../support/mod.rs"]
mod support;
mod table;
