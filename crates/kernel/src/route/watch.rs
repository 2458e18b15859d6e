//! Telling what changes: somebody may delete or change by hand what a program relies on.

use std::time::{Duration, Instant};

use super::{
    types::{Address, FdbEntry, Link, Neighbour, RouteEntry},
    wire,
};
use crate::{
    Error, Result,
    netlink::{Message, Protocol, Socket},
};

/// Something that is no longer there, whoever removed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A link, by index, and all that hung on it: the kernel need not say so of each.
    Link(u32),
    /// A link, by index, is down: IPv4 routes that leave by it are gone without a word of each.
    LinkDown(u32),
    /// An address of an interface. With the last IPv4 address go the IPv4 routes, without a word of each.
    Address(Address),
    /// A route.
    Route(RouteEntry),
    /// A neighbour; its MAC address and state may be missing here.
    Neighbour(Neighbour),
    /// A forwarding entry.
    Fdb(FdbEntry),
    /// Notifications were lost: it may have been anything.
    Anything,
}

/// Something is different from before, whoever did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is gone.
    Removed(Removed),
    /// A link is new, or some property of it is; its kind's settings and those of its port may be missing here.
    Link(Link),
    /// An address is new, or some property of it is.
    Address(Address),
    /// A route is new, or stands in the place of another.
    Route(RouteEntry),
    /// A neighbour is new, or something is known of it that was not.
    Neighbour(Neighbour),
    /// A forwarding entry is new or different.
    Fdb(FdbEntry),
}

/// The groups in which routes, neighbours, forwarding entries, addresses and links are told of.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
];

/// All changes in one network namespace, this process's own among them.
#[derive(Debug)]
pub struct ChangeWatch(Socket);

impl ChangeWatch {
    /// Watches the network namespace that the calling thread is in, from now on.
    ///
    /// # Errors
    /// The kernel has no rtnetlink socket to give.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Route)?;
        GROUPS.iter().try_for_each(|group| socket.join(*group))?;
        Ok(Self(socket))
    }

    /// Waits for changes; there was none when the result is empty. Without a timeout it waits for ever, unless a signal
    /// comes. A link that is down is told of twice: as [`Change::Link`] and as [`Removed::LinkDown`].
    ///
    /// # Errors
    /// The kernel refused; lost notifications are no error but [`Removed::Anything`].
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Vec<Change>> {
        let begin = Instant::now();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
            let messages = match self.0.receive(left, format_args!("wait for changes of links and routes")) {
                Err(Error::Overrun { .. }) => return Ok(vec![Change::Removed(Removed::Anything)]),
                messages => messages?,
            };
            let changes: Vec<_> = messages.iter().flat_map(|message| changed(&message)).collect();
            if messages.is_empty() || !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

/// Whether addresses come or go in one network namespace.
#[derive(Debug)]
pub struct AddressWatch(Socket);

impl AddressWatch {
    /// Watches the network namespace that the calling thread is in, from now on.
    ///
    /// # Errors
    /// The kernel has no rtnetlink socket to give.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Route)?;
        for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR] {
            socket.join(group)?;
        }
        Ok(Self(socket))
    }

    /// Whether an address came or went, or a link went, since the last call; also when that may have been missed. Does not
    /// wait.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn touched(&mut self) -> Result<bool> {
        let mut touched = false;
        loop {
            match self.0.receive(Some(Duration::ZERO), format_args!("look for changes of addresses")) {
                Err(Error::Overrun { .. }) => touched = true,
                messages => {
                    let messages = messages?;
                    if messages.is_empty() {
                        return Ok(touched);
                    }
                    let kinds = [libc::RTM_NEWADDR, libc::RTM_DELADDR, libc::RTM_DELLINK];
                    touched |= messages.iter().any(|message| kinds.contains(&message.kind));
                }
            }
        }
    }
}

/// What a notification says is gone.
pub(super) fn removed(message: &Message<'_>) -> Option<Removed> {
    const UNSPEC: u8 = libc::AF_UNSPEC as u8;
    const BRIDGE: u8 = libc::AF_BRIDGE as u8;
    let payload = message.payload;
    match (message.kind, *payload.first()?) {
        // Family AF_BRIDGE says that a port left its bridge.
        (libc::RTM_DELLINK, UNSPEC) => wire::read_link(payload).map(|link| Removed::Link(link.index)),
        (libc::RTM_NEWLINK, UNSPEC) => {
            wire::read_link(payload).filter(|link| !link.up).map(|link| Removed::LinkDown(link.index))
        }
        (libc::RTM_DELADDR, _) => wire::read_address(payload).map(Removed::Address),
        (libc::RTM_DELROUTE, _) => wire::read_route(payload).map(Removed::Route),
        (libc::RTM_DELNEIGH, BRIDGE) => wire::read_fdb(payload).map(Removed::Fdb),
        (libc::RTM_DELNEIGH, _) => wire::read_neighbour(payload).map(Removed::Neighbour),
        _ => None,
    }
}

/// What a notification says is different.
pub(super) fn changed(message: &Message<'_>) -> impl Iterator<Item = Change> + use<> {
    let payload = message.payload;
    let bridge = payload.first() == Some(&(libc::AF_BRIDGE as u8));
    let new = match message.kind {
        // Family AF_BRIDGE tells of a port's settings.
        libc::RTM_NEWLINK if !bridge => wire::read_link(payload).map(Change::Link),
        libc::RTM_NEWADDR => wire::read_address(payload).map(Change::Address),
        libc::RTM_NEWROUTE => wire::read_route(payload).map(Change::Route),
        libc::RTM_NEWNEIGH if bridge => wire::read_fdb(payload).map(Change::Fdb),
        libc::RTM_NEWNEIGH => wire::read_neighbour(payload).map(Change::Neighbour),
        _ => None,
    };
    removed(message).map(Change::Removed).into_iter().chain(new)
}
