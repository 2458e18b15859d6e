#![allow(unsafe_code)]

mod behind;

use std::{
    fmt::Arguments,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use super::message::{self, Message, Messages, attributes, flags, push_message, split, u32_at};
use crate::{Error, Result, ns::Namespace};

/// Room for one received datagram. The kernel makes dump parts of at most 32 KiB; a single object may be larger, as large as
/// an attribute can be. Less than what the C library asks the kernel for, and gives back, each time.
const RECEIVE_BUFFER: usize = 96 << 10;
/// What the kernel may queue for the socket before messages are lost.
const RECEIVE_QUEUE: libc::c_int = 8 << 20;
/// How long a request may stay unanswered. The kernel answers at once, or never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump that a concurrent change interrupted is begun again.
const DUMP_ATTEMPTS: usize = 16;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLMSG_NOOP: u16 = libc::NLMSG_NOOP as u16;

/// The netlink families that Podwire speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours (`NETLINK_ROUTE`).
    Route,
    /// nftables, conntrack, ipset (`NETLINK_NETFILTER`).
    Netfilter,
    /// Families that are looked up by name (`NETLINK_GENERIC`): IPVS, WireGuard.
    Generic,
}

impl Protocol {
    const fn number(self) -> libc::c_int {
        match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Netfilter => libc::NETLINK_NETFILTER,
            Self::Generic => libc::NETLINK_GENERIC,
        }
    }
}

/// One message of a batch that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The refused message's sequence number.
    pub sequence: u32,
    /// The positive error number.
    pub errno: i32,
    /// The kernel's explanation.
    pub message: Option<String>,
    /// Where in the refused message the offending attribute begins, in bytes from its header.
    pub offset: Option<u32>,
}

impl Refusal {
    /// The refusal as an error about `what`.
    pub fn into_error(self, what: Arguments<'_>) -> Error {
        Error::Refused { what: what.to_string(), errno: self.errno, message: self.message }
    }
}

/// Everything the kernel said to a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Sequence numbers of the acknowledged messages.
    pub acknowledged: Vec<u32>,
    /// The refused messages, in the kernel's order.
    pub refused: Vec<Refusal>,
    /// Messages that are neither: echoes and replies to GET.
    pub messages: Messages,
}

impl Answer {
    /// The answer, or the first refusal as an error about `what`.
    ///
    /// # Errors
    /// [`Error::Refused`] when any message was refused.
    pub fn into_result(mut self, what: Arguments<'_>) -> Result<Self> {
        if self.refused.is_empty() { Ok(self) } else { Err(self.refused.swap_remove(0).into_error(what)) }
    }
}

