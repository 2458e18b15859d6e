use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use rustix::net::{SocketType, sockopt};

use super::tcp::{local_port, new_socket};
use crate::{Error, Result, process::tried};

/// How many datagrams one system call moves at most.
pub(super) const BATCH: usize = 32;
/// Room for one datagram: the largest that UDP can carry.
pub(super) const ROOM: usize = 1 << 16;
/// Room for the control message with the local address, aligned as `cmsghdr` wants it.
pub(super) const CONTROL: usize = 8;

/// The address of this machine that a datagram came to, and that an answer must come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalEnd {
    /// The address.
    pub address: IpAddr,
    /// The interface's number; counts for link-local addresses only.
    pub interface: u32,
}

/// Whether a port is one socket's or several's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Spread,
}

/// An unconnected UDP socket that serves many clients and knows which of its addresses each one used.
#[derive(Debug)]
pub struct UdpListener(OwnedFd);

impl UdpListener {
    /// Binds; port 0 lets the kernel choose one. An IPv6 socket takes IPv6 only.
    ///
    /// # Errors
    /// `EADDRINUSE`: the port is taken; `EADDRNOTAVAIL`.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        Self::bind_as(address, Sharing::Alone)
    }

    /// Binds a port that several sockets of this user share: the kernel spreads clients over them (`SO_REUSEPORT`). An IPv6
    /// socket for every address takes IPv4 as well, with mapped addresses.
    ///
    /// # Errors
    /// `EADDRINUSE`: another program has the port, or another user; `EADDRNOTAVAIL`.
    pub fn bind_shared(address: SocketAddr) -> Result<Self> {
        Self::bind_as(address, Sharing::Spread)
    }

    fn bind_as(address: SocketAddr, sharing: Sharing) -> Result<Self> {
        let what = format!("listen on UDP {address}");
        let bind = || {
            let socket = new_socket(&address, SocketType::DGRAM)?;
            if address.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, sharing == Sharing::Alone || !address.ip().is_unspecified())?;
            }
            if sharing == Sharing::Spread {
                sockopt::set_socket_reuseport(&socket, true)?;
            }
            // As much as the system allows without asking for more: a burst must wait here for its turn.
            let _ = sockopt::set_socket_recv_buffer_size(&socket, 1 << 20);
            rustix::net::bind(&socket, &address)?;
            Ok(socket)
        };
        let socket = bind().map_err(tried(&what))?;
        let (level, option) = if address.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_PKTINFO)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
        };
        let on: libc::c_int = 1;
        // SAFETY: the pointer is to a live c_int and the length is its size.
        #[allow(unsafe_code)]
        let result = unsafe {
            let size = mem::size_of_val(&on) as libc::socklen_t;
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size)
        };
        if result == 0 { Ok(Self(socket)) } else { Err(Error::last(what)) }
    }

    /// The port.
    ///
    /// # Errors
    /// None in practice.
    pub fn port(&self) -> Result<u16> {
        local_port(&self.0)
    }
}

impl AsFd for UdpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A UDP socket that talks to one peer: refusals of that peer are its errors.
#[derive(Debug)]
pub struct UdpFlow(OwnedFd);

impl UdpFlow {
    /// Makes one.
    ///
    /// # Errors
    /// There is no way to `to`; `EMFILE`, `ENFILE`: too many open files.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = new_socket(&to, SocketType::DGRAM)?;
        rustix::net::connect(&socket, &to)?;
        Ok(Self(socket))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// "Connection refused": the peer refused an earlier one, and this one was not sent. "Would block": no room.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        Ok(rustix::net::send(&self.0, bytes, rustix::net::SendFlags::empty()).map(drop)?)
    }
}

impl AsFd for UdpFlow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One datagram of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// What it carries.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub from: SocketAddr,
    /// Which of this machine's addresses it was sent to; unspecified for a [`UdpFlow`].
    pub to: LocalEnd,
}

