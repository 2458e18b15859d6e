//! IPVS's generic netlink attributes and back. Pure; never panics on bytes from outside.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use podwire_model::{Family, Protocol};

use super::types::{Change, Connections, Destination, Found, Info, Persistence, Service, ServiceKey, Timeouts, flags};
use crate::netlink::{attributes, generic::header, push_attribute, u16_at, u32_at};

/// Commands (`IPVS_CMD_*`).
pub mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const SET_SERVICE: u8 = 2;
    pub const DELETE_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DESTINATION: u8 = 5;
    pub const SET_DESTINATION: u8 = 6;
    pub const DELETE_DESTINATION: u8 = 7;
    pub const GET_DESTINATION: u8 = 8;
    pub const SET_CONFIG: u8 = 12;
    pub const GET_CONFIG: u8 = 13;
    pub const GET_INFO: u8 = 15;
}

/// Attributes of commands (`IPVS_CMD_ATTR_*`, `IPVS_INFO_ATTR_*`).
mod top {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
    pub const INFO_VERSION: u16 = 1;
    pub const INFO_TABLE_SIZE: u16 = 2;
}

/// Attributes of a service (`IPVS_SVC_ATTR_*`).
mod svc {
    pub const AF: u16 = 1;
    pub const PROTOCOL: u16 = 2;
    pub const ADDR: u16 = 3;
    pub const PORT: u16 = 4;
    pub const FWMARK: u16 = 5;
    pub const SCHED_NAME: u16 = 6;
    pub const FLAGS: u16 = 7;
    pub const TIMEOUT: u16 = 8;
    pub const NETMASK: u16 = 9;
}

/// Attributes of a destination (`IPVS_DEST_ATTR_*`).
mod dest {
    pub const ADDR: u16 = 1;
    pub const PORT: u16 = 2;
    pub const METHOD: u16 = 3;
    pub const WEIGHT: u16 = 4;
    pub const UPPER_THRESHOLD: u16 = 5;
    pub const LOWER_THRESHOLD: u16 = 6;
    pub const ACTIVE: u16 = 7;
    pub const INACTIVE: u16 = 8;
    pub const PERSISTENT: u16 = 9;
    pub const AF: u16 = 11;
}

const NESTED: u16 = 0x8000;
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x1;
/// The bits of `IP_VS_SVC_F_*` that [`Service::flags`] holds.
const KEPT_FLAGS: u32 = flags::SCHEDULER_1 | flags::SCHEDULER_2 | 0x20;
/// `IP_VS_CONN_F_FWD_MASK`.
const METHOD_MASK: u32 = 0x7;

/// A change as a message: its command and what follows the header.
pub fn encode(change: &Change) -> Vec<u8> {
    let (command, key) = match change {
        Change::AddService(service) => (command::NEW_SERVICE, &service.key),
        Change::SetService(service) => (command::SET_SERVICE, &service.key),
        Change::DeleteService(key) => (command::DELETE_SERVICE, key),
        Change::AddDestination(key, _) => (command::NEW_DESTINATION, key),
        Change::SetDestination(key, _) => (command::SET_DESTINATION, key),
        Change::DeleteDestination(key, _) => (command::DELETE_DESTINATION, key),
    };
    let mut service = key_attributes(key);
    if let Change::AddService(new) | Change::SetService(new) = change {
        push_settings(&mut service, new);
    }
    let mut message = header(command, 1);
    push_attribute(&mut message, top::SERVICE | NESTED, &service);
    match change {
        Change::AddDestination(_, to) | Change::SetDestination(_, to) => {
            push_attribute(&mut message, top::DESTINATION | NESTED, &destination_attributes(to));
        }
        Change::DeleteDestination(_, to) => {
            push_attribute(&mut message, top::DESTINATION | NESTED, &destination_attributes(&Destination::new(*to, 0)));
        }
        Change::AddService(_) | Change::SetService(_) | Change::DeleteService(_) => {}
    }
    message
}

