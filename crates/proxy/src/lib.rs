//! The Service proxy: from Services, EndpointSlices and the Node to what the kernel does with a packet.
//!
//! ```text
//! events ─▶ track (state) ─▶ plan (pure; every policy decided once) ─▶ routes (who gets what) ─▶ mode (renders and applies)
//! ```
//!
//! [`Tracker`] keeps the current objects and plans the Services that changed. A [`mode`] spells a plan in one of the
//! kernel's languages. Nothing here reads a clock or a socket: a mode reaches the kernel by a trait of
//! `podwire-kernel`.

mod endpoints;
mod error;
pub mod mode;
pub mod plan;
mod problems;
mod routes;
mod select;
mod track;

pub use error::{Error, Result};
pub use routes::{Changes, Collision};
pub use track::Tracker;
