use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
};

use super::{Mac, bridge::BridgeVlans};

/// A network interface, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its network namespace and never zero.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its address; absent for links without MAC addresses (tun).
    pub mac: Option<Mac>,
    /// Largest packet, in bytes, without the link header.
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Able to carry packets: up and with a carrier (operational state UP or, for links that do not tell, UNKNOWN).
    pub running: bool,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Free text, shown as `alias` by `ip link`. Podwire marks its own links with it.
    pub alias: Option<String>,
    /// For a veth: index of the other end, in that end's namespace. For a vxlan, macvlan, ipvlan or VLAN: the device
    /// below, that it sends through.
    pub peer_index: Option<u32>,
    /// This namespace's id for the namespace that `peer_index` lives in; absent when it is this one.
    pub peer_netns_id: Option<i32>,
    /// The device that it is on its bus, for example the address of a PCI function (Linux 5.14); absent for virtual links.
    pub parent: Option<String>,
    /// Its settings as a bridge port, when its master is a bridge.
    pub port: Option<BridgePort>,
    /// What it does with VLAN tags, when it is a bridge.
    pub vlans: Option<BridgeVlans>,
    /// Takes every frame, whomever it is for (IFF_PROMISC), because somebody said so: as a bridge's port it does anyway.
    pub promiscuous: bool,
    /// It was told to take every multicast frame.
    pub all_multicast: bool,
    /// How many packets may wait to be sent.
    pub tx_queue_length: u32,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// An Ethernet bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// A device that swallows packets: a place for addresses.
    Dummy,
    /// A device that passes on what is redirected to it: a place for limits ([`crate::tc`]).
    Ifb,
    /// An interface with a MAC address of its own on the device below.
    Macvlan(MacvlanMode),
    /// An interface with addresses of its own and the MAC address of the device below.
    Ipvlan(IpvlanMode),
    /// The frames of the device below with this 802.1Q tag, 1 to 4094.
    Vlan(u16),
    /// A tunnel of IPv4 packets in IPv4 packets.
    Ipip(Ipip),
    /// A WireGuard tunnel end point; keys and peers are set by other means.
    Wireguard,
    /// A device whose packets a program carries, as [`crate::tun`] makes it: of several queues, there to stay.
    Tun,
    /// Anything else, by the kernel's name for it (`vrf`, also other sorts of `tun`, …); empty for physical devices and `lo`.
    Other(String),
}

impl LinkKind {
    /// The kernel's name of the kind, as `ip -d link` shows it.
    pub fn name(&self) -> &str {
        match self {
            Self::Bridge => "bridge",
            Self::Veth => "veth",
            Self::Vxlan(_) => "vxlan",
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
            Self::Ipip(_) => "ipip",
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
            Self::Other(name) => name,
        }
    }
}

/// Settings of a VXLAN link. None of them can be changed later, except `learning`; delete the link and make it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub id: u32,
    /// UDP destination port; flannel uses 8472, the IANA port is 4789.
    pub port: u16,
    /// Source address of encapsulated packets.
    pub local: Option<IpAddr>,
    /// Index of the device that encapsulated packets leave by.
    pub device: Option<u32>,
    /// Whether it learns addresses from received packets.
    pub learning: bool,
    /// Group Based Policy extension.
    pub gbp: bool,
}

/// Which of the macvlan interfaces on one device can talk to each other (`linux/if_link.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// None of them.
    Private,
    /// By way of the switch outside, which must send frames back to where they came from.
    Vepa,
    /// Directly.
    Bridge,
    /// There is only one, which takes over the device and its MAC address.
    Passthru,
}

/// At which layer an ipvlan interface and the device below meet (`linux/if_link.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// Frames: broadcast and multicast reach it.
    L2,
    /// Packets, routed by the namespace of the device below.
    L3,
    /// As L3, and connection tracking there sees them.
    L3s,
}

/// Settings of an IPv4-in-IPv4 tunnel. Routes say where to, so it has no fixed remote end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipip {
    /// Source address of encapsulated packets.
    pub local: Ipv4Addr,
    /// Index of the device that encapsulated packets leave by.
    pub device: Option<u32>,
}

/// Settings of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePort {
    /// A frame may leave by the port that it came in by.
    pub hairpin: bool,
    /// Learns addresses from received frames.
    pub learning: bool,
    /// Receives frames for unknown unicast addresses.
    pub flood: bool,
    /// Cannot talk to other isolated ports.
    pub isolated: bool,
    /// Takes frames only from MAC addresses that the bridge's forwarding database has for it (Linux 5.16).
    pub locked: bool,
}

/// A link to create.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    /// Interface name, 1 to 15 bytes.
    pub name: &'a str,
    /// What to create.
    pub kind: NewLinkKind<'a>,
    /// MAC address; the kernel picks a random one otherwise.
    pub mac: Option<Mac>,
    /// MTU in bytes; the kernel's default for the kind otherwise.
    pub mtu: Option<u32>,
    /// Index of the bridge to put it on.
    pub master: Option<u32>,
    /// Bring it up at once.
    pub up: bool,
}