/// The request for the destinations of a service.
pub fn get_destinations(key: &ServiceKey) -> Vec<u8> {
    let mut message = header(command::GET_DESTINATION, 1);
    push_attribute(&mut message, top::SERVICE | NESTED, &key_attributes(key));
    message
}

/// The request that sets timeouts; zeroes are left as they are.
pub fn set_timeouts(timeouts: &Timeouts) -> Vec<u8> {
    let mut message = header(command::SET_CONFIG, 1);
    for (kind, time) in
        [(top::TIMEOUT_TCP, timeouts.tcp), (top::TIMEOUT_TCP_FIN, timeouts.tcp_fin), (top::TIMEOUT_UDP, timeouts.udp)]
    {
        if !time.is_zero() {
            push_attribute(&mut message, kind, &seconds(time).to_ne_bytes());
        }
    }
    message
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => libc::AF_INET as u16,
        Family::V6 => libc::AF_INET6 as u16,
    }
}

/// `union nf_inet_addr`: sixteen bytes in any case.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    bytes
}

fn address_from(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        Family::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
    })
}

fn key_attributes(key: &ServiceKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    push_attribute(&mut out, svc::AF, &family_number(key.family()).to_ne_bytes());
    match key {
        ServiceKey::Address(protocol, address) => {
            push_attribute(&mut out, svc::PROTOCOL, &u16::from(protocol.number()).to_ne_bytes());
            push_attribute(&mut out, svc::ADDR, &address_bytes(address.ip()));
            push_attribute(&mut out, svc::PORT, &address.port().to_be_bytes());
        }
        ServiceKey::Mark(_, mark) => push_attribute(&mut out, svc::FWMARK, &mark.to_ne_bytes()),
    }
    out
}

fn push_settings(out: &mut Vec<u8>, service: &Service) {
    push_attribute(out, svc::SCHED_NAME, format!("{}\0", service.scheduler).as_bytes());
    let on = service.flags & KEPT_FLAGS | if service.persistence.is_some() { PERSISTENT } else { 0 };
    let mut bits = on.to_ne_bytes().to_vec();
    bits.extend_from_slice(&u32::MAX.to_ne_bytes());
    push_attribute(out, svc::FLAGS, &bits);
    let (timeout, prefix) = service.persistence.map_or((0, None), |p| (seconds(p.timeout), Some(p.prefix)));
    push_attribute(out, svc::TIMEOUT, &timeout.to_ne_bytes());
    // IPv4: a mask in network order; IPv6: a length in the machine's.
    match service.key.family() {
        Family::V4 => {
            let prefix = u32::from(prefix.unwrap_or(32).min(32));
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            push_attribute(out, svc::NETMASK, &mask.to_be_bytes());
        }
        Family::V6 => push_attribute(out, svc::NETMASK, &u32::from(prefix.unwrap_or(128)).to_ne_bytes()),
    }
}

fn destination_attributes(to: &Destination) -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    push_attribute(&mut out, dest::ADDR, &address_bytes(to.address.ip()));
    push_attribute(&mut out, dest::PORT, &to.address.port().to_be_bytes());
    for (kind, value) in [
        (dest::METHOD, to.method),
        (dest::WEIGHT, to.weight),
        (dest::UPPER_THRESHOLD, to.upper_threshold),
        (dest::LOWER_THRESHOLD, to.lower_threshold),
    ] {
        push_attribute(&mut out, kind, &value.to_ne_bytes());
    }
    push_attribute(&mut out, dest::AF, &family_number(Family::of(&to.address.ip())).to_ne_bytes());
    out
}

/// What follows the generic header.
fn body(payload: &[u8]) -> Option<&[u8]> {
    payload.get(4..)
}

