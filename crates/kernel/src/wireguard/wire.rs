//! WireGuard's generic netlink attributes and back. Pure; never panics on bytes from outside.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use podwire_model::IpNet;

use super::{Change, Device, Peer, PresharedKey, PrivateKey, PublicKey};
use crate::netlink::{attributes, generic, push_attribute, u16_at};

/// The family's name and version.
pub const FAMILY: &str = "wireguard";
pub const VERSION: u8 = 1;

/// Commands (`WG_CMD_*`).
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

/// Attributes of a device (`WGDEVICE_A_*`).
mod device {
    pub const INDEX: u16 = 1;
    pub const PRIVATE_KEY: u16 = 3;
    pub const PUBLIC_KEY: u16 = 4;
    pub const LISTEN_PORT: u16 = 6;
    pub const PEERS: u16 = 8;
}

/// Attributes of a peer (`WGPEER_A_*`).
mod peer {
    pub const PUBLIC_KEY: u16 = 1;
    pub const PRESHARED_KEY: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const ENDPOINT: u16 = 4;
    pub const KEEPALIVE: u16 = 5;
    pub const ALLOWED: u16 = 9;
    /// Flags (`WGPEER_F_*`).
    pub const REMOVE: u32 = 1;
    pub const UPDATE_ONLY: u32 = 4;
}

/// Attributes of an allowed range (`WGALLOWEDIP_A_*`).
mod allowed {
    pub const FAMILY: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const PREFIX: u16 = 3;
}

const NESTED: u16 = 0x8000;
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;
/// Bytes of peers in one message: the length of a nest has sixteen bits.
const ROOM: usize = 60 << 10;
/// A peer that is there for a moment only, within one message. Any 32 bytes are a public key; nobody has the private one.
const NOBODY: PublicKey = PublicKey(*b"podwire: this peer is soon gone.");

/// The request for a device (a dump: its peers may fill several messages).
pub fn get_device(index: u32) -> Vec<u8> {
    let mut message = generic::header(GET_DEVICE, VERSION);
    push_attribute(&mut message, device::INDEX, &index.to_ne_bytes());
    message
}

/// The changes as messages, in order: as few as their lengths allow.
pub fn set_device(index: u32, changes: &[Change]) -> Vec<Vec<u8>> {
    let mut packed = Packed { index, messages: Vec::new(), settings: Vec::new(), peers: Vec::new() };
    for change in changes {
        match change {
            Change::PrivateKey(key) => packed.setting(device::PRIVATE_KEY, key.bytes()),
            Change::ListenPort(port) => packed.setting(device::LISTEN_PORT, &port.to_ne_bytes()),
            Change::Peer(peer) => packed.peer(&[settings(peer)]),
            Change::RemovePeer(key) => packed.peer(&[removal(key)]),
            Change::Allow(range, key) => packed.peer(&[allowance(*range, key, peer::UPDATE_ONLY)]),
            // Kernels before 6.16 know no other way: give it to a new peer and remove that.
            Change::Disallow(range) => packed.peer(&[allowance(*range, &NOBODY, 0), removal(&NOBODY)]),
        }
    }
    packed.finish();
    packed.messages
}

/// Messages, the last of them still open.
struct Packed {
    index: u32,
    messages: Vec<Vec<u8>>,
    settings: Vec<u8>,
    peers: Vec<u8>,
}

impl Packed {
    fn setting(&mut self, kind: u16, value: &[u8]) {
        // Within a message the kernel takes the device's own settings first.
        if !self.peers.is_empty() {
            self.finish();
        }
        push_attribute(&mut self.settings, kind, value);
    }

    /// Adds peers that must be in one message.
    fn peer(&mut self, peers: &[Vec<u8>]) {
        if self.peers.len() + peers.iter().map(Vec::len).sum::<usize>() > ROOM {
            self.finish();
        }
        peers.iter().for_each(|attributes| push_attribute(&mut self.peers, NESTED, attributes));
    }

    fn finish(&mut self) {
        if self.settings.is_empty() && self.peers.is_empty() {
            return;
        }
        let mut message = generic::header(SET_DEVICE, VERSION);
        push_attribute(&mut message, device::INDEX, &self.index.to_ne_bytes());
        message.append(&mut self.settings);
        if !self.peers.is_empty() {
            push_attribute(&mut message, device::PEERS | NESTED, &self.peers);
            self.peers.clear();
        }
        self.messages.push(message);
    }
}

fn removal(key: &PublicKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    push_attribute(&mut out, peer::PUBLIC_KEY, &key.0);
    push_attribute(&mut out, peer::FLAGS, &peer::REMOVE.to_ne_bytes());
    out
}