impl<'a> NewLink<'a> {
    /// A link that is down, with the kernel's defaults.
    pub fn new(name: &'a str, kind: NewLinkKind<'a>) -> Self {
        Self { name, kind, mac: None, mtu: None, master: None, up: false }
    }
}

/// What kind of link to create.
#[derive(Debug, Clone)]
pub enum NewLinkKind<'a> {
    /// An Ethernet bridge.
    Bridge,
    /// An Ethernet bridge that keeps VLANs apart ([`BridgeVlans`]). The kernel needs `CONFIG_BRIDGE_VLAN_FILTERING`.
    VlanBridge,
    /// A veth pair, with its other end.
    Veth(Peer<'a>),
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// A device that swallows packets. The kernel needs the module `dummy` for it.
    Dummy,
    /// A device that passes on what is redirected to it. The kernel needs the module `ifb` for it.
    Ifb,
    /// An interface with a MAC address of its own on the device with index `lower`.
    Macvlan {
        /// Index of the device below.
        lower: u32,
        /// Whom it can talk to.
        mode: MacvlanMode,
        /// How many broadcast packets may wait on the device below, for all its macvlans (Linux 5.11); 1000 otherwise.
        broadcast_queue: Option<u32>,
    },
    /// An interface that shares the MAC address of the device with index `lower`. The kernel needs the module `ipvlan`.
    Ipvlan {
        /// Index of the device below.
        lower: u32,
        /// Where the two meet.
        mode: IpvlanMode,
    },
    /// The frames with an 802.1Q tag. The kernel needs the module `8021q`.
    Vlan {
        /// Index of the device below.
        lower: u32,
        /// The tag, 1 to 4094.
        id: u16,
    },
    /// A tunnel of IPv4 packets in IPv4 packets. The kernel needs the module `ipip`.
    Ipip(Ipip),
    /// A WireGuard tunnel end point without key and peers. The kernel needs the module `wireguard`.
    Wireguard,
    /// A device whose packets a program carries ([`crate::tun`]). It has no MAC address and cannot be a bridge's port.
    Tun,
}

impl NewLinkKind<'_> {
    /// The kernel's name of the kind.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bridge | Self::VlanBridge => "bridge",
            Self::Veth(_) => "veth",
            Self::Vxlan(_) => "vxlan",
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Ipip(_) => "ipip",
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
        }
    }

    /// Index of the device below, for kinds that cannot be without one.
    pub const fn lower(&self) -> Option<u32> {
        match self {
            Self::Macvlan { lower, .. } | Self::Ipvlan { lower, .. } | Self::Vlan { lower, .. } => Some(*lower),
            Self::Bridge
            | Self::VlanBridge
            | Self::Veth(_)
            | Self::Vxlan(_)
            | Self::Dummy
            | Self::Ifb
            | Self::Ipip(_)
            | Self::Wireguard
            | Self::Tun => None,
        }
    }
}

/// The other end of a veth pair to create. It is down at first: the kernel refuses to bring it up before the near end.
#[derive(Debug, Clone)]
pub struct Peer<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MAC address; random otherwise.
    pub mac: Option<Mac>,
    /// MTU in bytes; 1500 otherwise.
    pub mtu: Option<u32>,
    /// The network namespace to create it in (an open `/proc/PID/ns/net`); this one otherwise.
    pub netns: Option<BorrowedFd<'a>>,
}

/// One change of a link.
#[derive(Debug, Clone, Copy)]
pub enum LinkChange<'a> {
    /// Bring it up or down.
    Up(bool),
    /// Set the MTU, in bytes.
    Mtu(u32),
    /// Set the MAC address.
    Mac(Mac),
    /// Make it a port of the bridge with this index; `None` takes it off.
    Master(Option<u32>),
    /// Rename it. Before Linux 6.2 it must have been brought down before, in a change of its own (EBUSY).
    Name(&'a str),
    /// Set its alias; an empty one removes it.
    Alias(&'a str),
    /// Move it into another network namespace. It arrives down and without addresses.
    Netns(BorrowedFd<'a>),
    /// Have it take every frame, whomever it is for.
    Promiscuous(bool),
    /// Have it take every multicast frame.
    AllMulticast(bool),
    /// How many packets may wait to be sent.
    TxQueueLength(u32),
    /// (bridge port) Let frames leave by the port that they came in by.
    Hairpin(bool),
    /// (bridge port) Learn addresses from received frames.
    Learning(bool),
    /// (bridge port) Receive frames for unknown unicast addresses.
    Flood(bool),
    /// (bridge port) Forbid talking to other isolated ports.
    Isolated(bool),
    /// (bridge port) Take frames only from MAC addresses that the bridge's forwarding database has for it. Kernels before
    /// 5.16 say nothing and do nothing: look at [`BridgePort::locked`].
    Locked(bool),
}
