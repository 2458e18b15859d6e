//! The plan alone, without any mode: the packet table, what is wrong with objects, and the plan's invariants.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod details;
mod literal;
mod problems;
mod random;
mod rows;
