//! TUN devices: IP packets between the kernel and a program, many of them as one.
//!
//! The device belongs to the kernel and outlives the program ([`create`], or [`crate::route::NewLinkKind::Tun`]); a program
//! that carries its packets attaches a [`Queue`] for each of its threads. With every packet goes an [`Offload`], which
//! says what was left undone: a checksum, or the cutting of a large packet into those that fit the MTU. See
//! `linux/if_tun.h`, `linux/virtio_net.h` and the kernel's `Documentation/networking/tuntap.rst`.

mod device;
mod offload;
#[cfg(test)]
mod tests;

pub use device::{Queue, create};
pub use offload::{Checksum, Offload, SegmentKind, Segments};
