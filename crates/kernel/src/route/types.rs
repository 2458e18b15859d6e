//! What rtnetlink speaks of, as plain values. Devices are named by interface index, as in the kernel.

mod bridge;
mod edit;
mod link;
mod vf;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

pub use bridge::{BridgeVlans, PortVlans};
pub use edit::{Edit, NextHop};
pub use link::{
    BridgePort, Ipip, IpvlanMode, Link, LinkChange, LinkKind, MacvlanMode, NewLink, NewLinkKind, Peer, Vxlan,
};
use podwire_model::{Family, IpNet};
pub use vf::{VfChange, VfLinkState, VfRate, VfVlan, VirtualFunction, VlanProtocol};

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The string is not six hexadecimal octets with colons between.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: {0:?}; expected six octets like 0a:58:0a:f4:00:01")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            *octet = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(|| NotAMac(text.to_owned()))?;
        }
        if parts.next().is_some() { Err(NotAMac(text.to_owned())) } else { Ok(Self(octets)) }
    }
}

/// How far an address or a destination reaches (`rtm_scope`, `ifa_scope`). IPv6 routes are always global.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Anywhere: routes through a gateway, ordinary addresses.
    Global,
    /// On the link: routes without a gateway, link-local addresses.
    Link,
    /// This machine only.
    Host,
    /// Any other number.
    Other(u8),
}

impl Scope {
    pub(in crate::route) const fn number(self) -> u8 {
        match self {
            Self::Global => libc::RT_SCOPE_UNIVERSE,
            Self::Link => libc::RT_SCOPE_LINK,
            Self::Host => libc::RT_SCOPE_HOST,
            Self::Other(number) => number,
        }
    }

    pub(in crate::route) const fn from_number(number: u8) -> Self {
        match number {
            libc::RT_SCOPE_UNIVERSE => Self::Global,
            libc::RT_SCOPE_LINK => Self::Link,
            libc::RT_SCOPE_HOST => Self::Host,
            number => Self::Other(number),
        }
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub device: u32,
    /// The address and the prefix length of its network.
    pub net: IpNet,
    /// Where to broadcast (IPv4).
    pub broadcast: Option<Ipv4Addr>,
    /// How far it reaches.
    pub scope: Scope,
    /// Usable at once: duplicate address detection is skipped (IPv6; meaningless for IPv4 and read as false there).
    pub no_dad: bool,
    /// Duplicate address detection has not finished: not usable yet (IPv6).
    pub tentative: bool,
}

impl Address {
    /// An ordinary address: global scope, no broadcast address; IPv6 without duplicate address detection.
    pub fn new(device: u32, net: impl Into<IpNet>) -> Self {
        let net = net.into();
        let no_dad = matches!(net, IpNet::V6(_));
        Self { device, net, broadcast: None, scope: Scope::Global, no_dad, tentative: false }
    }
}

/// Who made a route (`rtm_protocol`). Podwire recognises its own routes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// The kernel, for example for the network of an address.
    pub const KERNEL: Self = Self(libc::RTPROT_KERNEL);
    /// `ip route add` without a protocol, and programs that do not say who they are (flannel).
    pub const BOOT: Self = Self(libc::RTPROT_BOOT);
    /// An administrator.
    pub const STATIC: Self = Self(libc::RTPROT_STATIC);
}

/// What a route does with a packet (`rtm_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Send it on.
    Unicast,
    /// Deliver it here.
    Local,
    /// Drop it silently.
    Blackhole,
    /// Drop it and answer that the destination is unreachable.
    Unreachable,
    /// Any other number (broadcast, multicast, prohibit, throw, …).
    Other(u8),
}

impl RouteKind {
    pub(in crate::route) const fn number(self) -> u8 {
        match self {
            Self::Unicast => libc::RTN_UNICAST,
            Self::Local => libc::RTN_LOCAL,
            Self::Blackhole => libc::RTN_BLACKHOLE,
            Self::Unreachable => libc::RTN_UNREACHABLE,
            Self::Other(number) => number,
        }
    }

    pub(in crate::route) const fn from_number(number: u8) -> Self {
        match number {
            libc::RTN_UNICAST => Self::Unicast,
            libc::RTN_LOCAL => Self::Local,
            libc::RTN_BLACKHOLE => Self::Blackhole,
            libc::RTN_UNREACHABLE => Self::Unreachable,
            number => Self::Other(number),
        }
    }

    /// Whether such a route names no device.
    pub(in crate::route) const fn drops(self) -> bool {
        matches!(self, Self::Blackhole | Self::Unreachable)
    }
}

/// The main routing table.
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The kernel's table of local addresses.
pub const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

/// A route. The kernel tells routes apart by table, destination and metric.
///
/// Routes with several next hops are listed without gateway and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    /// Where to; `0.0.0.0/0` or `::/0` for the default route. Host bits must be zero.
    pub destination: IpNet,
    /// The next router; absent when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface to leave by. May be left out when adding a route with a gateway.
    pub device: Option<u32>,
    /// Take the gateway to be on the link even though no address says so.
    pub onlink: bool,
    /// What to do with the packet.
    pub kind: RouteKind,
    /// How far the destination is.
    pub scope: Scope,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// Routing table, for example [`TABLE_MAIN`].
    pub table: u32,
    /// Preferred source address of packets that leave by it.
    pub source: Option<IpAddr>,
    /// Priority; lower wins. IPv6 has no zero: the kernel makes it 1024.
    pub metric: u32,
}

