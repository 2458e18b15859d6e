//! Cluster DNS: a drop-in for CoreDNS as a Kubernetes cluster configures it.
//!
//! ```text
//! Services, EndpointSlices ──▶ view::View ──▶ plugin chain ──▶ server::Server
//!                              (state)        (Corefile)       (UDP, TCP, HTTP)
//! ```
//!
//! - [`view`]: the state of the cluster, indexed for lookups. A plain value.
//! - [`corefile`]: the parser of the configuration.
//! - [`program`]: a Corefile made ready to run, from the table of directives in [`plugin`].
//! - [`router`]: from a query to its server block, and through that block's plugins.
//! - [`message`]: DNS messages in and out, over `domain`.
//! - [`server`]: the sockets.
//!
//! Time and randomness come with each query ([`message::Arrival`]). Only [`server`], the plugins that talk to others
//! (`forward`, `loop`) and those that read files (`hosts`, `file`, `loadbalance`, always in the background) do IO; files that a
//! Corefile imports come from a [`corefile::Loader`].

pub mod cluster;
pub mod corefile;
pub mod message;
pub mod metrics;
pub mod plugin;
pub mod program;
pub mod random;
pub mod router;
pub mod server;
pub mod view;
mod zone_text;
