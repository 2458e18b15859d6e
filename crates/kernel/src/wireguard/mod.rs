//! WireGuard devices by generic netlink: keys, peers and what each may send. No `wg` is executed.
//!
//! The device itself is a link ([`crate::route::NewLinkKind::Wireguard`]), so both belong to one network namespace:
//! [`RouteSocket`](crate::route::RouteSocket) and [`FakeRoute`](crate::route::FakeRoute) know the two. The numbers are
//! those of `linux/wireguard.h`. Secrets are never printed: their `Debug` hides them and they have no `Display`.
//!
//! ```no_run
//! use podwire_kernel::{
//!     route::{NewLink, NewLinkKind, Route, RouteSocket},
//!     wireguard::{Change, Peer, PrivateKey, PublicKey, Wireguard},
//! };
//!
//! # fn main() -> podwire_kernel::Result<()> {
//! let mut kernel = RouteSocket::open()?;
//! let link = kernel.create_link(&NewLink::new("flannel-wg", NewLinkKind::Wireguard))?;
//! let their_key: PublicKey = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".parse().unwrap();
//! let peer = Peer { endpoint: Some("172.25.2.2:51820".parse().unwrap()), ..Peer::new(their_key) };
//! kernel.set_wireguard(
//!     link.index,
//!     &[
//!         Change::PrivateKey(PrivateKey::generate()?),
//!         Change::ListenPort(51820),
//!         Change::Peer(peer),
//!         Change::Allow("10.244.1.0/24".parse().unwrap(), their_key),
//!     ],
//! )
//! # }
//! ```

mod fake;
mod key;
mod real;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use fake::FakeDevice;
pub use key::{NotAKey, PresharedKey, PrivateKey, PublicKey};
pub(crate) use real::Connection;
pub use types::{Change, Device, Peer};

use crate::Result;

/// The WireGuard devices of one network namespace, by the index of their link.
pub trait Wireguard: Send {
    /// The device with all of its peers, in the order of their keys.
    ///
    /// # Errors
    /// ENODEV for a missing link, EOPNOTSUPP for one of another kind, ENOENT when the kernel has no WireGuard.
    fn wireguard(&mut self, device: u32) -> Result<Device>;

    /// Makes changes, in order.
    ///
    /// # Errors
    /// As [`Wireguard::wireguard`]; EADDRINUSE for a port that something else listens on, while the device is up. Changes
    /// before the refused one may have been made.
    fn set_wireguard(&mut self, device: u32, changes: &[Change]) -> Result<()>;
}