/// A batch of datagrams: received by one system call, sent on by as few. Its memory is used as far as datagrams fill it.
#[derive(Debug)]
pub struct Datagrams {
    buffer: Vec<u8>,
    /// Of the buffer, for each datagram, bytes.
    room: usize,
    received: Vec<(usize, SocketAddr, LocalEnd)>,
}

impl Default for Datagrams {
    /// With room for the largest datagrams.
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

impl Datagrams {
    /// A batch with room for datagrams of up to `room` bytes; what is longer is cut.
    pub fn with_room(room: usize) -> Self {
        Self { buffer: vec![0; BATCH * room], room, received: Vec::with_capacity(BATCH) }
    }

    /// Replaces the batch by what waits at a socket (recvmmsg). Whether more may be waiting.
    ///
    /// # Errors
    /// "Would block": nothing waits. "Connection refused": the peer of a [`UdpFlow`] refused something.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<bool> {
        self.received.clear();
        let mut names = [empty_name(); BATCH];
        let mut controls = [[0_u64; CONTROL]; BATCH];
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| EMPTY_VECTOR);
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_header());
        let rooms = self.buffer.chunks_exact_mut(self.room);
        for ((((header, vector), name), control), room) in
            headers.iter_mut().zip(&mut vectors).zip(&mut names).zip(&mut controls).zip(rooms)
        {
            *vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: self.room };
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = mem::size_of_val(name) as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = mem::size_of_val(control);
        }
        // SAFETY: every header points to a name, a vector, a control buffer and a room of its own, all of the length
        // that it says and alive until after the call; the count is that of the headers.
        #[allow(unsafe_code)]
        let count = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::recvmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, flags, ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(&names).take(count) {
            let from = decode_name(name).unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
            self.received.push((header.msg_len as usize, from, local_end(&header.msg_hdr)));
        }
        Ok(count == BATCH)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.received.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let (length, from, to) = *self.received.get(index)?;
        let room = self.buffer.get(index * self.room..)?;
        Some(Datagram { bytes: room.get(..length)?, from, to })
    }

    /// Sends some of them on to the peer of a flow (sendmmsg); how many were sent.
    ///
    /// # Errors
    /// As [`UdpFlow::send`], when not even the first was sent.
    pub fn forward(&self, which: std::ops::Range<usize>, flow: &UdpFlow) -> io::Result<usize> {
        self.send(which, flow.0.as_fd(), None)
    }

    /// Sends all of them to a client, from the address that it knows (sendmmsg); how many were sent.
    ///
    /// # Errors
    /// "Would block": no room; when not even the first was sent.
    pub fn answer(&self, listener: &UdpListener, client: SocketAddr, from: LocalEnd) -> io::Result<usize> {
        self.send(0..self.len(), listener.0.as_fd(), Some((client, from)))
    }

    fn send(
        &self,
        which: std::ops::Range<usize>,
        socket: BorrowedFd<'_>,
        ends: Option<(SocketAddr, LocalEnd)>,
    ) -> io::Result<usize> {
        let mut name = empty_name();
        let mut control = [0_u64; CONTROL];
        let lengths = ends.map(|(client, from)| {
            let length = encode_name(client, &mut name);
            (length, encode_local_end(from, &mut control))
        });
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| EMPTY_VECTOR);
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_header());
        let mut count = 0;
        for ((header, vector), index) in headers.iter_mut().zip(&mut vectors).zip(which) {
            let Some(datagram) = self.get(index) else { break };
            // The kernel only reads what a sent vector points to.
            let base = datagram.bytes.as_ptr().cast_mut().cast();
            *vector = libc::iovec { iov_base: base, iov_len: datagram.bytes.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if let Some((name_length, control_length)) = lengths {
                header.msg_hdr.msg_name = (&raw mut name).cast();
                header.msg_hdr.msg_namelen = name_length;
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = control_length;
            }
            count += 1;
        }
        // SAFETY: the first `count` headers point to vectors, a name and a control buffer of the lengths that they say,
        // all alive until after the call, and the vectors to bytes of `self`, which the kernel only reads.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

pub(super) const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

pub(super) fn empty_header() -> libc::mmsghdr {
    // SAFETY: plain data, for which all zero is a header without anything.
    #[allow(unsafe_code)]
    unsafe {
        mem::zeroed()
    }
}

pub(super) fn empty_name() -> libc::sockaddr_storage {
    // SAFETY: plain data, for which all zero is an address of no family.
    #[allow(unsafe_code)]
    unsafe {
        mem::zeroed()
    }
}

fn decode_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = ptr::from_ref(name);
    // SAFETY: the storage is as large and aligned as every address type; the family says which one it holds.
    #[allow(unsafe_code)]
    unsafe {
        match libc::c_int::from(name.ss_family) {
            libc::AF_INET => {
                let v4 = &*pointer.cast::<libc::sockaddr_in>();
                let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::new(address.into(), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let v6 = &*pointer.cast::<libc::sockaddr_in6>();
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Writes an address and returns its length.
pub(super) fn encode_name(address: SocketAddr, name: &mut libc::sockaddr_storage) -> libc::socklen_t {
    let pointer = ptr::from_mut(name);
    // SAFETY: the storage is as large and aligned as every address type.
    #[allow(unsafe_code)]
    unsafe {
        match address {
            SocketAddr::V4(address) => {
                let v4 = &mut *pointer.cast::<libc::sockaddr_in>();
                v4.sin_family = libc::AF_INET as libc::sa_family_t;
                v4.sin_port = address.port().to_be();
                v4.sin_addr.s_addr = u32::from(*address.ip()).to_be();
                mem::size_of_val(v4) as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                let v6 = &mut *pointer.cast::<libc::sockaddr_in6>();
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = address.port().to_be();
                v6.sin6_addr.s6_addr = address.ip().octets();
                v6.sin6_scope_id = address.scope_id();
                mem::size_of_val(v6) as libc::socklen_t
            }
        }
    }
}

/// The local address from the control messages of a received header.
fn local_end(header: &libc::msghdr) -> LocalEnd {
    let nowhere = LocalEnd { address: Ipv4Addr::UNSPECIFIED.into(), interface: 0 };
    // SAFETY: the header is one that the kernel has filled, with a control buffer that is still alive; the macros stay
    // within it, and a message of this level and type holds this struct, perhaps not aligned.
    #[allow(unsafe_code)]
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            match (found.cmsg_level, found.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(libc::CMSG_DATA(message).cast::<libc::in_pktinfo>());
                    let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    return LocalEnd { address: address.into(), interface: info.ipi_ifindex.cast_unsigned() };
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>());
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    return LocalEnd { address: address.into(), interface: info.ipi6_ifindex };
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    nowhere
}

/// Writes the control message that sets the source address and returns the length of all of them.
pub(super) fn encode_local_end(from: LocalEnd, control: &mut [u64; CONTROL]) -> usize {
    match from.address {
        IpAddr::V4(address) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(address).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            encode_control(control, (libc::IPPROTO_IP, libc::IP_PKTINFO), info)
        }
        IpAddr::V6(address) => {
            let interface = if address.is_unicast_link_local() { from.interface } else { 0 };
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: interface };
            encode_control(control, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info)
        }
    }
}

pub(super) fn encode_control<T: Copy>(control: &mut [u64; CONTROL], (level, kind): (i32, i32), value: T) -> usize {
    let size = mem::size_of::<T>() as u32;
    // SAFETY: the buffer is aligned for a cmsghdr and, with 64 bytes, larger than a header and either of the two
    // structs of at most 20 bytes.
    #[allow(unsafe_code)]
    unsafe {
        let message = &mut *control.as_mut_ptr().cast::<libc::cmsghdr>();
        message.cmsg_level = level;
        message.cmsg_type = kind;
        message.cmsg_len = libc::CMSG_LEN(size) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), value);
        libc::CMSG_SPACE(size) as usize
    }
}