/// A netlink socket in the network namespace that the opening thread was in.
///
/// `what` arguments complete the sentence "cannot …" in errors; they are formatted only when there is one.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    send_queue: usize,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace, with extended acknowledgements.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel does not have the protocol.
    pub fn open(protocol: Protocol) -> Result<Self> {
        let what = format_args!("open a netlink socket");
        // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.number()) };
        if fd < 0 {
            return Err(Error::last(format_args!("{what} for {protocol:?}")));
        }
        // SAFETY: `fd` was just returned by the kernel and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, sequence: 0, send_queue: 0, buffer: vec![0; RECEIVE_BUFFER] };
        socket.bind()?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        socket.force_option(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_QUEUE)?;
        socket.receive_timeout(ANSWER_TIMEOUT)?;
        Ok(socket)
    }

    /// The network namespace that it belongs to, wherever the calling thread is.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn namespace(&self) -> Result<Namespace> {
        // SAFETY: SIOCGSKNS has no argument; the result is checked before it is owned.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGSKNS) };
        if fd < 0 {
            return Err(Error::last("open the namespace of a socket"));
        }
        // SAFETY: `fd` was just returned by the kernel and has no other owner.
        Ok(Namespace::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Subscribes to a multicast group (`RTNLGRP_*`, `NFNLGRP_*`). Use a socket of its own for this: notifications
    /// that arrive while a request is answered are dropped.
    ///
    /// # Errors
    /// [`Error::Io`] for an unknown group or a missing capability.
    pub fn join(&self, group: u32) -> Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as libc::c_int)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// [`Error::Io`] for an unknown group.
    pub fn leave(&self, group: u32) -> Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group as libc::c_int)
    }

    /// The socket's address: what notifications of changes that it asked for carry ([`Message::port`]).
    ///
    /// # Errors
    /// [`Error::Io`], which does not happen to an open socket.
    pub fn port(&self) -> Result<u32> {
        // SAFETY: sockaddr_nl is plain data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let result = unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if result < 0 { Err(Error::last("ask for a netlink socket's address")) } else { Ok(address.nl_pid) }
    }

    /// Has the kernel check the headers and attributes of dump requests, and filter dumps by them
    /// (`NETLINK_GET_STRICT_CHK`).
    ///
    /// # Errors
    /// [`Error::Io`] before Linux 4.20.
    pub fn check_strictly(&self) -> Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)
    }

    /// A sequence number that this socket has not used yet, for the messages of a batch. Never zero.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends one request and waits for its acknowledgement. Returns what was sent back before it: the object, for a
    /// GET or with [`flags::ECHO`]; nothing otherwise.
    ///
    /// # Errors
    /// [`Error::Refused`] with the kernel's explanation.
    pub fn request(&mut self, kind: u16, more: u16, payload: &[u8], what: Arguments<'_>) -> Result<Messages> {
        let sequence = self.next_sequence();
        self.send_one(kind, flags::REQUEST | flags::ACK | more, sequence, payload, what)?;
        self.collect(sequence, what).map(|(messages, _)| messages)
    }

    /// Reads every object of a kind. A dump that was interrupted by a change is begun again, so that the result is
    /// one state that did exist.
    ///
    /// # Errors
    /// [`Error::Refused`], or [`Error::Overrun`] when changes kept interrupting it.
    pub fn dump(&mut self, kind: u16, more: u16, payload: &[u8], what: Arguments<'_>) -> Result<Messages> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            self.send_one(kind, flags::REQUEST | flags::DUMP | more, sequence, payload, what)?;
            match self.collect(sequence, what) {
                Ok((messages, false)) => return Ok(messages),
                Ok((_, true)) => {}
                Err(error) if error.errno() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Overrun { what: what.to_string() })
    }

    /// Sends framed messages in one system call and collects all answers. The messages carry their own flags and
    /// sequence numbers (see [`Socket::next_sequence`], [`push_message`]); set [`flags::ACK`] on those whose success
    /// matters, errors are reported for any. Whatever was queued before is dropped.
    ///
    /// # Errors
    /// When the batch could not be sent, or answers were lost. Refused messages are part of the [`Answer`].
    pub fn batch(&mut self, batch: &[u8], what: Arguments<'_>) -> Result<Answer> {
        self.drain(what, |_| ())?;
        self.send(batch, what)?;
        let mut answer = Answer::default();
        self.drain(what, |datagram| {
            for message in split(datagram) {
                match message.kind {
                    NLMSG_NOOP | NLMSG_DONE => {}
                    NLMSG_ERROR => match refusal(&message) {
                        Some(refusal) => answer.refused.push(refusal),
                        None => answer.acknowledged.push(message.sequence),
                    },
                    kind => {
                        let Message { flags, sequence, payload, .. } = message;
                        push_message(&mut answer.messages.0, kind, flags, sequence, payload);
                    }
                }
            }
        })?;
        Ok(answer)
    }

    /// Waits for one datagram of notifications; nothing came in time when the result is empty. `None` waits for ever.
    ///
    /// # Errors
    /// [`Error::Overrun`] when notifications were lost: dump the state again, then go on.
    pub fn receive(&mut self, timeout: Option<Duration>, what: Arguments<'_>) -> Result<Messages> {
        let milliseconds =
            timeout.map_or(-1, |time| libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX));
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        match unsafe { libc::poll(&mut poll, 1, milliseconds) } {
            0 => return Ok(Messages::default()),
            ready if ready < 0 => {
                let error = Error::last(what);
                return if error.errno() == Some(libc::EINTR) { Ok(Messages::default()) } else { Err(error) };
            }
            _ => {}
        }
        let datagram = self.receive_datagram(libc::MSG_DONTWAIT, what)?;
        Ok(Messages(datagram.unwrap_or_default().to_vec()))
    }

    /// The messages that answer `sequence` up to its end, and whether the dump was interrupted.
    fn collect(&mut self, sequence: u32, what: Arguments<'_>) -> Result<(Messages, bool)> {
        let (mut messages, mut interrupted) = (Messages::default(), false);
        loop {
            let Some(datagram) = self.receive_datagram(0, what)? else {
                return Err(Error::refused(what, libc::ETIMEDOUT));
            };
            for message in split(datagram).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & flags::DUMP_INTERRUPTED != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match refusal(&message) {
                            Some(refusal) => Err(refusal.into_error(what)),
                            None => Ok((messages, interrupted)),
                        };
                    }
                    kind => push_message(&mut messages.0, kind, message.flags, sequence, message.payload),
                }
            }
        }
    }

    /// Hands every datagram that is queued to `each`, without waiting for more.
    fn drain(&mut self, what: Arguments<'_>, mut each: impl FnMut(&[u8])) -> Result<()> {
        while let Some(datagram) = self.receive_datagram(libc::MSG_DONTWAIT, what)? {
            each(datagram);
        }
        Ok(())
    }

    fn send_one(&mut self, kind: u16, flags: u16, sequence: u32, payload: &[u8], what: Arguments<'_>) -> Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 20);
        push_message(&mut bytes, kind, flags, sequence, payload);
        self.send(&bytes, what)
    }

    fn send(&mut self, bytes: &[u8], what: Arguments<'_>) -> Result<()> {
        self.reserve_send_queue(bytes.len())?;
        loop {
            // SAFETY: the pointer and the length describe `bytes`.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = Error::last(what);
            if error.errno() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }

    /// A datagram is taken whole or not at all (EMSGSIZE), so the send queue must have room for it.
    fn reserve_send_queue(&mut self, bytes: usize) -> Result<()> {
        const DEFAULT: usize = 64 << 10;
        if bytes > self.send_queue.max(DEFAULT) {
            let size = bytes.saturating_mul(2).min(libc::c_int::MAX as usize / 2);
            self.force_option(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, size as libc::c_int)?;
            self.send_queue = bytes;
        }
        Ok(())
    }

    /// One datagram; `None` when there is none in time.
    fn receive_datagram(&mut self, mode: libc::c_int, what: Arguments<'_>) -> Result<Option<&[u8]>> {
        let length = loop {
            let (pointer, room) = (self.buffer.as_mut_ptr().cast(), self.buffer.len());
            // SAFETY: the pointer and the length describe `self.buffer`, which is not otherwise borrowed.
            let length = unsafe { libc::recv(self.fd.as_raw_fd(), pointer, room, mode | libc::MSG_TRUNC) };
            if length >= 0 {
                break length as usize;
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::ENOBUFS) => return Err(Error::Overrun { what: what.to_string() }),
                _ => return Err(Error::last(what)),
            }
        };
        match self.buffer.get(..length) {
            Some(datagram) => Ok(Some(datagram)),
            None => Err(Error::malformed(what, format_args!("one datagram of {length} bytes"))),
        }
    }

    /// The network namespace that this socket belongs to, as an open file.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN there.
    pub fn netns(&self) -> Result<OwnedFd> {
        // SAFETY: SIOCGSKNS takes no argument and returns a new file descriptor, which nothing else owns.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCGSKNS) };
        if fd < 0 {
            return Err(Error::last("open the network namespace of a netlink socket"));
        }
        // SAFETY: as above.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: sockaddr_nl is plain data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        if result < 0 { Err(Error::last("bind a netlink socket")) } else { Ok(()) }
    }

    /// Sets a buffer size beyond the system's limit, or up to it without CAP_NET_ADMIN.
    fn force_option(&self, forced: libc::c_int, plain: libc::c_int, size: libc::c_int) -> Result<()> {
        self.option(libc::SOL_SOCKET, forced, size).or_else(|_| self.option(libc::SOL_SOCKET, plain, size))
    }

    fn receive_timeout(&self, timeout: Duration) -> Result<()> {
        let time = libc::timeval { tv_sec: timeout.as_secs() as _, tv_usec: timeout.subsec_micros() as _ };
        self.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, time)
    }

    fn option<T: Copy>(&self, level: libc::c_int, name: libc::c_int, value: T) -> Result<()> {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const value).cast(), length) };
        if result < 0 { Err(Error::last(format_args!("set netlink socket option {level}/{name}"))) } else { Ok(()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What an NLMSG_ERROR or NLMSG_DONE message says: `None` for success.
fn refusal(message: &Message<'_>) -> Option<Refusal> {
    const MESSAGE: u16 = 1;
    const OFFSET: u16 = 2;
    let payload = message.payload;
    let errno = -(u32_at(payload, 0).unwrap_or(0) as i32);
    if errno == 0 {
        return None;
    }
    // The request's header follows the number in an error; then its payload, unless that was left out.
    let mut explanation = 4;
    if message.kind == NLMSG_ERROR {
        let capped = message.flags & flags::CAPPED != 0;
        let request = if capped { 16 } else { u32_at(payload, 4).unwrap_or(16) as usize };
        explanation += message::align(request.min(payload.len()));
    }
    let mut refusal = Refusal { sequence: message.sequence, errno, message: None, offset: None };
    if message.kind == NLMSG_DONE || message.flags & flags::ACK_ATTRIBUTES != 0 {
        for (kind, value) in attributes(payload.get(explanation..).unwrap_or_default()) {
            match kind {
                MESSAGE => refusal.message = Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()),
                OFFSET => refusal.offset = u32_at(value, 0),
                _ => {}
            }
        }
    }
    Some(refusal)
}
