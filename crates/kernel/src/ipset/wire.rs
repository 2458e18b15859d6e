//! ipset's netlink attributes and back. Pure; never panics on bytes from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_model::{Family, IpNet, Protocol};

use super::types::{Element, Entry, Found, Kind, Set};
use crate::netlink::{attributes, push_attribute};

/// Commands (`IPSET_CMD_*`) below `NFNL_SUBSYS_IPSET`.
pub mod command {
    const SUBSYSTEM: u16 = 6 << 8;
    pub const CREATE: u16 = SUBSYSTEM | 2;
    pub const DESTROY: u16 = SUBSYSTEM | 3;
    pub const SWAP: u16 = SUBSYSTEM | 6;
    pub const LIST: u16 = SUBSYSTEM | 7;
    pub const ADD: u16 = SUBSYSTEM | 9;
    pub const DELETE: u16 = SUBSYSTEM | 10;
}

/// `IPSET_ATTR_*` of messages.
mod top {
    pub const PROTOCOL: u16 = 1;
    pub const SET_NAME: u16 = 2;
    /// Also the second name of a swap.
    pub const TYPE_NAME: u16 = 3;
    pub const REVISION: u16 = 4;
    pub const FAMILY: u16 = 5;
    pub const FLAGS: u16 = 6;
    pub const DATA: u16 = 7;
    pub const ADT: u16 = 8;
    pub const LINE: u16 = 9;
}

/// `IPSET_ATTR_*` inside DATA.
mod data {
    pub const IP: u16 = 1;
    pub const PORT: u16 = 4;
    pub const PORT_TO: u16 = 5;
    pub const PROTO: u16 = 7;
    pub const FLAGS: u16 = 8;
    pub const MAX_ELEMENTS: u16 = 19;
    pub const ELEMENTS: u16 = 24;
    pub const REFERENCES: u16 = 25;
    pub const IP2: u16 = 20;
    pub const CIDR2: u16 = 21;
    pub const SKBMARK: u16 = 27;
}

const NESTED: u16 = 0x8000;
/// `NLA_F_NET_BYTEORDER`: ipset insists on it.
const BIG_ENDIAN: u16 = 0x4000;
/// `IPSET_PROTOCOL_MIN`: what every kernel since 2.6.39 speaks.
const VERSION: u8 = 6;
/// `IPSET_FLAG_LIST_HEADER`.
const HEADERS_ONLY: u32 = 1 << 2;
/// `IPSET_FLAG_WITH_SKBINFO`.
const WITH_MARKS: u32 = 1 << 6;
/// How many entries a hash may grow to; it begins small.
const MAX_ELEMENTS: u32 = 1 << 20;
/// How long a nest of elements may get: its length has 16 bits.
const FULL: usize = 60_000;
const NFGENMSG: usize = 4;

/// The head of every message: `struct nfgenmsg`, the protocol's version, the set's name if any.
fn header(set: Option<&str>) -> Vec<u8> {
    let mut message = vec![libc::AF_INET as u8, 0, 0, 0];
    push_attribute(&mut message, top::PROTOCOL, &[VERSION]);
    if let Some(name) = set {
        push_text(&mut message, top::SET_NAME, name);
    }
    message
}

fn push_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    push_attribute(message, kind, format!("{text}\0").as_bytes());
}

fn push_u32(message: &mut Vec<u8>, kind: u16, number: u32) {
    push_attribute(message, kind | BIG_ENDIAN, &number.to_be_bytes());
}

fn push_address(message: &mut Vec<u8>, kind: u16, address: IpAddr) {
    let mut nest = Vec::with_capacity(20);
    match address {
        IpAddr::V4(address) => push_attribute(&mut nest, 1 | BIG_ENDIAN, &address.octets()),
        IpAddr::V6(address) => push_attribute(&mut nest, 2 | BIG_ENDIAN, &address.octets()),
    }
    push_attribute(message, kind | NESTED, &nest);
}

/// The request for every set's header.
pub fn list_headers() -> Vec<u8> {
    let mut message = header(None);
    push_u32(&mut message, top::FLAGS, HEADERS_ONLY);
    message
}

/// A request that says no more than which set: LIST, DESTROY.
pub fn named(set: &str) -> Vec<u8> {
    header(Some(set))
}

/// The request to swap two sets.
pub fn swap(one: &str, other: &str) -> Vec<u8> {
    let mut message = header(Some(one));
    push_text(&mut message, top::TYPE_NAME, other);
    message
}

/// The request to make a set.
pub fn create(set: &Set) -> Vec<u8> {
    let mut message = header(Some(&set.name));
    push_text(&mut message, top::TYPE_NAME, set.kind.name());
    push_attribute(&mut message, top::REVISION, &[set.kind.revision()]);
    let family = match set.family {
        None => libc::AF_UNSPEC,
        Some(Family::V4) => libc::AF_INET,
        Some(Family::V6) => libc::AF_INET6,
    };
    push_attribute(&mut message, top::FAMILY, &[family as u8]);
    let mut nest = Vec::new();
    match set.kind {
        Kind::BitmapPort => {
            push_attribute(&mut nest, data::PORT | BIG_ENDIAN, &0_u16.to_be_bytes());
            push_attribute(&mut nest, data::PORT_TO | BIG_ENDIAN, &u16::MAX.to_be_bytes());
        }
        _ => push_u32(&mut nest, data::MAX_ELEMENTS, MAX_ELEMENTS),
    }
    if set.marks {
        push_u32(&mut nest, data::FLAGS, WITH_MARKS);
    }
    push_attribute(&mut message, top::DATA | NESTED, &nest);
    message
}

