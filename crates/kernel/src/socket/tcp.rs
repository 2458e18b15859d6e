use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, ipproto, sockopt},
    pipe::{PipeFlags, SpliceFlags},
};

use crate::{Result, process::tried};

/// New connections that wait to be accepted; the kernel's own limit (`net.core.somaxconn`, 4096) is the smaller one.
const BACKLOG: i32 = 1 << 16;
/// Bytes of one copy at most: what a pipe could hold if its 16 pages were as large as pages of a socket can be.
const COPY: usize = 1 << 20;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpListener(OwnedFd);

impl TcpListener {
    /// Listens; port 0 lets the kernel choose one. Established connections of an earlier listener do not hinder it.
    ///
    /// # Errors
    /// `EADDRINUSE`: the port is taken; `EADDRNOTAVAIL`.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let bind = || {
            let socket = new_socket(&address, SocketType::STREAM)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if address.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            rustix::net::bind(&socket, &address)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(Self(socket))
        };
        bind().map_err(tried(format_args!("listen on TCP {address}")))
    }

    /// The port.
    ///
    /// # Errors
    /// None in practice.
    pub fn port(&self) -> Result<u16> {
        local_port(&self.0)
    }

    /// Takes a new connection and says whose it is.
    ///
    /// # Errors
    /// "Would block": there is none. `EMFILE`: too many open files, the connection still waits.
    pub fn accept(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        loop {
            match rustix::net::acceptfrom_with(&self.0, FLAGS) {
                // The client has gone again.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    return peer.map(|peer| (socket, peer)).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
            }
        }
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn new_socket(address: &SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = if kind == SocketType::STREAM { ipproto::TCP } else { ipproto::UDP };
    rustix::net::socket_with(family, kind, FLAGS, Some(protocol))
}

pub(super) fn local_port(socket: &OwnedFd) -> Result<u16> {
    let address = rustix::net::getsockname(socket).map_err(tried("ask a socket for its port"))?;
    Ok(SocketAddr::try_from(address).map_or(0, |address| address.port()))
}

/// Begins to connect: once the socket is writable, [`connect_outcome`] says how it went.
///
/// # Errors
/// It has failed already; `EMFILE`, `ENFILE`: too many open files.
pub fn begin_connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(&to, SocketType::STREAM)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether connecting succeeded.
///
/// # Errors
/// Why it did not.
pub fn connect_outcome(socket: impl AsFd) -> io::Result<()> {
    Ok(sockopt::socket_error(socket)??)
}

/// Sends small writes at once, and asks a silent peer after `idle` whether it is still there.
///
/// # Errors
/// None in practice.
pub fn set_keepalive(socket: impl AsFd, idle: Duration) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, idle)?;
    Ok(sockopt::set_socket_keepalive(socket, true)?)
}

/// Tells the peer that nothing more will be sent; it may go on sending.
///
/// # Errors
/// The connection is broken.
pub fn finish_sending(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}

/// Closes a connection so that the peer sees it broken (RST), not finished.
pub fn abort(socket: OwnedFd) {
    // It fails for what is no connection any more.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}

/// Where data on its way from one socket to another waits, without being copied into this program.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    /// Makes an empty one.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`: too many open files.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }
}

/// Moves what a socket has received into an empty pipe and says how many bytes; 0: the peer has finished sending.
///
/// # Errors
/// "Would block": nothing was received yet.
pub fn fill(from: impl AsFd, pipe: &Pipe) -> io::Result<usize> {
    splice(from.as_fd(), pipe.writer.as_fd(), COPY)
}

/// Moves at most `length` bytes, which a pipe holds, to a socket and says how many.
///
/// # Errors
/// "Would block": the socket has no room.
pub fn pour(pipe: &Pipe, length: usize, to: impl AsFd) -> io::Result<usize> {
    splice(pipe.reader.as_fd(), to.as_fd(), length)
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        match rustix::pipe::splice(from, None, to, None, length, flags) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}