impl RouteEntry {
    /// A route to `destination` on the link of `device`, in the main table, made by [`RouteProtocol::BOOT`]: what
    /// `ip route add DESTINATION dev DEVICE` makes.
    pub fn on_link(destination: impl Into<IpNet>, device: u32) -> Self {
        let destination = destination.into();
        let (scope, metric) = match family(destination) {
            Family::V4 => (Scope::Link, 0),
            Family::V6 => (Scope::Global, 1024),
        };
        Self {
            destination,
            gateway: None,
            device: Some(device),
            onlink: false,
            kind: RouteKind::Unicast,
            scope,
            protocol: RouteProtocol::BOOT,
            table: TABLE_MAIN,
            source: None,
            metric,
        }
    }

    /// A route to `destination` through `gateway`: what `ip route add DESTINATION via GATEWAY dev DEVICE` makes.
    pub fn via(destination: impl Into<IpNet>, gateway: IpAddr, device: u32) -> Self {
        Self { gateway: Some(gateway), scope: Scope::Global, ..Self::on_link(destination, device) }
    }
}

impl fmt::Display for RouteEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(device) = self.device {
            write!(f, " dev #{device}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

/// Which routes to list; what is `None` does not matter. The kernel does the choosing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteFilter {
    /// Only IPv4 or only IPv6.
    pub family: Option<Family>,
    /// Only this table.
    pub table: Option<u32>,
    /// Only those made by this protocol.
    pub protocol: Option<RouteProtocol>,
    /// Only those that leave by this interface.
    pub device: Option<u32>,
}

impl RouteFilter {
    /// Every route of every table.
    pub const ALL: Self = Self { family: None, table: None, protocol: None, device: None };
    /// Every route of the main table.
    pub const MAIN: Self = Self { table: Some(TABLE_MAIN), ..Self::ALL };

    pub(in crate::route) fn admits(&self, route: &RouteEntry) -> bool {
        self.family.is_none_or(|wanted| family(route.destination) == wanted)
            && self.table.is_none_or(|table| route.table == table)
            && self.protocol.is_none_or(|protocol| route.protocol == protocol)
            && self.device.is_none_or(|device| route.device == Some(device))
    }
}

/// What is known of a neighbour (`ndm_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Set by someone, never expires, never asked for.
    Permanent,
    /// Valid without being asked for; may be removed when memory is short.
    NoArp,
    /// Confirmed lately.
    Reachable,
    /// Known, but not confirmed lately.
    Stale,
    /// Being asked for, nothing known.
    Incomplete,
    /// Did not answer.
    Failed,
    /// Any other state (delay, probe, none, combinations).
    Other(u16),
}

impl NeighbourState {
    pub(in crate::route) const fn number(self) -> u16 {
        match self {
            Self::Permanent => libc::NUD_PERMANENT,
            Self::NoArp => libc::NUD_NOARP,
            Self::Reachable => libc::NUD_REACHABLE,
            Self::Stale => libc::NUD_STALE,
            Self::Incomplete => libc::NUD_INCOMPLETE,
            Self::Failed => libc::NUD_FAILED,
            Self::Other(number) => number,
        }
    }

    pub(in crate::route) const fn from_number(number: u16) -> Self {
        match number {
            libc::NUD_PERMANENT => Self::Permanent,
            libc::NUD_NOARP => Self::NoArp,
            libc::NUD_REACHABLE => Self::Reachable,
            libc::NUD_STALE => Self::Stale,
            libc::NUD_INCOMPLETE => Self::Incomplete,
            libc::NUD_FAILED => Self::Failed,
            number => Self::Other(number),
        }
    }
}

/// An entry of the ARP or neighbour discovery table, known by device and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub device: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC address, as far as known.
    pub mac: Option<Mac>,
    /// What is known of it.
    pub state: NeighbourState,
}

impl Neighbour {
    /// An entry that never expires.
    pub fn permanent(device: u32, address: IpAddr, mac: Mac) -> Self {
        Self { device, address, mac: Some(mac), state: NeighbourState::Permanent }
    }
}

/// Which table an FDB entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FdbTable {
    /// The device's own, for example a vxlan's (`self` in `bridge fdb`).
    Own,
    /// That of the bridge it is a port of (`master` in `bridge fdb`).
    Bridge,
}

/// An entry of a forwarding database: behind which port or remote a MAC address is. Known by device, table and MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// Index of the bridge port or the vxlan.
    pub device: u32,
    /// Which of the two tables.
    pub table: FdbTable,
    /// The MAC address.
    pub mac: Mac,
    /// (vxlan) Where to send encapsulated frames.
    pub remote: Option<IpAddr>,
    /// Permanent, or learned. A bridge's static entries that are not its own are [`NeighbourState::NoArp`].
    pub state: NeighbourState,
}

impl FdbEntry {
    /// "Frames for `mac` go to `remote`" on a vxlan, for good.
    pub fn remote(device: u32, mac: Mac, remote: IpAddr) -> Self {
        Self { device, table: FdbTable::Own, mac, remote: Some(remote), state: NeighbourState::Permanent }
    }
}

pub(in crate::route) fn family(net: IpNet) -> Family {
    Family::of(&net.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_as_it_is_written() {
        let mac: Mac = "0a:58:0A:f4:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:f4:00:01");
        for wrong in
            ["", "0a:58:0a:f4:00", "0a:58:0a:f4:00:01:02", "0a58.0af4.0001", "+a:58:0a:f4:00:01", "é:58:0a:f4:00:01"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong:?}");
        }
    }
}
