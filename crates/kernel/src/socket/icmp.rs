use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use super::segments::set_option;
use crate::{Result, process::tried};

/// `ICMP_FILTER` of `linux/icmp.h`: which types of messages a raw socket does not want, a bit each.
const ICMP_FILTER: libc::c_int = 1;

/// Sends ICMP messages over IPv4, from the address that the route to the receiver prefers, as a router does.
#[derive(Debug)]
pub struct IcmpSender(OwnedFd);

impl IcmpSender {
    /// Opens one.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn open() -> Result<Self> {
        let open = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
            // Nothing is read from it, so that nothing should come.
            set_option(&socket, (libc::SOL_RAW, ICMP_FILTER), -1)?;
            Ok(socket)
        };
        open().map(Self).map_err(tried("open a socket to send ICMP messages"))
    }

    /// Sends a message, with its checksum but without an IP header.
    ///
    /// # Errors
    /// There is no way to `to`; "would block": no room.
    pub fn send(&self, to: Ipv4Addr, message: &[u8]) -> io::Result<()> {
        Ok(rustix::net::sendto(&self.0, message, SendFlags::empty(), &SocketAddrV4::new(to, 0)).map(drop)?)
    }
}
