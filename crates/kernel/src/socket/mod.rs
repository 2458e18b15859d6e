//! Sockets for a relay: an event loop's poll, TCP that is copied without passing through this program, UDP in
//! batches and in segments.
//!
//! Everything is non-blocking and belongs to the network namespace of the thread that makes it. What is called for every
//! packet returns a bare [`std::io::Error`]: "would block" is no news and must cost nothing.

mod answers;
mod icmp;
mod poll;
mod segments;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub use answers::Answers;
pub use icmp::IcmpSender;
pub use poll::{Interest, Poller, Ready, Waker};
pub use segments::{Arrivals, Departure, TunnelSocket};
pub use tcp::{Pipe, TcpListener, abort, begin_connect, connect_outcome, fill, finish_sending, pour, set_keepalive};
pub use udp::{Datagram, Datagrams, LocalEnd, UdpFlow, UdpListener};

use crate::{Result, process::tried};

/// Raises this process's limit of open files as far as it may, and returns what it is now.
///
/// # Errors
/// None in practice.
pub fn raise_open_files() -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).map_err(tried("raise the limit of open files"))?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