fn settings(of: &Peer) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let shared = of.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::bytes);
    let keepalive = u16::try_from(of.keepalive.as_secs()).unwrap_or(u16::MAX);
    push_attribute(&mut out, peer::PUBLIC_KEY, &of.public_key.0);
    push_attribute(&mut out, peer::PRESHARED_KEY, shared);
    push_attribute(&mut out, peer::KEEPALIVE, &keepalive.to_ne_bytes());
    if let Some(endpoint) = of.endpoint {
        push_attribute(&mut out, peer::ENDPOINT, &sockaddr(endpoint));
    }
    out
}

fn allowance(range: IpNet, to: &PublicKey, flags: u32) -> Vec<u8> {
    let mut nest = Vec::with_capacity(44);
    push_attribute(&mut nest, NESTED, &range_attributes(range));
    let mut out = Vec::with_capacity(100);
    push_attribute(&mut out, peer::PUBLIC_KEY, &to.0);
    push_attribute(&mut out, peer::FLAGS, &flags.to_ne_bytes());
    push_attribute(&mut out, peer::ALLOWED | NESTED, &nest);
    out
}

fn range_attributes(range: IpNet) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    let mut push = |family: u16, octets: &[u8]| {
        push_attribute(&mut out, allowed::FAMILY, &family.to_ne_bytes());
        push_attribute(&mut out, allowed::ADDRESS, octets);
    };
    match range {
        IpNet::V4(net) => push(AF_INET, &net.addr().octets()),
        IpNet::V6(net) => push(AF_INET6, &net.addr().octets()),
    }
    push_attribute(&mut out, allowed::PREFIX, &[range.prefix_len()]);
    out
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(address) => {
            out.extend(AF_INET.to_ne_bytes());
            out.extend(address.port().to_be_bytes());
            out.extend(address.ip().octets());
            out.resize(16, 0);
        }
        SocketAddr::V6(address) => {
            out.extend(AF_INET6.to_ne_bytes());
            out.extend(address.port().to_be_bytes());
            out.extend(address.flowinfo().to_be_bytes());
            out.extend(address.ip().octets());
            out.extend(address.scope_id().to_ne_bytes());
        }
    }
    out
}

/// The device that the messages of one dump describe. The peers of a large one are spread over several, and so are the ranges
/// of a peer: a message then begins with the key of the peer that the last one ended with, and nothing else of it but ranges.
pub fn read_device<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> Device {
    let (mut found, mut peers) = (Device::default(), BTreeMap::new());
    for message in messages {
        for (kind, value) in attributes(generic::after_header(message)) {
            match kind {
                device::PRIVATE_KEY => found.private_key = value.try_into().ok().map(PrivateKey::from_bytes),
                device::PUBLIC_KEY => found.public_key = value.try_into().ok().map(PublicKey),
                device::LISTEN_PORT => found.listen_port = u16_at(value, 0).unwrap_or_default(),
                device::PEERS => {
                    attributes(value).for_each(|(_, value)| read_peer(value, &mut peers, &mut found.allowed));
                }
                _ => {}
            }
        }
    }
    found.peers = peers.into_values().collect();
    found
}

fn read_peer(bytes: &[u8], peers: &mut BTreeMap<PublicKey, Peer>, table: &mut BTreeMap<IpNet, PublicKey>) {
    let key = attributes(bytes).find(|(kind, _)| *kind == peer::PUBLIC_KEY);
    let Some(key) = key.and_then(|(_, value)| value.try_into().ok().map(PublicKey)) else { return };
    let found = peers.entry(key).or_insert_with(|| Peer::new(key));
    for (kind, value) in attributes(bytes) {
        match kind {
            peer::PRESHARED_KEY => found.preshared_key = value.try_into().ok().and_then(PresharedKey::from_bytes),
            peer::ENDPOINT => found.endpoint = read_sockaddr(value),
            peer::KEEPALIVE => found.keepalive = Duration::from_secs(u16_at(value, 0).unwrap_or_default().into()),
            peer::ALLOWED => {
                table.extend(attributes(value).filter_map(|(_, value)| Some((read_range(value)?, key))));
            }
            _ => {}
        }
    }
}

fn read_range(bytes: &[u8]) -> Option<IpNet> {
    let (mut address, mut prefix) = (None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            allowed::ADDRESS => address = read_ip(value),
            allowed::PREFIX => prefix = value.first().copied(),
            _ => {}
        }
    }
    IpNet::new(address?, prefix?).ok()
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        _ => bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
    }
}

fn read_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let address = match u16_at(bytes, 0)? {
        AF_INET => bytes.get(4..8)?,
        AF_INET6 => bytes.get(8..24)?,
        _ => return None,
    };
    Some(SocketAddr::new(read_ip(address)?, port))
}
