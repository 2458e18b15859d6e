//! The values of [`super::types`] as rtnetlink messages and back.
//!
//! Decoding looks only at the attributes that the values hold: what a newer kernel, or a link of a kind that we have
//! never seen, adds to a dump cannot make it unreadable.

pub mod bridge;
mod link;
mod vf;

use std::net::IpAddr;

use podwire_model::{Family, IpNet};

pub use self::link::{change_link, change_port, delete_link, get_link, new_link, read_link};
pub use self::vf::{change_vf, get_vfs, read_vfs};
use super::types::{
    Address, FdbEntry, FdbTable, Mac, Neighbour, NeighbourState, NextHop, RouteEntry, RouteFilter, RouteKind,
    RouteProtocol, Scope, family,
};
use crate::netlink::{attributes, push_attribute, u16_at, u32_at};

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const ONLINK: u32 = 4;

/// A message body under construction: a fixed header, then attributes.
#[derive(Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn flag(&mut self, kind: u16, value: bool) -> &mut Self {
        self.attribute(kind, &[u8::from(value)])
    }

    fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.attribute(kind, &inner.0)
    }
}

/// RTM_GETADDR for every address, or those of one link.
pub fn get_addresses(device: Option<u32>) -> Body {
    let mut body = Body(vec![0; 4]);
    body.0.extend_from_slice(&device.unwrap_or(0).to_ne_bytes());
    body
}

/// RTM_NEWADDR or RTM_DELADDR.
pub fn address(address: &Address) -> Body {
    let net = address.net;
    let mut body = Body(vec![family_number(net), net.prefix_len(), 0, address.scope.number()]);
    body.0.extend_from_slice(&address.device.to_ne_bytes());
    body.ip(libc::IFA_LOCAL, net.addr());
    body.ip(libc::IFA_ADDRESS, net.addr());
    if let Some(broadcast) = address.broadcast {
        body.attribute(libc::IFA_BROADCAST, &broadcast.octets());
    }
    if address.no_dad && family(net) == Family::V6 {
        body.u32(libc::IFA_FLAGS, libc::IFA_F_NODAD);
    }
    body
}

/// RTM_NEWADDR as the kernel sends it; `None` for families other than IP.
pub fn read_address(payload: &[u8]) -> Option<Address> {
    let header = payload.first_chunk::<8>()?;
    let (mut local, mut remote, mut flags, mut broadcast) = (None, None, u32::from(header[2]), None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            // Where there is an IFA_LOCAL, IFA_ADDRESS is the other end of a point-to-point link.
            libc::IFA_LOCAL => local = read_ip(value),
            libc::IFA_ADDRESS => remote = read_ip(value),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            libc::IFA_BROADCAST => {
                broadcast = read_ip(value).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
            }
            _ => {}
        }
    }
    Some(Address {
        device: u32_at(header, 4)?,
        net: IpNet::new(local.or(remote)?, header[1]).ok()?,
        broadcast,
        scope: Scope::from_number(header[3]),
        no_dad: flags & libc::IFA_F_NODAD != 0,
        tentative: flags & libc::IFA_F_TENTATIVE != 0,
    })
}

/// RTM_GETROUTE for those that `filter` admits.
pub fn get_routes(filter: &RouteFilter) -> Body {
    let family = match filter.family {
        None => 0,
        Some(Family::V4) => AF_INET,
        Some(Family::V6) => AF_INET6,
    };
    let protocol = filter.protocol.map_or(0, |protocol| protocol.0);
    let mut body = Body(vec![family, 0, 0, 0, 0, protocol, 0, 0, 0, 0, 0, 0]);
    if let Some(table) = filter.table {
        body.u32(libc::RTA_TABLE, table);
    }
    if let Some(device) = filter.device {
        body.u32(libc::RTA_OIF, device);
    }
    body
}