/// The messages to add or remove elements: as few as there can be.
pub fn elements<'a>(set: &str, elements: impl Iterator<Item = &'a Element>) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut nest = Vec::new();
    let finish = |nest: &mut Vec<u8>| {
        let mut message = header(Some(set));
        push_attribute(&mut message, top::LINE, &0_u32.to_ne_bytes());
        push_attribute(&mut message, top::ADT | NESTED, nest);
        nest.clear();
        message
    };
    for element in elements {
        push_attribute(&mut nest, top::DATA | NESTED, &element_attributes(element));
        if nest.len() > FULL {
            messages.push(finish(&mut nest));
        }
    }
    if !nest.is_empty() {
        messages.push(finish(&mut nest));
    }
    messages
}

fn element_attributes(element: &Element) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let port = |out: &mut Vec<u8>, port: u16| push_attribute(out, data::PORT | BIG_ENDIAN, &port.to_be_bytes());
    match element.entry {
        Entry::Address(address) => push_address(&mut out, data::IP, address),
        Entry::Port(number) => port(&mut out, number),
        Entry::AddressPort(address, protocol, number) => {
            push_address(&mut out, data::IP, address);
            port(&mut out, number);
            push_attribute(&mut out, data::PROTO, &[protocol.number()]);
        }
        Entry::AddressPortNet(address, protocol, number, net) => {
            push_address(&mut out, data::IP, address);
            push_address(&mut out, data::IP2, net.addr());
            port(&mut out, number);
            push_attribute(&mut out, data::PROTO, &[protocol.number()]);
            if net.prefix_len() < net.max_prefix_len() {
                push_attribute(&mut out, data::CIDR2, &[net.prefix_len()]);
            }
        }
    }
    if let Some(mark) = element.mark {
        // The mark, then the mask of the bits that it sets.
        let both = u64::from(mark) << 32 | u64::from(u32::MAX);
        push_attribute(&mut out, data::SKBMARK | BIG_ENDIAN, &both.to_be_bytes());
    }
    out
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn be_u32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn address(nest: &[u8]) -> Option<IpAddr> {
    let (kind, value) = attributes(nest).next()?;
    match kind {
        1 => value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        2 => value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// A set's header as it is listed; `None` for kinds that are not known here.
pub fn found(payload: &[u8]) -> Option<Found> {
    let (mut name, mut kind, mut family, mut nest) = (String::new(), String::new(), 0, None);
    for (attribute, value) in attributes(payload.get(NFGENMSG..)?) {
        match attribute {
            top::SET_NAME => name = text(value),
            top::TYPE_NAME => kind = text(value),
            top::FAMILY => family = i32::from(*value.first()?),
            top::DATA => nest = Some(value),
            _ => {}
        }
    }
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
    let family = match family {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    };
    let (mut marks, mut entries, mut references) = (false, None, 0);
    for (attribute, value) in attributes(nest?) {
        match attribute {
            data::FLAGS => marks = be_u32(value)? & WITH_MARKS != 0,
            data::ELEMENTS => entries = be_u32(value),
            data::REFERENCES => references = be_u32(value)?,
            _ => {}
        }
    }
    Some(Found { set: Set { name: name.into(), kind, family, marks }, entries, references })
}

/// The elements in one message of a listing.
pub fn elements_of(payload: &[u8]) -> Vec<Element> {
    let body = payload.get(NFGENMSG..).unwrap_or_default();
    let lists = attributes(body).filter(|(kind, _)| *kind == top::ADT);
    let nests = lists.flat_map(|(_, list)| attributes(list)).filter(|(kind, _)| *kind == top::DATA);
    nests.filter_map(|(_, nest)| element(nest)).collect()
}

fn element(nest: &[u8]) -> Option<Element> {
    let (mut first, mut second, mut prefix, mut port, mut protocol, mut mark) = (None, None, None, None, None, None);
    for (kind, value) in attributes(nest) {
        match kind {
            data::IP => first = address(value),
            data::IP2 => second = address(value),
            data::CIDR2 => prefix = value.first().copied(),
            data::PORT => port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
            data::PROTO => protocol = value.first().copied(),
            data::SKBMARK => mark = be_u32(value).filter(|mark| *mark != 0),
            _ => {}
        }
    }
    let protocol = || {
        let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        known.into_iter().find(|known| Some(known.number()) == protocol)
    };
    let entry = match (first, second, port) {
        (Some(address), None, None) => Entry::Address(address),
        (Some(address), None, Some(port)) => Entry::AddressPort(address, protocol()?, port),
        (Some(address), Some(source), Some(port)) => {
            let net = match prefix {
                Some(prefix) => IpNet::new(source, prefix).ok()?,
                None => source.into(),
            };
            Entry::AddressPortNet(address, protocol()?, port, net)
        }
        (None, None, Some(port)) => Entry::Port(port),
        _ => return None,
    };
    Some(Element { entry, mark })
}
