//! What should be there for the overlay, as values: no index, no socket, no order of events.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use podwire_model::{Family, Lease, Name};

use crate::{Error, backend::Backend};

pub use crate::script::{Command, Script};
pub use podwire_kernel::{
    route::{Ipip, Mac, Vxlan},
    wireguard::{self, PrivateKey, PublicKey},
};

/// The interface that carries encapsulated packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name, such as `eth0`.
    pub name: Name,
    /// Its interface index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The address that encapsulated packets leave from.
    pub address: IpAddr,
}

/// This node's side of the overlay, for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The node's name.
    pub node: Name,
    /// The range of all pods of the cluster.
    pub network: IpNet,
    /// The range of this node's pods.
    pub subnet: IpNet,
    /// Where encapsulated packets leave.
    pub uplink: Uplink,
    /// The address that peers send to: the uplink's own, unless the node is behind NAT.
    pub public_ip: IpAddr,
    /// What an earlier run (of this program or of flanneld) published for this node: identities survive a restart.
    pub published: Option<Lease>,
    /// What the command of [`Backend::prepare`] printed; `None` for backends that have none.
    pub prepared: Option<Name>,
}

impl Site {
    /// Checks that the facts agree with each other.
    ///
    /// # Errors
    /// The node's pods are not part of the network, or the network covers the uplink's own address.
    pub fn check(&self) -> Result<(), Error> {
        let Self { node, network, subnet, uplink, .. } = self;
        if !network.contains(subnet) {
            return Err(Error::Site(format!("pod range {subnet} of node {node} is not part of Network {network}")));
        }
        if network.contains(&uplink.address) {
            let Uplink { name, address, .. } = uplink;
            return Err(Error::Site(format!(
                "Network {network} overlaps the nodes' own network: {name} has {address}; choose another pod range"
            )));
        }
        Ok(())
    }

    /// The address family of the overlay.
    pub const fn family(&self) -> Family {
        match self.network {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// What this node publishes when `backend` runs on it.
    pub fn lease(&self, backend: &dyn Backend) -> Lease {
        Lease {
            node: self.node.clone(),
            subnet: self.subnet,
            public_ip: self.public_ip,
            backend: backend.name().into(),
            backend_data: backend.lease_data(self).into(),
        }
    }
}

/// A peer as a backend sees it.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// What it published.
    pub lease: &'a Lease,
    /// How packets to its public address leave this node now; `None` when no route leads there. Looked up only for a
    /// backend that says so ([`Backend::needs_path`]), `None` for others.
    pub path: Option<&'a Path>,
}

/// The way from this node to a peer's public address, by the kernel's own routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Name of the interface that packets leave by.
    pub device: Name,
    /// The first router; absent when the peer is on the link.
    pub gateway: Option<IpAddr>,
}

/// One object in the kernel, or ([`Entry::Forward`], [`Entry::Script`]) in user space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A tunnel device, up.
    Tunnel(Tunnel),
    /// An address of a device.
    Address {
        /// The device's name.
        device: Name,
        /// Address and prefix length.
        address: IpNet,
    },
    /// A permanent neighbour: the link-layer address of `address`.
    Neighbour {
        /// The device's name.
        device: Name,
        /// The neighbour.
        address: IpAddr,
        /// Its link-layer address.
        mac: Mac,
    },
    /// A permanent forwarding entry of a vxlan device: frames for `mac` go to the tunnel end `remote`.
    Fdb {
        /// The device's name.
        device: Name,
        /// The inner destination.
        mac: Mac,
        /// The outer destination.
        remote: IpAddr,
    },
    /// A peer of a WireGuard device.
    WireguardPeer {
        /// The device's name.
        device: Name,
        /// Who it is, and where.
        peer: wireguard::Peer,
    },
    /// What a WireGuard device sends to a peer, and takes from it.
    Allowed {
        /// The device's name.
        device: Name,
        /// The inner destinations, and sources.
        range: IpNet,
        /// The peer.
        peer: PublicKey,
    },
    /// A line of the table of a data path in user space: packets for `destination` go to the tunnel end `to`. The agent
    /// learns of it by [`crate::Outcome::forwards`].
    Forward {
        /// Where to.
        destination: IpNet,
        /// The outer destination.
        to: SocketAddr,
    },
    /// A route of the main table.
    Route {
        /// Name of the device to leave by: a tunnel, or an interface of the machine.
        device: Name,
        /// Where to.
        destination: IpNet,
        /// By way of; absent when the device itself leads there.
        gateway: Option<IpAddr>,
        /// The gateway is taken to be on the link even if no address of the device covers it.
        onlink: bool,
    },
    /// Commands of the administrator, to be run by the agent ([`crate::Outcome::commands`]).
    Script(Script),
}

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name, such as `flannel.1`.
    pub device: Name,
    /// Its link-layer address, for kinds that have one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// What cannot be changed in place.
    pub kind: TunnelKind,
}

/// What a tunnel device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelKind {
    /// Frames in UDP, by the kernel.
    Vxlan(Vxlan),
    /// IPv4 packets in IPv4 packets, by the kernel.
    Ipip(Ipip),
    /// Packets encrypted in UDP, by the kernel. Unlike with the others, all of this changes in place.
    Wireguard {
        /// Who this node is; a device that someone has just made is nobody.
        key: Option<PrivateKey>,
        /// The UDP port that it listens on.
        port: u16,
    },
    /// Packets go to a program, the agent's forwarder, which opens the device's queues: see
    /// [`crate::Overlay::forwarder`].
    Tun {
        /// Where the forwarder listens for the packets of peers.
        listen: SocketAddr,
    },
}

