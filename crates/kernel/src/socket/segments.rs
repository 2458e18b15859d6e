use std::{
    io::{self, IoSlice},
    mem,
    net::SocketAddrV4,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
};

use rustix::net::{SocketType, sockopt};

use super::{
    tcp::{local_port, new_socket},
    udp::{CONTROL, EMPTY_VECTOR, ROOM, empty_header, empty_name, encode_control, encode_name},
};
use crate::{Result, process::tried};

/// How many messages one system call sends at most.
const DEPARTURES: usize = 16;
/// How many messages one system call receives at most: as much as a processor's own cache has room for.
const ARRIVALS: usize = 6;
/// How many bytes may wait at a socket: a burst must find room while the program is busy with the one before.
const QUEUE: usize = 8 << 20;

/// A UDP socket over IPv4 for a tunnel: one message is up to 64 datagrams of one length to one peer, which the kernel or
/// the network card cuts (UDP_SEGMENT), and what comes in is put together the same way (UDP_GRO). See `udp(7)`.
#[derive(Debug)]
pub struct TunnelSocket(OwnedFd);

/// A message to send.
#[derive(Debug, Clone, Copy)]
pub struct Departure<'a> {
    /// Who gets it.
    pub to: SocketAddrV4,
    /// Each datagram has this many bytes, the last one perhaps less. Zero: the message is one datagram.
    pub segment: u16,
    /// What the message is together: at most 65,507 bytes and 64 segments, in at most 1,024 parts.
    pub parts: &'a [IoSlice<'a>],
}

impl TunnelSocket {
    /// The most datagrams that a message may have. Since Linux 6.9 it is twice as many.
    pub const SEGMENTS: usize = 64;
    /// The most bytes that a message may have.
    pub const BYTES: usize = 65_507;

    /// Binds; port 0 lets the kernel choose one. Several sockets of one user may have the same address: the kernel
    /// spreads over them by who sends.
    ///
    /// # Errors
    /// `EADDRINUSE`: another user's socket, or another program's that does not share, has the address;
    /// `EADDRNOTAVAIL`: it is not one of this machine; `ENOPROTOOPT` before Linux 5.0.
    pub fn bind(address: SocketAddrV4) -> Result<Self> {
        let bind = || {
            let socket = new_socket(&address.into(), SocketType::DGRAM)?;
            sockopt::set_socket_reuseport(&socket, true)?;
            // More than the system allows everyone; without the right to that, as much as it does.
            if sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
                sockopt::set_socket_recv_buffer_size(&socket, QUEUE)?;
                sockopt::set_socket_send_buffer_size(&socket, QUEUE)?;
            } else {
                set_option(&socket, (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE), QUEUE as libc::c_int)?;
            }
            set_option(&socket, (libc::SOL_UDP, libc::UDP_GRO), 1)?;
            rustix::net::bind(&socket, &address)?;
            Ok(socket)
        };
        bind().map(Self).map_err(tried(format_args!("listen on UDP {address}")))
    }

    /// The port.
    ///
    /// # Errors
    /// None in practice.
    pub fn port(&self) -> Result<u16> {
        local_port(&self.0)
    }

    /// Sends messages (sendmmsg) and says how many, from the first on. It waits while there is no room to send.
    ///
    /// # Errors
    /// The first was not sent: `EMSGSIZE` or `EINVAL`, a segment is larger than the path to the peer admits; `EIO`, the
    /// device cannot compute checksums, and cannot cut therefore; `ENETUNREACH`.
    pub fn send(&self, messages: &[Departure<'_>]) -> io::Result<usize> {
        let mut names = [empty_name(); DEPARTURES];
        let mut controls = [[0_u64; CONTROL]; DEPARTURES];
        let mut headers: [libc::mmsghdr; DEPARTURES] = std::array::from_fn(|_| empty_header());
        let mut count = 0;
        for (((header, name), control), message) in headers.iter_mut().zip(&mut names).zip(&mut controls).zip(messages)
        {
            let header = &mut header.msg_hdr;
            header.msg_namelen = encode_name(message.to.into(), name);
            header.msg_name = ptr::from_mut(name).cast();
            // An IoSlice is an iovec, and the kernel only reads what it points to.
            header.msg_iov = message.parts.as_ptr().cast_mut().cast();
            header.msg_iovlen = message.parts.len();
            if message.segment != 0 {
                header.msg_controllen = encode_control(control, (libc::SOL_UDP, libc::UDP_SEGMENT), message.segment);
                header.msg_control = control.as_mut_ptr().cast();
            }
            count += 1;
        }
        // SAFETY: the first `count` headers point to a name, a control buffer and vectors of the lengths that they say,
        // alive until after the call, and the vectors to bytes that are borrowed as long; the kernel only reads them.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl AsFd for TunnelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn set_option(
    socket: &OwnedFd,
    (level, name): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> rustix::io::Result<()> {
    // SAFETY: the pointer is to a live c_int and the length is its size.
    #[allow(unsafe_code)]
    let result = unsafe {
        let size = mem::size_of_val(&value) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    match result {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)),
    }
}

/// The messages that one system call has received, each of one or more datagrams.
#[derive(Debug)]
pub struct Arrivals {
    memory: Vec<u8>,
    /// Length of each message and of its datagrams.
    received: Vec<(usize, usize)>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { memory: vec![0; ARRIVALS * ROOM], received: Vec::with_capacity(ARRIVALS) }
    }
}

