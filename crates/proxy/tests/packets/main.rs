//! Real packets through every mode: the packet table, and what clients see while Services change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod net;
mod rows;
mod updates;