/// Identifies an [`Entry`]. The order is the order of creation; removal goes backwards: a route appears last and goes
/// first, so that no packet is sent before the kernel knows where to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The device's name.
    Tunnel(Name),
    /// Device and address.
    Address(Name, IpNet),
    /// Device and neighbour.
    Neighbour(Name, IpAddr),
    /// Device and inner destination.
    Fdb(Name, Mac),
    /// Device and peer.
    WireguardPeer(Name, PublicKey),
    /// Device and inner destinations.
    Allowed(Name, IpNet),
    /// Destination.
    Forward(IpNet),
    /// Destination.
    Route(IpNet),
    /// Whose.
    Script(Name),
}

impl Key {
    /// What kind of object it identifies, in one word, for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tunnel(_) => "device",
            Self::Address(..) => "address",
            Self::Neighbour(..) => "neighbour",
            Self::Fdb(..) => "fdb",
            Self::WireguardPeer(..) => "peer",
            Self::Allowed(..) => "allowed",
            Self::Forward(_) => "forward",
            Self::Route(_) => "route",
            Self::Script(_) => "script",
        }
    }

    /// Whether the object is not the kernel's.
    pub(crate) const fn is_user_space(&self) -> bool {
        matches!(self, Self::Forward(_) | Self::Script(_))
    }
}

impl Entry {
    /// What identifies it.
    pub fn key(&self) -> Key {
        match self {
            Self::Tunnel(tunnel) => Key::Tunnel(tunnel.device.clone()),
            Self::Address { device, address } => Key::Address(device.clone(), *address),
            Self::Neighbour { device, address, .. } => Key::Neighbour(device.clone(), *address),
            Self::Fdb { device, mac, .. } => Key::Fdb(device.clone(), *mac),
            Self::WireguardPeer { device, peer } => Key::WireguardPeer(device.clone(), peer.public_key),
            Self::Allowed { device, range, .. } => Key::Allowed(device.clone(), *range),
            Self::Forward { destination, .. } => Key::Forward(*destination),
            Self::Route { destination, .. } => Key::Route(*destination),
            Self::Script(script) => Key::Script(script.name.clone()),
        }
    }

    /// The device that it is, or hangs on; `None` in user space.
    pub const fn device(&self) -> Option<&Name> {
        match self {
            Self::Tunnel(Tunnel { device, .. })
            | Self::Address { device, .. }
            | Self::Neighbour { device, .. }
            | Self::Fdb { device, .. }
            | Self::WireguardPeer { device, .. }
            | Self::Allowed { device, .. }
            | Self::Route { device, .. } => Some(device),
            Self::Forward { .. } | Self::Script(_) => None,
        }
    }
}

/// Checks what holds for peers of every backend.
///
/// # Errors
/// [`Error::OtherBackend`]; or a range outside of the network or across this node's own, or this node's own address.
pub(crate) fn check(backend: &dyn Backend, site: &Site, peer: &Lease) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::Lease { node: peer.node.to_string(), problem });
    if !backend.answers_to(&peer.backend) {
        let problem = format!("runs backend {:?}, this node runs {:?}", peer.backend, backend.name());
        return Err(Error::OtherBackend { node: peer.node.to_string(), problem });
    }
    if !site.network.contains(&peer.subnet) {
        return refuse(format!("pod range {} is not part of Network {}", peer.subnet, site.network));
    }
    if site.subnet.contains(&peer.subnet) || peer.subnet.contains(&site.subnet) {
        return refuse(format!("pod range {} overlaps this node's {}", peer.subnet, site.subnet));
    }
    if site.network.contains(&peer.public_ip) {
        return refuse(format!("public address {} is part of Network {}", peer.public_ip, site.network));
    }
    if peer.public_ip == site.public_ip || peer.public_ip == site.uplink.address {
        return refuse(format!("public address {} is this node's own", peer.public_ip));
    }
    Ok(())
}

/// What `peer` adds on this node.
///
/// # Errors
/// The lease cannot be used here: another backend, a range outside of the network or across this node's own, data that
/// the backend refuses. Such a peer is left out; the others are not affected.
pub fn peer(backend: &dyn Backend, site: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
    check(backend, site, peer.lease)?;
    backend.peer(site, peer)
}

/// Everything that should be there, from the current state alone. Where two peers claim the same object (a node that
/// was replaced under another name, for example), the one whose name sorts first has it.
///
/// [`crate::Overlay`] comes to the same result in steps; this is the plain statement that it is tested against.
pub fn whole<'a>(
    backend: &dyn Backend,
    site: &Site,
    peers: impl IntoIterator<Item = Peer<'a>>,
) -> BTreeMap<Key, Entry> {
    let by_name: BTreeMap<_, _> = peers.into_iter().map(|peer| (&peer.lease.node, peer)).collect();
    let remote = by_name.into_values().filter(|peer| peer.lease.node != site.node);
    let remote = remote.filter_map(|found| peer(backend, site, found).ok()).flatten();
    let mut plan = BTreeMap::new();
    for entry in backend.local(site).into_iter().chain(remote) {
        plan.entry(entry.key()).or_insert(entry);
    }
    plan
}