/// RTM_GETROUTE for the route that packets to `address` would take.
pub fn get_route(address: IpAddr) -> Body {
    let host = IpNet::from(address);
    let mut body = Body(vec![family_number(host), host.prefix_len(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.ip(libc::RTA_DST, address);
    body
}

/// The answer to [`get_route`].
pub fn read_next_hop(payload: &[u8]) -> Option<NextHop> {
    let header = payload.first_chunk::<12>()?;
    unspecified(header[0])?;
    let (mut device, mut gateway) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_OIF => device = u32_at(value, 0),
            libc::RTA_GATEWAY => gateway = read_ip(value),
            libc::RTA_VIA => gateway = value.get(2..).and_then(read_ip),
            _ => {}
        }
    }
    Some(NextHop { kind: RouteKind::from_number(header[7]), device: device?, gateway })
}

/// RTM_NEWROUTE or RTM_DELROUTE.
pub fn route(route: &RouteEntry) -> Body {
    let destination = route.destination;
    let header = [
        family_number(destination),
        destination.prefix_len(),
        0,
        0,
        u8::try_from(route.table).unwrap_or(libc::RT_TABLE_UNSPEC),
        route.protocol.0,
        route.scope.number(),
        route.kind.number(),
    ];
    let mut body = Body(header.to_vec());
    body.0.extend_from_slice(&(if route.onlink { ONLINK } else { 0 }).to_ne_bytes());
    body.u32(libc::RTA_TABLE, route.table);
    if destination.prefix_len() > 0 {
        body.ip(libc::RTA_DST, destination.addr());
    }
    match (route.gateway, destination) {
        // An IPv4 destination behind an IPv6 router (RFC 8950).
        (Some(IpAddr::V6(gateway)), IpNet::V4(_)) => {
            let mut via = u16::from(AF_INET6).to_ne_bytes().to_vec();
            via.extend_from_slice(&gateway.octets());
            body.attribute(libc::RTA_VIA, &via);
        }
        (Some(gateway), _) => _ = body.ip(libc::RTA_GATEWAY, gateway),
        (None, _) => {}
    }
    if let Some(device) = route.device {
        body.u32(libc::RTA_OIF, device);
    }
    if let Some(source) = route.source {
        body.ip(libc::RTA_PREFSRC, source);
    }
    if route.metric != 0 {
        body.u32(libc::RTA_PRIORITY, route.metric);
    }
    body
}

/// RTM_NEWROUTE as the kernel sends it; `None` for families other than IP and for cached clones.
pub fn read_route(payload: &[u8]) -> Option<RouteEntry> {
    let header = payload.first_chunk::<12>()?;
    let flags = u32_at(header, 8)?;
    let unspecified = IpNet::new(unspecified(header[0])?, header[1]).ok()?;
    if flags & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let mut route = RouteEntry {
        destination: unspecified,
        gateway: None,
        device: None,
        onlink: flags & ONLINK != 0,
        kind: RouteKind::from_number(header[7]),
        scope: Scope::from_number(header[6]),
        protocol: RouteProtocol(header[5]),
        table: u32::from(header[4]),
        source: None,
        metric: 0,
    };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => route.destination = IpNet::new(read_ip(value)?, header[1]).ok()?,
            libc::RTA_GATEWAY => route.gateway = read_ip(value),
            libc::RTA_VIA => route.gateway = value.get(2..).and_then(read_ip),
            libc::RTA_OIF => route.device = u32_at(value, 0),
            libc::RTA_PREFSRC => route.source = read_ip(value),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            libc::RTA_TABLE => route.table = u32_at(value, 0)?,
            _ => {}
        }
    }
    if route.kind.drops() {
        // IPv6 hangs such routes on `lo`; IPv4 on nothing.
        route.device = None;
    }
    Some(route)
}

/// `struct ndmsg`.
fn neighbour_header(family: u8, device: u32, state: u16, flags: u8) -> Body {
    let mut body = Body(vec![family, 0, 0, 0]);
    body.0.extend_from_slice(&device.to_ne_bytes());
    body.0.extend_from_slice(&state.to_ne_bytes());
    body.0.extend_from_slice(&[flags, 0]);
    body
}

/// RTM_GETNEIGH for every neighbour, or those on one link.
pub fn get_neighbours(device: Option<u32>) -> Body {
    get_of_device(0, device)
}

/// RTM_GETNEIGH for every FDB entry, or those of one link.
pub fn get_fdb(device: Option<u32>) -> Body {
    get_of_device(AF_BRIDGE, device)
}

fn get_of_device(family: u8, device: Option<u32>) -> Body {
    let mut body = neighbour_header(family, 0, 0, 0);
    if let Some(device) = device {
        body.u32(libc::NDA_IFINDEX, device);
    }
    body
}

/// RTM_NEWNEIGH or RTM_DELNEIGH.
pub fn neighbour(neighbour: &Neighbour) -> Body {
    let family = family_number(neighbour.address.into());
    let mut body = neighbour_header(family, neighbour.device, neighbour.state.number(), 0);
    body.ip(libc::NDA_DST, neighbour.address);
    if let Some(Mac(octets)) = neighbour.mac {
        body.attribute(libc::NDA_LLADDR, &octets);
    }
    body
}

/// RTM_NEWNEIGH as the kernel sends it; `None` for proxy entries and families other than IP.
pub fn read_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let header = payload.first_chunk::<12>()?;
    unspecified(header[0])?;
    if header[10] & libc::NTF_PROXY != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => address = read_ip(value),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let state = NeighbourState::from_number(u16_at(header, 8)?);
    Some(Neighbour { device: u32_at(header, 4)?, address: address?, mac, state })
}

/// RTM_NEWNEIGH or RTM_DELNEIGH of family AF_BRIDGE.
pub fn fdb(entry: &FdbEntry) -> Body {
    let flags = match entry.table {
        FdbTable::Own => libc::NTF_SELF,
        FdbTable::Bridge => libc::NTF_MASTER,
    };
    let mut body = neighbour_header(AF_BRIDGE, entry.device, entry.state.number(), flags);
    body.attribute(libc::NDA_LLADDR, &entry.mac.0);
    if let Some(remote) = entry.remote {
        body.ip(libc::NDA_DST, remote);
    }
    body
}

/// RTM_NEWNEIGH of family AF_BRIDGE as the kernel sends it.
pub fn read_fdb(payload: &[u8]) -> Option<FdbEntry> {
    let header = payload.first_chunk::<12>()?;
    if header[0] != AF_BRIDGE {
        return None;
    }
    let (mut mac, mut remote) = (None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            libc::NDA_DST => remote = read_ip(value),
            _ => {}
        }
    }
    let table = if header[10] & libc::NTF_SELF != 0 { FdbTable::Own } else { FdbTable::Bridge };
    let state = NeighbourState::from_number(u16_at(header, 8)?);
    Some(FdbEntry { device: u32_at(header, 4)?, table, mac: mac?, remote, state })
}

fn family_number(net: IpNet) -> u8 {
    match family(net) {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        AF_INET6 => Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        _ => None,
    }
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn read_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn read_flag(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|byte| *byte != 0)
}
