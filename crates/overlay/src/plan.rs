//! What the kernel should hold for the overlay, as values: no index, no socket, no order of events.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use podwire_model::{Family, Lease, Name};

use crate::{Error, backend::Backend};

pub use podwire_kernel::route::{Mac, Vxlan};

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

/// One object in the kernel.
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
    /// A route of the main table.
    Route {
        /// The device's name.
        device: Name,
        /// Where to.
        destination: IpNet,
        /// By way of; taken to be on the link even if no address of the device covers it.
        gateway: IpAddr,
    },
}

/// A vxlan device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name, such as `flannel.1`.
    pub device: Name,
    /// Its link-layer address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// What cannot be changed in place.
    pub vxlan: Vxlan,
}

/// Identifies an [`Entry`] in the kernel. The order is the order of creation; removal goes backwards: a route appears
/// last and goes first, so that no packet is sent before the kernel knows where to.
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
    /// Destination.
    Route(IpNet),
}

impl Entry {
    /// What identifies it in the kernel.
    pub fn key(&self) -> Key {
        match self {
            Self::Tunnel(tunnel) => Key::Tunnel(tunnel.device.clone()),
            Self::Address { device, address } => Key::Address(device.clone(), *address),
            Self::Neighbour { device, address, .. } => Key::Neighbour(device.clone(), *address),
            Self::Fdb { device, mac, .. } => Key::Fdb(device.clone(), *mac),
            Self::Route { destination, .. } => Key::Route(*destination),
        }
    }

    /// The name of the device that it is part of.
    pub fn device(&self) -> &Name {
        match self {
            Self::Tunnel(tunnel) => &tunnel.device,
            Self::Address { device, .. }
            | Self::Neighbour { device, .. }
            | Self::Fdb { device, .. }
            | Self::Route { device, .. } => device,
        }
    }
}

/// What `peer` adds on this node.
///
/// # Errors
/// The lease cannot be used here: another backend, a range outside of the network or across this node's own, data that
/// the backend refuses. Such a peer is left out; the others are not affected.
pub fn peer(backend: &dyn Backend, site: &Site, peer: &Lease) -> Result<Vec<Entry>, Error> {
    let refuse = |problem: String| Err(Error::Lease { node: peer.node.to_string(), problem });
    if &*peer.backend != backend.name() {
        return refuse(format!("runs backend {:?}, this node runs {:?}", peer.backend, backend.name()));
    }
    if !site.network.contains(&peer.subnet) {
        return refuse(format!("pod range {} is not part of Network {}", peer.subnet, site.network));
    }
    if site.subnet.contains(&peer.subnet) || peer.subnet.contains(&site.subnet) {
        return refuse(format!("pod range {} overlaps this node's {}", peer.subnet, site.subnet));
    }
    backend.peer(site, peer)
}

/// Everything the kernel should hold, from the current state alone. Where two peers claim the same object (a node that
/// was replaced under another name, for example), the one whose name sorts first has it.
///
/// [`crate::Overlay`] comes to the same result in steps; this is the plain statement that it is tested against.
pub fn whole<'a>(
    backend: &dyn Backend,
    site: &Site,
    peers: impl IntoIterator<Item = &'a Lease>,
) -> BTreeMap<Key, Entry> {
    let by_name: BTreeMap<_, _> = peers.into_iter().map(|lease| (&lease.node, lease)).collect();
    let remote = by_name.into_values().filter(|lease| lease.node != site.node);
    let remote = remote.filter_map(|lease| peer(backend, site, lease).ok()).flatten();
    let mut plan = BTreeMap::new();
    for entry in backend.local(site).into_iter().chain(remote) {
        plan.entry(entry.key()).or_insert(entry);
    }
    plan
}