impl Arrivals {
    /// Replaces them by what waits at a socket (recvmmsg). Whether more may be waiting.
    ///
    /// # Errors
    /// "Would block": nothing waits.
    pub fn receive(&mut self, socket: &TunnelSocket) -> io::Result<bool> {
        self.received.clear();
        let mut controls = [[0_u64; CONTROL]; ARRIVALS];
        let mut vectors: [libc::iovec; ARRIVALS] = std::array::from_fn(|_| EMPTY_VECTOR);
        let mut headers: [libc::mmsghdr; ARRIVALS] = std::array::from_fn(|_| empty_header());
        let rooms = self.memory.chunks_exact_mut(ROOM);
        for (((header, vector), control), room) in headers.iter_mut().zip(&mut vectors).zip(&mut controls).zip(rooms) {
            *vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: ROOM };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = mem::size_of_val(control);
        }
        // SAFETY: every header points to a vector, a control buffer and a room of its own, all of the length that it
        // says and alive until after the call; the count is that of the headers.
        #[allow(unsafe_code)]
        let count = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::recvmmsg(socket.0.as_raw_fd(), headers.as_mut_ptr(), ARRIVALS as u32, flags, ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for header in headers.iter().take(count) {
            let length = header.msg_len as usize;
            self.received.push((length, segment_length(&header.msg_hdr).unwrap_or(length)));
        }
        Ok(count == ARRIVALS)
    }

    /// The memory that they are in, and where in it each datagram is, in the order in which they came.
    pub fn open(&mut self) -> (&mut [u8], impl Iterator<Item = Range<usize>> + '_) {
        let datagrams = self.received.iter().enumerate().flat_map(|(index, &(length, segment))| {
            let start = index * ROOM;
            let step = segment.max(1);
            (0..length).step_by(step).map(move |at| start + at..start + (at + step).min(length))
        });
        (&mut self.memory, datagrams)
    }
}

/// The length of the datagrams that the kernel has put together, where it has.
fn segment_length(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the header is one that the kernel has filled, with a control buffer that is still alive; the macros stay
    // within it, and a message of this level and type holds a c_int, perhaps not aligned.
    #[allow(unsafe_code)]
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let length = ptr::read_unaligned(libc::CMSG_DATA(message).cast::<libc::c_int>());
                return usize::try_from(length).ok().filter(|length| *length > 0);
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}
