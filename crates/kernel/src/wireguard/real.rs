//! The kernel's own WireGuard.

use super::{Change, Device, Wireguard, wire};
use crate::{
    Error, Result,
    netlink::{Protocol, Socket},
    route::RouteSocket,
};

/// A generic netlink socket that knows the number of WireGuard's family.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    family: u16,
}

impl Connection {
    /// Opens the network namespace that the calling thread is in.
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::open(Protocol::Generic)?;
        let what = format_args!("find WireGuard in the kernel (is the module wireguard there?)");
        let family = socket.family(wire::FAMILY, what)?;
        Ok(Self { socket, family })
    }
}

impl Wireguard for RouteSocket {
    fn wireguard(&mut self, device: u32) -> Result<Device> {
        let Connection { socket, family } = self.wireguard_connection()?;
        let what = format_args!("read WireGuard device #{device}");
        let messages = socket.dump(*family, 0, &wire::get_device(device), what)?;
        Ok(wire::read_device(messages.iter().map(|message| message.payload)))
    }

    fn set_wireguard(&mut self, device: u32, changes: &[Change]) -> Result<()> {
        let Connection { socket, family } = self.wireguard_connection()?;
        let what = match changes {
            [] => return Ok(()),
            [only] => format!("change WireGuard device #{device}: {only}"),
            [first, others @ ..] => format!("change WireGuard device #{device}: {first} and {} more", others.len()),
        };
        for message in wire::set_device(device, changes) {
            socket.request(*family, 0, &message, format_args!("{what}")).map_err(explained)?;
        }
        Ok(())
    }
}

/// What the kernel means but does not say.
fn explained(error: Error) -> Error {
    match error {
        Error::Refused { what, errno: errno @ libc::EADDRINUSE, message: None } => {
            Error::Refused { what, errno, message: Some("something else listens on this UDP port".to_owned()) }
        }
        error => error,
    }
}
