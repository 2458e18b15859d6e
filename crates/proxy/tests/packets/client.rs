//! What clients do and see.

use std::{
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use podwire_model::Protocol;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::sctp;

/// How long an answer may take before the packet counts as dropped.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How long a TCP connection may take. A refusal that comes while the socket is still busy sending its SYN counts only when
/// the SYN is sent again, a second later.
const TCP_PATIENCE: Duration = Duration::from_millis(1600);

/// What a client saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// This endpoint answered, and this is the source that it saw.
    Answer(SocketAddr, IpAddr),
    /// Connection refused.
    Refused,
    /// There is no way to it, or nobody there speaks the protocol.
    Unreachable,
    /// Nothing within [`PATIENCE`].
    Nothing,
}

impl Seen {
    /// The address of the endpoint that answered.
    pub fn endpoint(&self) -> Option<IpAddr> {
        match self {
            Self::Answer(endpoint, _) => Some(endpoint.ip()),
            _ => None,
        }
    }
}

/// One new connection from the calling thread's namespace and the address `from`.
pub fn connect(from: IpAddr, to: SocketAddr, protocol: Protocol) -> Seen {
    let answer = match protocol {
        Protocol::Tcp => tcp_client(from, to).and_then(|stream| {
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        }),
        Protocol::Udp => udp_client(from, to).and_then(|socket| ask(&socket)),
        Protocol::Sctp => sctp::ask(from, to),
    };
    match answer {
        Ok(line) => {
            let (endpoint, source) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{to}/{protocol}: {line:?}"));
            Seen::Answer(endpoint.parse().unwrap(), source.parse().unwrap())
        }
        Err(error) => seen(&error).unwrap_or_else(|| panic!("{to}/{protocol}: {error}")),
    }
}

fn seen(error: &io::Error) -> Option<Seen> {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    Some(match error.kind() {
        io::ErrorKind::ConnectionRefused => Seen::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Seen::Unreachable,
        // The machine itself answered, that it knows no SCTP.
        _ if is(Errno::NOPROTOOPT) || is(Errno::PROTO) => Seen::Unreachable,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Seen::Nothing,
        _ => return None,
    })
}

/// A TCP connection.
pub fn tcp_client(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let patience = Timespec::try_from(TCP_PATIENCE).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&patience))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::from(socket);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    // Whoever is connected gets an answer, however busy the machine is.
    stream.set_read_timeout(Some(5 * PATIENCE))?;
    Ok(stream)
}

/// A UDP socket that keeps its port.
pub fn udp_client(from: IpAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A packet that is refused on its sender's own machine fails to be sent, with EPERM; what is received next says why.
pub fn unless_refused_here<T>(sent: io::Result<T>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// One question and its answer.
pub fn ask(socket: &UdpSocket) -> io::Result<String> {
    unless_refused_here(socket.send(b"?"))?;
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
