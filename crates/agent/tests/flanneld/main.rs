//! flanneld on nodes against the embedded API server, over a real underlay: from Node objects to pods that talk.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../overlay/tests/common/mod.rs"]
mod common;
mod life;
mod switch;
mod trouble;
mod world;
