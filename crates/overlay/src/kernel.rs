//! [`Entry`] ↔ rtnetlink. The plan names devices, the kernel numbers them: this is where the two meet.

use std::{collections::HashMap, net::IpAddr};

use podwire_kernel::{
    Error, Result, ResultExt,
    route::{
        Address, FdbEntry, FdbTable, Link, LinkChange, LinkKind, Neighbour, NeighbourState, NewLink, NewLinkKind,
        Removed, Route, RouteEntry, RouteFilter, RouteProtocol, Vxlan,
    },
};
use podwire_model::{Family, Name};

use crate::plan::{Entry, Key, Site, Tunnel};

/// Every backend's devices are called so, with flannel's names: it is how an earlier run's are found.
const PREFIX: &str = "flannel";

/// The overlay's devices and their interface indexes.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    indexes: HashMap<Name, u32>,
}

impl Devices {
    /// What the kernel holds of the overlay: vxlan devices called `flannel…`, either `wanted` or with an address of
    /// the cluster's network (an earlier run's, with another VNI), and what hangs on them. Other entries on these
    /// devices (routes of another protocol, neighbours that expire, addresses from elsewhere) belong to someone else.
    pub(crate) fn dump(
        kernel: &mut dyn Route,
        site: &Site,
        wanted: impl Fn(&Name) -> bool,
    ) -> Result<(Self, Vec<Entry>)> {
        let mut devices = Self::default();
        let mut entries = Vec::new();
        for link in kernel.links()? {
            let name = Name::from(link.name.as_str());
            let LinkKind::Vxlan(vxlan) = &link.kind else { continue };
            if !name.starts_with(PREFIX) {
                continue;
            }
            let mut addresses = kernel.addresses(Some(link.index))?;
            addresses.retain(|address| site.network.contains(&address.net.addr()));
            if addresses.is_empty() && !wanted(&name) {
                continue;
            }
            entries.push(Entry::Tunnel(tunnel(&link, vxlan)));
            entries
                .extend(addresses.into_iter().map(|found| Entry::Address { device: name.clone(), address: found.net }));
            entries.extend(hanging_on(kernel, site, &name, link.index)?);
            devices.indexes.insert(name, link.index);
        }
        Ok((devices, entries))
    }

    /// Whether one of them has this index.
    pub(crate) fn contains(&self, index: u32) -> bool {
        self.indexes.values().any(|known| *known == index)
    }

    /// What a removal is about, if it is about something that hangs on one of them.
    pub(crate) fn key_of(&self, removed: &Removed) -> Option<Key> {
        let device = |index: u32| self.indexes.iter().find(|(_, known)| **known == index).map(|(name, _)| name.clone());
        match removed {
            Removed::Address(gone) => Some(Key::Address(device(gone.device)?, gone.net)),
            Removed::Neighbour(gone) => Some(Key::Neighbour(device(gone.device)?, gone.address)),
            Removed::Fdb(gone) => Some(Key::Fdb(device(gone.device)?, gone.mac)),
            Removed::Route(gone) => device(gone.device?).map(|_| Key::Route(gone.destination)),
            Removed::Link(_) | Removed::LinkDown(_) | Removed::Anything => None,
        }
    }

    /// Whether `entry` hangs on a device that does not exist.
    pub(crate) fn lacks(&self, entry: &Entry) -> bool {
        !matches!(entry, Entry::Tunnel(_)) && !self.indexes.contains_key(entry.device())
    }

    /// Creates `entry`, or changes what is there to it.
    pub(crate) fn put(&mut self, kernel: &mut dyn Route, entry: &Entry) -> Result<()> {
        if let Entry::Tunnel(tunnel) = entry {
            let index = put_tunnel(kernel, tunnel)?;
            self.indexes.insert(tunnel.device.clone(), index);
            return Ok(());
        }
        let index = self.index(entry)?;
        match entry {
            Entry::Tunnel(_) => Ok(()),
            Entry::Address { address, .. } => kernel.add_address(&Address::new(index, *address)).or_exists(),
            Entry::Neighbour { address, mac, .. } => {
                kernel.replace_neighbour(&Neighbour::permanent(index, *address, *mac))
            }
            Entry::Fdb { mac, remote, .. } => kernel.replace_fdb(&FdbEntry::remote(index, *mac, *remote)),
            Entry::Route { destination, gateway, .. } => {
                kernel.replace_route(&onlink(RouteEntry::via(*destination, *gateway, index)))
            }
        }
    }

