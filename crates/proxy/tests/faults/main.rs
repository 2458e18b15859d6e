//! Rough treatment, the same for every mode: random sequences of events, killed proxies, programs that interfere, storms
//! of changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../packets/client.rs"]
#[allow(dead_code, reason = "made for the tests with real packets")]
mod client;
mod driver;
mod interference;
mod killed;
#[path = "../packets/net.rs"]
#[allow(dead_code, reason = "made for the tests with real packets")]
mod net;
mod random_worlds;
#[path = "../packets/sctp.rs"]
mod sctp;
mod sequences;
#[path = "../packets/server.rs"]
mod server;
mod storm;
mod subjects;
#[path = "../support/mod.rs"]
mod support;
