//! The CNI plugins, and the other side of the same protocol: a runtime that executes them.
//!
//! The plugins are one synchronous program, `podwire-cni`, that is called by the name of the plugin wanted. A call is a
//! value ([`Call`]: environment and standard input, checked), a plugin a function of it, so that one plugin calls
//! another ([`Call::delegate`]) without starting a process. Source of the rules: the CNI specification 1.1.0.

mod address;
mod call;
mod device;
mod elements;
mod error;
mod forward;
mod ipam;
mod mark;
mod masquerade;
mod owner;
mod pair;
pub mod plugin;
mod pod;
mod program;
mod result;
pub mod runtime;
#[cfg(test)]
mod test_support;
mod upper;
mod version;

pub use call::{Call, Verb};
pub use error::{Error, Result};
pub use plugin::PLUGINS;
pub use program::{Output, run};
pub use result::{CniResult, Dns, Interface, IpConfig, RouteConfig};
pub use version::Version;
