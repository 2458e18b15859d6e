//! The ipvs mode over the strict fakes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod disturbed;
mod golden;
mod table;
