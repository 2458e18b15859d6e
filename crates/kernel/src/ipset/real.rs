//! The kernel's own sets.

use std::fmt::Arguments;

use super::{
    Ipset,
    types::{Element, Entry, Found, Set, errors},
    wire::{self, command},
};
use crate::{
    Error, Result,
    netlink::{Messages, Protocol, Socket, flags},
};

/// The sets of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
}

impl Kernel {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    fn request(&mut self, kind: u16, payload: &[u8], what: Arguments<'_>) -> Result<()> {
        self.socket.request(kind, 0, payload, what).map(drop).map_err(explained)
    }

    fn list(&mut self, payload: &[u8], what: Arguments<'_>) -> Result<Messages> {
        self.socket.dump(command::LIST, 0, payload, what).map_err(explained)
    }
}

/// Gives ipset's own error numbers the explanation that the kernel leaves out.
fn explained(mut error: Error) -> Error {
    if let Error::Refused { errno, message, .. } = &mut error
        && message.is_none()
    {
        *message = errors::explain(*errno).map(str::to_owned);
    }
    error
}

impl Ipset for Kernel {
    fn sets(&mut self) -> Result<Vec<Found>> {
        let listed = self.list(&wire::list_headers(), format_args!("list ipsets"))?;
        Ok(listed.iter().filter_map(|message| wire::found(message.payload)).collect())
    }

    fn entries(&mut self, set: &str) -> Result<Vec<Element>> {
        let listed = self.list(&wire::named(set), format_args!("list ipset {set}"))?;
        Ok(listed.iter().flat_map(|message| wire::elements_of(message.payload)).collect())
    }

    fn create(&mut self, set: &Set) -> Result<()> {
        let what = format_args!("create ipset {} of type {}", set.name, set.kind.name());
        self.request(command::CREATE, &wire::create(set), what)
    }

    fn destroy(&mut self, set: &str) -> Result<()> {
        let what = format_args!("destroy ipset {set}");
        // Newer kernels forgive a missing set without this flag, older ones do not.
        let destroyed = self.socket.request(command::DESTROY, flags::EXCLUSIVE, &wire::named(set), what);
        destroyed.map(drop).map_err(explained)
    }

    fn swap(&mut self, one: &str, other: &str) -> Result<()> {
        self.request(command::SWAP, &wire::swap(one, other), format_args!("swap ipsets {one} and {other}"))
    }

    fn add(&mut self, set: &str, elements: &[Element]) -> Result<()> {
        let what = format_args!("add {} entries to ipset {set}", elements.len());
        wire::elements(set, elements.iter()).iter().try_for_each(|message| self.request(command::ADD, message, what))
    }

    fn remove(&mut self, set: &str, entries: &[Entry]) -> Result<()> {
        let what = format_args!("remove {} entries from ipset {set}", entries.len());
        let elements: Vec<_> = entries.iter().copied().map(Element::new).collect();
        let messages = wire::elements(set, elements.iter());
        messages.iter().try_for_each(|message| self.request(command::DELETE, message, what))
    }
}
