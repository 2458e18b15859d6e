//! The only access to the kernel: netlink, sysctls, namespaces.
//!
//! Each module is a trait, the real thing, and a strict fake that refuses what the kernel refuses. Nothing here runs
//! another program and nothing needs an async runtime: the kernel answers a netlink request before `send` returns.

pub mod conntrack;
mod error;
pub mod mount;
pub mod netlink;
pub mod nftables;
pub mod ns;
pub mod process;
pub mod route;
pub mod sysctl;
#[cfg(test)]
mod test_support;

pub use error::{Error, Result, ResultExt};
