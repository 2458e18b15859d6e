//! Rough treatment, the same for every mode: random sequences of events, killed proxies, programs that interfere, storms
//! of changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod driver;
mod interference;
mod killed;
#[path = "../packets/net.rs"]
#[allow(dead_code, reason = "made for the tests with real packets")]
mod net;
mod random_worlds;
mod sequences;
mod storm;
mod subjects;
