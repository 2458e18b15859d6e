use std::{
    fmt::Arguments,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use super::{
    Address, Edit, FdbEntry, Link, LinkChange, Neighbour, NewLink, NewLinkKind, NextHop, PortVlans, Route, RouteEntry,
    RouteFilter, VfChange, VirtualFunction,
    watch::{Removed, removed},
    wire::{self, Body},
};
use crate::{
    Error, Result, ResultExt,
    netlink::{Message, Protocol, Socket, flags, push_message},
    ns::visit,
    tun, wireguard,
};

const ADD: u16 = flags::CREATE | flags::EXCLUSIVE;
const PUT: u16 = flags::CREATE | flags::REPLACE;

/// Messages in one send. Their answers must fit into the receive queue together.
const BATCH: usize = 1024;

/// [`Route`] of a network namespace of the running kernel.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
    /// WireGuard links are set up by another protocol: opened when the first one is.
    wireguard: Option<wireguard::Connection>,
}

impl RouteSocket {
    /// Opens the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// The kernel has no rtnetlink socket to give.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Route)?;
        socket.check_strictly()?;
        Ok(Self { socket, wireguard: None })
    }

    /// Opens another network namespace, given as an open file such as `/proc/PID/ns/net` or a
    /// [`crate::ns::Namespace`]. The calling thread stays where it is.
    ///
    /// # Errors
    /// The file is not a network namespace, or it may not be entered (CAP_SYS_ADMIN).
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        visit(netns, Self::open)
    }

    /// The connection to WireGuard in this network namespace.
    pub(crate) fn wireguard_connection(&mut self) -> Result<&mut wireguard::Connection> {
        let connection = match self.wireguard.take() {
            Some(connection) => connection,
            None => visit(self.socket.netns()?.as_fd(), wireguard::Connection::open)?,
        };
        Ok(self.wireguard.insert(connection))
    }

    fn list<T>(&mut self, kind: u16, body: &Body, read: fn(&[u8]) -> Option<T>, what: Arguments<'_>) -> Result<Vec<T>> {
        let messages = self.socket.dump(kind, 0, &body.0, what)?;
        Ok(messages.iter().filter_map(|message| read(message.payload)).collect())
    }

    fn tell(&mut self, kind: u16, flags: u16, body: &Body, what: Arguments<'_>) -> Result<()> {
        self.socket.request(kind, flags, &body.0, what).map(drop)
    }

    /// Frames messages for one send; returns the first's sequence number, which those of the others follow.
    fn framed(&mut self, messages: impl Iterator<Item = (u16, u16, Body)>) -> (u32, Vec<u8>) {
        let (mut first, mut bytes) = (None, Vec::new());
        for (kind, more, body) in messages {
            let sequence = self.socket.next_sequence();
            first.get_or_insert(sequence);
            push_message(&mut bytes, kind, flags::REQUEST | more, sequence, &body.0);
        }
        (first.unwrap_or_default(), bytes)
    }

    fn get_link(&mut self, body: &Body, what: Arguments<'_>) -> Result<Option<Link>> {
        match self.socket.request(libc::RTM_GETLINK, 0, &body.0, what) {
            Ok(messages) => Ok(messages.first().and_then(|message| wire::read_link(message.payload))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl RouteSocket {
    /// Creates a link in the network namespace `netns` (an open `/proc/PID/ns/net`): sooner than by moving it there, for
    /// which the kernel waits until nobody uses it. The device below, or the other end of a veth pair, is in this one.
    ///
    /// # Errors
    /// As [`Route::create_link`].
    pub fn create_link_in(&mut self, link: &NewLink<'_>, netns: BorrowedFd<'_>) -> Result<()> {
        self.new_link(link, Some(netns))
    }

    /// Deletes the link with this index (for a veth, both ends) and returns when it is gone: its name is free, its addresses,
    /// routes and neighbours are no more, its bridge has lost a port.
    ///
    /// [`Route::delete_link`] returns some 20 ms later. The kernel waits until no processor can be using the link's memory
    /// (`rcu_barrier` in `netdev_run_todo` of `net/core/dev.c`), after it has let go of the lock under which links
    /// change. Here a child process sits that out, see [`Socket::request_behind`]: for programs that end soon.
    ///
    /// # Errors
    /// As [`Route::delete_link`].
    pub fn delete_link_early(&mut self, index: u32) -> Result<()> {
        let body = wire::delete_link(index);
        let done = |message: &Message<'_>| removed(message) == Some(Removed::Link(index));
        let what = format_args!("delete link #{index}");
        match self.socket.request_behind((libc::RTM_DELLINK, &body.0), libc::RTNLGRP_LINK, done, what) {
            Err(error) if error.is_not_found() => Err(error),
            // No child, or no word of it: then in person.
            Err(_) => self.delete_link(index).or_gone(),
            Ok(()) => Ok(()),
        }
    }

    /// The virtual functions of the SR-IOV card whose physical function is the link with index `physical`, in the order of
    /// their numbers; none when it is no such link.
    ///
    /// # Errors
    /// ENODEV for a missing link.
    pub fn virtual_functions(&mut self, physical: u32) -> Result<Vec<VirtualFunction>> {
        let what = format_args!("look up the virtual functions of link #{physical}");
        let messages = self.socket.request(libc::RTM_GETLINK, 0, &wire::get_vfs(physical).0, what)?;
        Ok(messages.first().and_then(|message| wire::read_vfs(message.payload)).unwrap_or_default())
    }

    /// Makes `changes` to virtual function `id`, one after the other.
    ///
    /// # Errors
    /// ENODEV for a missing link; EINVAL for a missing function; EOPNOTSUPP for what the driver cannot set. Those before
    /// the one that failed have been made.
    pub fn change_virtual_function(&mut self, physical: u32, id: u32, changes: &[VfChange]) -> Result<()> {
        changes.iter().try_for_each(|change| {
            let what = format_args!("change virtual function {id} of link #{physical}: {change:?}");
            self.tell(libc::RTM_SETLINK, 0, &wire::change_vf(physical, id, change), what)
        })
    }

    fn new_link(&mut self, link: &NewLink<'_>, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let (kind, name) = (link.kind.name(), link.name);
        check_name(name)?;
        match &link.kind {
            NewLinkKind::Veth(peer) => check_name(peer.name)?,
            NewLinkKind::Tun => return self.new_tun(link, netns),
            _ => {}
        }
        self.tell(libc::RTM_NEWLINK, ADD, &wire::new_link(link, netns), format_args!("create {kind} {name}"))
    }
}

impl RouteSocket {
    /// The driver makes its devices only where the caller is, and netlink cannot ask for one.
    fn new_tun(&mut self, link: &NewLink<'_>, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let what = format_args!("create tun {}", link.name);
        if netns.is_some() {
            return Err(Error::invalid(what, "a tun is made where the socket is; open one in the other namespace"));
        }
        if link.mac.is_some() || link.master.is_some() {
            return Err(Error::refused(what, libc::EOPNOTSUPP));
        }
        self.socket.namespace()?.run(|| tun::create(link.name))?;
        let created = self.link(link.name)?.ok_or_else(|| Error::refused(what, libc::ENODEV))?;
        let mtu = link.mtu.map(LinkChange::Mtu);
        let changes: Vec<_> = mtu.into_iter().chain(link.up.then_some(LinkChange::Up(true))).collect();
        self.change_link(created.index, &changes).inspect_err(|_| {
            // A link is there as it was asked for, or not at all.
            let _ = self.delete_link(created.index);
        })
    }
}

impl Route for RouteSocket {
    fn links(&mut self) -> Result<Vec<Link>> {
        let body = wire::get_link(None, 0);
        self.list(libc::RTM_GETLINK, &body, wire::read_link, format_args!("list links"))
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        check_name(name)?;
        self.get_link(&wire::get_link(Some(name), 0), format_args!("look up link {name}"))
    }

    fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get_link(&wire::get_link(None, index), format_args!("look up link #{index}"))
    }

    fn create_link(&mut self, link: &NewLink<'_>) -> Result<Link> {
        self.new_link(link, None)?;
        let (kind, name) = (link.kind.name(), link.name);
        let created = self.link(name)?;
        created.ok_or_else(|| Error::refused(format_args!("find the new {kind} {name}"), libc::ENODEV))
    }

    fn change_link(&mut self, index: u32, changes: &[LinkChange<'_>]) -> Result<()> {
        for change in changes {
            if let LinkChange::Name(name) = change {
                check_name(name)?;
            }
        }
        let what = format_args!("change link #{index}: {changes:?}");
        if let Some(body) = wire::change_link(index, changes) {
            self.tell(libc::RTM_SETLINK, 0, &body, what)?;
        }
        if let Some(body) = wire::change_port(index, changes) {
            self.tell(libc::RTM_NEWLINK, 0, &body, what)?;
        }
        Ok(())
    }

    fn delete_link(&mut self, index: u32) -> Result<()> {
        self.tell(libc::RTM_DELLINK, 0, &wire::delete_link(index), format_args!("delete link #{index}"))
    }

    fn addresses(&mut self, device: Option<u32>) -> Result<Vec<Address>> {
        let body = wire::get_addresses(device);
        self.list(libc::RTM_GETADDR, &body, wire::read_address, format_args!("list addresses"))
    }

    fn add_address(&mut self, address: &Address) -> Result<()> {
        let Address { net, device, .. } = address;
        let what = format_args!("add address {net} to link #{device}");
        self.tell(libc::RTM_NEWADDR, ADD, &wire::address(address), what)
    }

    fn delete_address(&mut self, address: &Address) -> Result<()> {
        let Address { net, device, .. } = address;
        let what = format_args!("delete address {net} of link #{device}");
        self.tell(libc::RTM_DELADDR, 0, &wire::address(address), what)
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<RouteEntry>> {
        let body = wire::get_routes(filter);
        let routes = self.list(libc::RTM_GETROUTE, &body, wire::read_route, format_args!("list routes"));
        match routes {
            // A table that was never used does not exist.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(mut routes) => {
                routes.retain(|route| filter.admits(route));
                Ok(routes)
            }
        }
    }

    fn add_route(&mut self, route: &RouteEntry) -> Result<()> {
        self.tell(libc::RTM_NEWROUTE, ADD, &wire::route(route), format_args!("add route {route}"))
    }

    fn replace_route(&mut self, route: &RouteEntry) -> Result<()> {
        self.tell(libc::RTM_NEWROUTE, PUT, &wire::route(route), format_args!("set route {route}"))
    }

    fn delete_route(&mut self, route: &RouteEntry) -> Result<()> {
        self.tell(libc::RTM_DELROUTE, 0, &wire::route(route), format_args!("delete route {route}"))
    }

    fn neighbours(&mut self, device: Option<u32>) -> Result<Vec<Neighbour>> {
        let body = wire::get_neighbours(device);
        self.list(libc::RTM_GETNEIGH, &body, wire::read_neighbour, format_args!("list neighbours"))
    }

    fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let Neighbour { address, device, .. } = neighbour;
        let what = format_args!("set neighbour {address} on link #{device}");
        self.tell(libc::RTM_NEWNEIGH, PUT, &wire::neighbour(neighbour), what)
    }

    fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let Neighbour { address, device, .. } = neighbour;
        let what = format_args!("delete neighbour {address} on link #{device}");
        self.tell(libc::RTM_DELNEIGH, 0, &wire::neighbour(neighbour), what)
    }

    fn port_vlans(&mut self) -> Result<Vec<PortVlans>> {
        let body = wire::bridge::get_vlans();
        let ports = self.list(libc::RTM_GETLINK, &body, wire::bridge::read_vlans, format_args!("list VLANs"))?;
        Ok(ports.into_iter().flatten().collect())
    }

    fn add_port_vlans(&mut self, vlans: &PortVlans) -> Result<()> {
        let PortVlans { device, first, last, .. } = vlans;
        let what = format_args!("put link #{device} into VLANs {first} to {last}");
        self.tell(libc::RTM_SETLINK, 0, &wire::bridge::vlans(vlans), what)
    }

    fn delete_port_vlans(&mut self, vlans: &PortVlans) -> Result<()> {
        let PortVlans { device, first, last, .. } = vlans;
        let what = format_args!("take link #{device} out of VLANs {first} to {last}");
        self.tell(libc::RTM_DELLINK, 0, &wire::bridge::vlans(vlans), what)
    }

    fn fdb(&mut self, device: Option<u32>) -> Result<Vec<FdbEntry>> {
        let body = wire::get_fdb(device);
        self.list(libc::RTM_GETNEIGH, &body, wire::read_fdb, format_args!("list forwarding entries"))
    }

    fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let FdbEntry { mac, device, .. } = entry;
        let what = format_args!("set forwarding entry {mac} of link #{device}");
        self.tell(libc::RTM_NEWNEIGH, PUT, &wire::fdb(entry), what)
    }

    fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let FdbEntry { mac, device, .. } = entry;
        let what = format_args!("delete forwarding entry {mac} of link #{device}");
        self.tell(libc::RTM_DELNEIGH, 0, &wire::fdb(entry), what)
    }

    fn next_hops(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<NextHop>>> {
        let what = format_args!("look up routes");
        let mut found = Vec::with_capacity(addresses.len());
        for part in addresses.chunks(BATCH) {
            let questions = part.iter().map(|address| (libc::RTM_GETROUTE, 0, wire::get_route(*address)));
            let (first, bytes) = self.framed(questions);
            let answer = self.socket.batch(&bytes, what)?;
            let start = found.len();
            found.resize(start + part.len(), None);
            for message in answer.messages.iter() {
                let at = message.sequence.wrapping_sub(first) as usize;
                if let Some(place) = found.get_mut(start + at) {
                    *place = wire::read_next_hop(message.payload);
                }
            }
            let serious = |errno: i32| !matches!(errno, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES);
            if let Some(refusal) = answer.refused.into_iter().find(|refusal| serious(refusal.errno)) {
                return Err(refusal.into_error(what));
            }
        }
        Ok(found)
    }

    fn edit(&mut self, edits: &[Edit]) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        for (part, start) in edits.chunks(BATCH).zip((0..).step_by(BATCH)) {
            // Nobody asks for acknowledgements: by the time that the send returns, the kernel has told every refusal.
            let (first, bytes) = self.framed(part.iter().map(edit_message));
            let answer = self.socket.batch(&bytes, format_args!("change routes and neighbours"))?;
            for refusal in answer.refused {
                let at = refusal.sequence.wrapping_sub(first) as usize;
                if let Some(edit) = part.get(at) {
                    refused.push((start + at, refusal.into_error(format_args!("{edit}"))));
                }
            }
        }
        Ok(refused)
    }
}