    /// Deletes `entry`.
    pub(crate) fn delete(&mut self, kernel: &mut dyn Route, entry: &Entry) -> Result<()> {
        let index = self.index(entry)?;
        match entry {
            Entry::Tunnel(tunnel) => {
                kernel.delete_link(index)?;
                self.indexes.remove(&tunnel.device);
                Ok(())
            }
            Entry::Address { address, .. } => kernel.delete_address(&Address::new(index, *address)),
            Entry::Neighbour { address, mac, .. } => {
                kernel.delete_neighbour(&Neighbour::permanent(index, *address, *mac))
            }
            Entry::Fdb { mac, remote, .. } => kernel.delete_fdb(&FdbEntry::remote(index, *mac, *remote)),
            Entry::Route { destination, gateway, .. } => {
                kernel.delete_route(&onlink(RouteEntry::via(*destination, *gateway, index)))
            }
        }
    }

    fn index(&self, entry: &Entry) -> Result<u32> {
        let device = entry.device();
        self.indexes
            .get(device)
            .copied()
            .ok_or_else(|| Error::refused(format_args!("find device {device}"), libc::ENODEV))
    }
}

/// flannel adds its routes without a protocol (BOOT), so that `ip route` shows none.
const PROTOCOL: RouteProtocol = RouteProtocol::BOOT;

fn onlink(route: RouteEntry) -> RouteEntry {
    RouteEntry { onlink: true, protocol: PROTOCOL, ..route }
}

fn tunnel(link: &Link, vxlan: &Vxlan) -> Tunnel {
    Tunnel {
        device: link.name.as_str().into(),
        mac: link.mac.unwrap_or(podwire_kernel::route::Mac([0; 6])),
        mtu: link.mtu,
        up: link.up,
        vxlan: vxlan.clone(),
    }
}

/// The overlay's neighbours, FDB entries and routes of one device.
fn hanging_on(kernel: &mut dyn Route, site: &Site, device: &Name, index: u32) -> Result<Vec<Entry>> {
    let ours = |address: &IpAddr| Family::of(address) == site.family();
    let neighbours = kernel.neighbours(Some(index))?.into_iter().filter_map(|found| match found {
        Neighbour { address, mac: Some(mac), state: NeighbourState::Permanent, .. } if ours(&address) => {
            Some(Entry::Neighbour { device: device.clone(), address, mac })
        }
        _ => None,
    });
    let fdb = kernel.fdb(Some(index))?.into_iter().filter_map(|found| match found {
        FdbEntry { table: FdbTable::Own, mac, remote: Some(remote), state, .. } if is_permanent(state) => {
            Some(Entry::Fdb { device: device.clone(), mac, remote })
        }
        _ => None,
    });
    let filter = RouteFilter { protocol: Some(PROTOCOL), device: Some(index), ..RouteFilter::MAIN };
    let routes = kernel.routes(&filter)?.into_iter().filter_map(|found| match found {
        RouteEntry { destination, gateway: Some(gateway), onlink: true, metric: 0 | 1024, .. } if ours(&gateway) => {
            Some(Entry::Route { device: device.clone(), destination, gateway })
        }
        _ => None,
    });
    Ok(neighbours.chain(fdb).chain(routes).collect())
}

/// `bridge fdb add … permanent` sets NUD_NOARP besides; what the device learned has neither.
const fn is_permanent(state: NeighbourState) -> bool {
    match state {
        NeighbourState::Permanent => true,
        NeighbourState::Other(bits) => bits & libc::NUD_PERMANENT != 0,
        _ => false,
    }
}

/// Makes the device what `tunnel` says, in place where the kernel allows it; returns its index.
fn put_tunnel(kernel: &mut dyn Route, tunnel: &Tunnel) -> Result<u32> {
    match kernel.link(&tunnel.device)? {
        Some(link) if link.kind == LinkKind::Vxlan(tunnel.vxlan.clone()) => {
            let mut changes = Vec::new();
            if link.mac != Some(tunnel.mac) {
                changes.push(LinkChange::Mac(tunnel.mac));
            }
            if link.mtu != tunnel.mtu {
                changes.push(LinkChange::Mtu(tunnel.mtu));
            }
            if !link.up {
                changes.push(LinkChange::Up(true));
            }
            kernel.change_link(link.index, &changes)?;
            return Ok(link.index);
        }
        Some(Link { kind: LinkKind::Vxlan(_), index, .. }) => kernel.delete_link(index)?,
        // Something else of that name is not ours to delete; the kernel says so when the device is created.
        Some(_) | None => {}
    }
    let new = NewLink {
        mac: Some(tunnel.mac),
        mtu: Some(tunnel.mtu),
        up: true,
        ..NewLink::new(&tunnel.device, NewLinkKind::Vxlan(tunnel.vxlan.clone()))
    };
    Ok(kernel.create_link(&new)?.index)
}
