//! Rough treatment, the same for every mode: random sequences of events, killed proxies, programs that interfere.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod random_worlds;
mod sequences;
mod subjects;