fn nest(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body(payload)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn family_from(value: &[u8]) -> Option<Family> {
    match i32::from(u16_at(value, 0)?) {
        libc::AF_INET => Some(Family::V4),
        libc::AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// A service as it is listed; `None` for a protocol that Kubernetes does not know (AH, ESP).
pub fn service(payload: &[u8]) -> Option<Service> {
    let nest = nest(payload, top::SERVICE)?;
    let (mut family, mut protocol, mut address, mut port, mut mark) = (None, None, None, None, None);
    let (mut scheduler, mut bits, mut timeout, mut netmask) = ("".into(), 0, 0, None);
    for (kind, value) in attributes(nest) {
        match kind {
            svc::AF => family = family_from(value),
            svc::PROTOCOL => protocol = u16_at(value, 0),
            svc::ADDR => address = Some(value),
            svc::PORT => port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
            svc::FWMARK => mark = u32_at(value, 0),
            svc::SCHED_NAME => scheduler = String::from_utf8_lossy(value).trim_end_matches('\0').into(),
            svc::FLAGS => bits = u32_at(value, 0)?,
            svc::TIMEOUT => timeout = u32_at(value, 0)?,
            svc::NETMASK => netmask = value.first_chunk::<4>().copied(),
            _ => {}
        }
    }
    let family = family?;
    let key = match mark {
        Some(mark) => ServiceKey::Mark(family, mark),
        None => {
            let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let protocol = known.into_iter().find(|known| Some(u16::from(known.number())) == protocol)?;
            ServiceKey::Address(protocol, SocketAddr::new(address_from(family, address?)?, port?))
        }
    };
    let prefix = match family {
        Family::V4 => netmask.map_or(32, |mask| u32::from_be_bytes(mask).leading_ones() as u8),
        Family::V6 => netmask.map_or(128, |length| u32::from_ne_bytes(length).min(128) as u8),
    };
    let timeout = Duration::from_secs(timeout.into());
    let persistence = (bits & PERSISTENT != 0).then_some(Persistence { timeout, prefix });
    Some(Service { key, scheduler, flags: bits & KEPT_FLAGS, persistence })
}

/// A destination as it is listed. `family` is that of its service, for kernels that do not say.
pub fn destination(payload: &[u8], family: Family) -> Option<Found> {
    let nest = nest(payload, top::DESTINATION)?;
    let (mut family, mut address, mut port) = (family, None, None);
    let mut to = Destination::new(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), 0);
    let mut connections = Connections::default();
    for (kind, value) in attributes(nest) {
        match kind {
            dest::AF => family = family_from(value).unwrap_or(family),
            dest::ADDR => address = Some(value),
            dest::PORT => port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
            dest::METHOD => to.method = u32_at(value, 0)? & METHOD_MASK,
            dest::WEIGHT => to.weight = u32_at(value, 0)?,
            dest::UPPER_THRESHOLD => to.upper_threshold = u32_at(value, 0)?,
            dest::LOWER_THRESHOLD => to.lower_threshold = u32_at(value, 0)?,
            dest::ACTIVE => connections.active = u32_at(value, 0)?,
            dest::INACTIVE => connections.inactive = u32_at(value, 0)?,
            dest::PERSISTENT => connections.persistent = u32_at(value, 0)?,
            _ => {}
        }
    }
    to.address = SocketAddr::new(address_from(family, address?)?, port?);
    Some(Found { destination: to, connections })
}

/// The answer to GET_CONFIG.
pub fn timeouts(payload: &[u8]) -> Option<Timeouts> {
    let mut timeouts = Timeouts::default();
    for (kind, value) in attributes(body(payload)?) {
        let time = || u32_at(value, 0).map(|seconds| Duration::from_secs(seconds.into()));
        match kind {
            top::TIMEOUT_TCP => timeouts.tcp = time()?,
            top::TIMEOUT_TCP_FIN => timeouts.tcp_fin = time()?,
            top::TIMEOUT_UDP => timeouts.udp = time()?,
            _ => {}
        }
    }
    Some(timeouts)
}

/// The answer to GET_INFO.
pub fn info(payload: &[u8]) -> Option<Info> {
    let mut info = Info { version: (0, 0, 0), table_size: 0 };
    for (kind, value) in attributes(body(payload)?) {
        match kind {
            top::INFO_VERSION => {
                let [_, major, minor, patch] = u32_at(value, 0)?.to_be_bytes();
                info.version = (major, minor, patch);
            }
            top::INFO_TABLE_SIZE => info.table_size = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(info)
}
