//! A small synchronous netlink socket: the base of every typed module of this crate.
//!
//! The kernel handles a netlink request before `send` returns, so no runtime is needed: a request costs two system
//! calls. A socket belongs to the network namespace that its thread was in when it was opened, and stays there.
//!
//! ```no_run
//! use podwire_kernel::netlink::{Protocol, Socket, flags};
//! # fn main() -> podwire_kernel::Result<()> {
//! let mut socket = Socket::open(Protocol::Route)?;
//! let ifinfomsg = [0; 16];
//! for link in socket.dump(libc::RTM_GETLINK, 0, &ifinfomsg, format_args!("list links"))?.iter() {
//!     println!("{} bytes", link.payload.len());
//! }
//! # Ok(())
//! # }
//! ```

pub mod generic;
mod message;
mod socket;

#[cfg(test)]
mod tests;

pub use message::{Message, Messages, attributes, flags, push_attribute, push_message, u16_at, u32_at};
pub use socket::{Answer, Protocol, Refusal, Socket};
