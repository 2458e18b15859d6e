//! kube-proxy on a node against the embedded API server, over a real underlay: from API objects to connections.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../../overlay/tests/common/mod.rs"]
mod common;
mod life;
mod node;
mod relay;
mod switch;