fn edit_message(edit: &Edit) -> (u16, u16, Body) {
    match edit {
        Edit::AddAddress(address) => (libc::RTM_NEWADDR, ADD, wire::address(address)),
        Edit::DeleteAddress(address) => (libc::RTM_DELADDR, 0, wire::address(address)),
        Edit::ReplaceRoute(route) => (libc::RTM_NEWROUTE, PUT, wire::route(route)),
        Edit::DeleteRoute(route) => (libc::RTM_DELROUTE, 0, wire::route(route)),
        Edit::ReplaceNeighbour(neighbour) => (libc::RTM_NEWNEIGH, PUT, wire::neighbour(neighbour)),
        Edit::DeleteNeighbour(neighbour) => (libc::RTM_DELNEIGH, 0, wire::neighbour(neighbour)),
        Edit::ReplaceFdb(entry) => (libc::RTM_NEWNEIGH, PUT, wire::fdb(entry)),
        Edit::DeleteFdb(entry) => (libc::RTM_DELNEIGH, 0, wire::fdb(entry)),
    }
}

/// Refuses what cannot name a link, with a clearer word than the kernel's EINVAL. A `%` would be taken for a template.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
    if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || name.contains(bad) {
        let detail = "a link's name has 1 to 15 bytes without blanks, '/', ':' or '%'";
        return Err(Error::invalid(format_args!("use link name {name:?}"), detail));
    }
    Ok(())
}
