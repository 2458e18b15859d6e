//! The only access to the kernel: netlink, sysctls, namespaces.
//!
//! Each module is a trait, the real thing, and a strict fake that refuses what the kernel refuses. Nothing here runs
//! another program, but for [`iptables`], and nothing needs an async runtime: the kernel answers a netlink request before `send` returns.

pub mod conntrack;
mod error;
pub mod ethtool;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod mount;
pub mod netlink;
pub mod nftables;
pub mod ns;
pub mod path;
pub mod pci;
pub mod process;
pub mod route;
pub mod socket;
pub mod sysctl;
pub mod tc;
#[cfg(test)]
mod test_support;
pub mod tun;
pub mod wireguard;

pub use error::{Error, Result, ResultExt};

/// The 64-bit FNV-1a hash, for names, addresses and marks of kernel objects that a later run must find again: unlike the
/// standard library's it is the same in every build.
pub fn stable_hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
