//! The overlay between nodes: what flanneld does, as values and pure functions with one reconciler.
//!
//! ```text
//! net-conf.json ─▶ config ─▶ backend ─┐
//! node annotations ─▶ lease ──────────┴▶ plan (links, addresses, neighbours, FDB, routes) ─▶ reconcile ─▶ kernel
//!                                      └▶ masquerade (nftables), subnet_env (for the CNI plugin)
//! ```
//!
//! A backend (`backend::BACKENDS`) says what should be there for this node and for one peer, and nothing else;
//! [`Overlay`] keeps the whole, compares it with what the kernel holds and applies the difference.
//!
//! # How an agent uses it
//!
//! One [`Overlay`] for each address family, one thread:
//!
//! 1. [`config::parse`] net-conf.json, [`uplink::choose`], fill a [`Site`]. If [`backend::Backend::prepare`] gives a
//!    command, run it and put what it prints into [`Site::prepared`]. [`Overlay::new`]; [`Overlay::hold`], so that a
//!    tunnel of another backend, from before a restart, stays for now.
//! 2. [`Overlay::set_peers`] with all leases, later [`Overlay::set_peer`] and [`Overlay::remove_peer`]. An error is about
//!    one peer, for the log; [`Error::OtherBackend`] is no alarm while the cluster's backend is being changed.
//! 3. [`Overlay::apply`], and again after a pause while it fails, or [`Outcome::errors`] is not empty. Each time: give
//!    [`Outcome::forwards`] to the forwarder, run [`Outcome::commands`], count [`Outcome::repaired`] by
//!    [`plan::Key::kind`], log [`Outcome::refused`]. If [`Overlay::forwarder`] names a TUN device, have a forwarder on it.
//! 4. Publish [`Overlay::lease`]. Some seconds later, when all peers will have seen it, [`Overlay::release`] and apply.
//! 5. Every [`Change`](podwire_kernel::route::Change) of a [`ChangeWatch`](podwire_kernel::route::ChangeWatch), which was
//!    opened before the first apply, goes into [`Overlay::changed`]: that is how what others delete or change is put
//!    right, and how paths to peers are decided again. [`Effect::work`]: apply. [`Effect::uplink`]: choose the uplink
//!    again; if it is another than in [`Overlay::site`], [`Overlay::relocate`], apply, publish, write subnet.env.
//! 6. Another backend in net-conf.json: [`Overlay::switch`], then as from 3. On stopping, run [`Overlay::farewell`].
//!
//! # How to add a backend
//!
//! A folder in `backend/` with a README, a line in `backend::BACKENDS`, and the entries it needs: a kind of device is a
//! [`plan::TunnelKind`], and what hangs on it a [`plan::Entry`] with its place in the order of [`plan::Key`]; `kernel.rs`
//! reads and writes both. What it needs of the kernel besides [`Route`](podwire_kernel::route::Route) becomes a supertrait
//! of [`Kernel`]. The battery takes its rows from the table.

mod adopt;
pub mod backend;
#[cfg(test)]
mod battery;
mod claims;
pub mod config;
mod error;
mod kernel;
pub mod lease;
pub mod masquerade;
pub mod plan;
mod reconcile;
mod script;
pub mod subnet_env;
pub mod uplink;

pub use error::Error;
pub use plan::{Site, Uplink};
pub use reconcile::{Effect, Kernel, Outcome, Overlay};
