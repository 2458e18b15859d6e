//! [`Entry`] ↔ rtnetlink. The plan names devices, the kernel numbers them: this is where the two meet.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use podwire_kernel::{
    Error, Result, ResultExt,
    route::{
        Address, Change, Edit, FdbEntry, FdbTable, Link, LinkChange, LinkKind, Neighbour, NeighbourState, NewLink,
        NewLinkKind, Removed, Route, RouteEntry, RouteFilter, RouteKind, RouteProtocol, TABLE_MAIN,
    },
};
use podwire_model::{Family, Name};

use crate::{
    Kernel,
    plan::{Entry, Key, Path, Site, Tunnel, TunnelKind},
};

mod wireguard;

/// Every backend's devices are called so, with flannel's names: it is how an earlier run's are found.
const PREFIX: &str = "flannel";

/// flannel adds its routes without a protocol (BOOT), so that `ip route` shows none.
const PROTOCOL: RouteProtocol = RouteProtocol::BOOT;

/// Interface indexes of the overlay's devices, and of the machine's own that its routes leave by.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    tunnels: HashMap<Name, u32>,
    others: HashMap<Name, u32>,
    /// Those by which packets to peers leave.
    on_paths: BTreeSet<u32>,
}

impl Devices {
    /// What the kernel holds of the overlay: tunnels called `flannel…`, either among `wanted` or with an address of the
    /// cluster's network (an earlier run's, with another VNI), and what hangs on them; and the routes that lead to a part
    /// of the cluster's network through a gateway, by whatever device. Other entries on these devices (routes of another
    /// protocol, neighbours that expire, addresses from elsewhere) belong to someone else.
    pub(crate) fn dump(kernel: &mut dyn Kernel, site: &Site, wanted: &[Tunnel]) -> Result<(Self, Vec<Entry>)> {
        let mut devices = Self::default();
        let mut entries = Vec::new();
        for link in kernel.links()? {
            let name = Name::from(link.name.as_str());
            let listen = wanted.iter().find(|tunnel| tunnel.device == name);
            let Some(mut tunnel) = read_tunnel(&link, listen) else {
                devices.others.insert(name, link.index);
                continue;
            };
            let mut addresses = kernel.addresses(Some(link.index))?;
            addresses.retain(|address| site.network.contains(&address.net.addr()));
            if addresses.is_empty() && listen.is_none() {
                continue;
            }
            match &mut tunnel.kind {
                TunnelKind::Vxlan(_) => entries.extend(hanging_on(kernel.as_route(), site, &name, link.index)?),
                kind @ TunnelKind::Wireguard { .. } => {
                    let (found, peers) = wireguard::read(kernel, &name, link.index)?;
                    *kind = found;
                    entries.extend(peers);
                }
                TunnelKind::Ipip(_) | TunnelKind::Tun { .. } => {}
            }
            entries.push(Entry::Tunnel(tunnel));
            entries
                .extend(addresses.into_iter().map(|found| Entry::Address { device: name.clone(), address: found.net }));
            devices.tunnels.insert(name, link.index);
        }
        let filter = RouteFilter { family: Some(site.family()), protocol: Some(PROTOCOL), ..RouteFilter::MAIN };
        entries.extend(kernel.routes(&filter)?.iter().filter_map(|route| devices.read_route(site, route)));
        Ok((devices, entries))
    }

    /// Whether one of the overlay's tunnels has this index.
    pub(crate) fn is_tunnel(&self, index: u32) -> bool {
        self.tunnels.values().any(|known| *known == index)
    }

    /// Whether the entry is, or hangs on, one of the overlay's tunnels.
    pub(crate) fn is_on_tunnel(&self, entry: &Entry) -> bool {
        entry.device().is_some_and(|device| self.tunnels.contains_key(device))
    }

    /// Whether packets to some peer leave by it, as far as paths were looked up.
    pub(crate) fn is_on_a_path(&self, index: u32) -> bool {
        self.on_paths.contains(&index)
    }

    /// Whether the entry is, or hangs on, the device with this index.
    pub(crate) fn is_device(&self, entry: &Entry, index: Option<u32>) -> bool {
        index.is_some() && entry.device().and_then(|device| self.index(device).ok()) == index
    }

    fn tunnel_name(&self, index: u32) -> Option<&Name> {
        self.tunnels.iter().find(|(_, known)| **known == index).map(|(name, _)| name)
    }

    fn name(&self, index: u32) -> Option<&Name> {
        let other = || self.others.iter().find(|(_, known)| **known == index).map(|(name, _)| name);
        self.tunnel_name(index).or_else(other)
    }

    /// What a removal is about, if it may be about an entry of the overlay.
    pub(crate) fn key_of(&self, removed: &Removed) -> Option<Key> {
        let device = |index: u32| self.tunnel_name(index).cloned();
        match removed {
            Removed::Address(gone) => Some(Key::Address(device(gone.device)?, gone.net)),
            Removed::Neighbour(gone) => Some(Key::Neighbour(device(gone.device)?, gone.address)),
            Removed::Fdb(gone) => Some(Key::Fdb(device(gone.device)?, gone.mac)),
            Removed::Route(gone) => ranks_as_ours(gone).then_some(Key::Route(gone.destination)),
            Removed::Link(_) | Removed::LinkDown(_) | Removed::Anything => None,
        }
    }

    /// The entry that a change may be about, and what the kernel holds in its place now, if that is of the overlay's
    /// kind at all.
    pub(crate) fn read(&self, site: &Site, change: &Change) -> Option<(Key, Option<Entry>)> {
        match change {
            Change::Neighbour(found) => {
                let device = self.tunnel_name(found.device)?;
                Some((Key::Neighbour(device.clone(), found.address), read_neighbour(device, found)))
            }
            Change::Fdb(found) => {
                let device = self.tunnel_name(found.device)?;
                Some((Key::Fdb(device.clone(), found.mac), read_fdb(device, found)))
            }
            Change::Route(found) if ranks_as_ours(found) => {
                Some((Key::Route(found.destination), self.read_route(site, found)))
            }
            Change::Route(_) | Change::Link(_) | Change::Address(_) | Change::Removed(_) => None,
        }
    }

    /// A route as an entry, if it can be one of the overlay's.
    fn read_route(&self, site: &Site, found: &RouteEntry) -> Option<Entry> {
        let RouteEntry { destination, gateway, onlink, .. } = *found;
        let index = found.device.filter(|_| {
            found.protocol == PROTOCOL
                && found.kind == RouteKind::Unicast
                && ranks_as_ours(found)
                && site.family() == Family::of(&destination.addr())
        })?;
        let ours = match self.tunnel_name(index) {
            Some(_) => site.network.contains(&destination) || (gateway.is_some() && onlink),
            // Part of the cluster's network, but neither all of it nor this node's own.
            None => {
                gateway.is_some()
                    && !onlink
                    && site.network.contains(&destination)
                    && destination != site.network
                    && !site.subnet.contains(&destination)
                    && !destination.contains(&site.subnet)
            }
        };
        let device = self.name(index)?.clone();
        ours.then_some(Entry::Route { device, destination, gateway, onlink })
    }

    /// Whether `entry` hangs on a tunnel that does not exist.
    pub(crate) fn lacks(&self, entry: &Entry) -> bool {
        !matches!(entry, Entry::Tunnel(_)) && entry.device().is_some_and(|device| self.index(device).is_err())
    }

    /// Creates the tunnel, or changes what is there to it.
    pub(crate) fn put_tunnel(&mut self, kernel: &mut dyn Kernel, tunnel: &Tunnel) -> Result<Done> {
        let (index, done) = put_tunnel(kernel, tunnel)?;
        self.tunnels.insert(tunnel.device.clone(), index);
        Ok(done)
    }

    /// Deletes the tunnel and all that hangs on it.
    pub(crate) fn delete_tunnel(&mut self, kernel: &mut dyn Route, tunnel: &Tunnel) -> Result<()> {
        kernel.delete_link(self.index(&tunnel.device)?).or_gone()?;
        self.tunnels.remove(&tunnel.device);
        Ok(())
    }

    /// Creates the entries, none of them a tunnel, or changes what is there to them. Returns those that were refused, by
    /// position.
    pub(crate) fn put(&self, kernel: &mut dyn Kernel, entries: &[Entry]) -> Result<Vec<(usize, Error)>> {
        let (mut edits, mut changes) = (Edits::default(), wireguard::Changes::default());
        for (at, entry) in entries.iter().enumerate() {
            if !changes.push(self, at, entry, true) {
                edits.push(at, self.edit(entry, true));
            }
        }
        // Peers are there before routes lead to them.
        let mut refused = changes.carry_out(kernel);
        refused.extend(edits.carry_out(kernel.as_route())?);
        Ok(refused)
    }

    /// Deletes the entries, none of them a tunnel. Returns those that were refused, by position.
    pub(crate) fn delete(&self, kernel: &mut dyn Kernel, entries: &[Entry]) -> Result<Vec<(usize, Error)>> {
        let (mut edits, mut changes) = (Edits::default(), wireguard::Changes::default());
        for (at, entry) in entries.iter().enumerate() {
            if !changes.push(self, at, entry, false) {
                edits.push(at, self.edit(entry, false));
            }
        }
        let mut refused = edits.carry_out(kernel.as_route())?;
        refused.extend(changes.carry_out(kernel));
        Ok(refused)
    }

    fn edit(&self, entry: &Entry, put: bool) -> Result<Edit> {
        let (Some(device), false) = (entry.device(), matches!(entry, Entry::Tunnel(_))) else {
            return Err(Error::invalid(format_args!("set {entry:?}"), "it is no entry of a table of the kernel"));
        };
        let index = self.index(device)?;
        Ok(match *entry {
            Entry::Address { address, .. } => {
                let address = Address::new(index, address);
                if put { Edit::AddAddress(address) } else { Edit::DeleteAddress(address) }
            }
            Entry::Neighbour { address, mac, .. } => {
                let neighbour = Neighbour::permanent(index, address, mac);
                if put { Edit::ReplaceNeighbour(neighbour) } else { Edit::DeleteNeighbour(neighbour) }
            }
            Entry::Fdb { mac, remote, .. } => {
                let entry = FdbEntry::remote(index, mac, remote);
                if put { Edit::ReplaceFdb(entry) } else { Edit::DeleteFdb(entry) }
            }
            Entry::Route { destination, gateway, onlink, .. } => {
                let route = route(destination, gateway, onlink, index);
                if put { Edit::ReplaceRoute(route) } else { Edit::DeleteRoute(route) }
            }
            Entry::Tunnel(_)
            | Entry::WireguardPeer { .. }
            | Entry::Allowed { .. }
            | Entry::Forward { .. }
            | Entry::Script(_) => {
                return Err(Error::invalid(format_args!("set {entry:?}"), "it is no entry of a table of the kernel"));
            }
        })
    }

    fn index(&self, device: &Name) -> Result<u32> {
        let known = self.tunnels.get(device).or_else(|| self.others.get(device));
        known.copied().ok_or_else(|| Error::refused(format_args!("find device {device}"), libc::ENODEV))
    }

    /// How packets to each of `addresses` leave this node; `None` where no route leads, or to this node itself.
    pub(crate) fn paths(&mut self, kernel: &mut dyn Route, addresses: &[IpAddr]) -> Result<Vec<Option<Path>>> {
        let hops = kernel.next_hops(addresses)?;
        let unknown: BTreeSet<u32> =
            hops.iter().flatten().map(|hop| hop.device).filter(|index| self.name(*index).is_none()).collect();
        for index in unknown {
            if let Some(link) = kernel.link_by_index(index)? {
                self.others.insert(link.name.as_str().into(), index);
            }
        }
        self.on_paths.extend(hops.iter().flatten().map(|hop| hop.device));
        let path = |hop: podwire_kernel::route::NextHop| {
            let device = self.name(hop.device).filter(|_| hop.kind == RouteKind::Unicast)?;
            Some(Path { device: device.clone(), gateway: hop.gateway })
        };
        Ok(hops.into_iter().map(|hop| hop.and_then(path)).collect())
    }
}

/// What it took to have a tunnel as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Nothing: it is so already.
    Nothing,
    /// It was made, or changed.
    Changed,
    /// It was made in place of another, and has lost all that had hung on that.
    Remade,
}

/// Edits, each on behalf of the entry at some position.
#[derive(Default)]
struct Edits {
    of: Vec<usize>,
    edits: Vec<Edit>,
    refused: Vec<(usize, Error)>,
}

impl Edits {
    fn push(&mut self, at: usize, edit: Result<Edit>) {
        match edit {
            Ok(edit) => {
                self.of.push(at);
                self.edits.push(edit);
            }
            Err(error) => self.refused.push((at, error)),
        }
    }

    /// What is there already, or gone already, is as good as done.
    fn carry_out(mut self, kernel: &mut dyn Route) -> Result<Vec<(usize, Error)>> {
        for (at, error) in kernel.edit(&self.edits)? {
            let fine = match self.edits.get(at) {
                Some(Edit::AddAddress(_)) => error.already_exists(),
                Some(Edit::ReplaceRoute(_) | Edit::ReplaceNeighbour(_) | Edit::ReplaceFdb(_)) | None => false,
                Some(_) => error.is_not_found(),
            };
            if !fine && let Some(of) = self.of.get(at) {
                self.refused.push((*of, error));
            }
        }
        Ok(self.refused)
    }
}

fn route(destination: IpNet, gateway: Option<IpAddr>, onlink: bool, index: u32) -> RouteEntry {
    let route = match gateway {
        Some(gateway) => RouteEntry::via(destination, gateway, index),
        None => RouteEntry::on_link(destination, index),
    };
    RouteEntry { onlink, protocol: PROTOCOL, ..route }
}

/// Whether a route stands where one of the overlay's would: in the main table, with the kernel's own metric.
fn ranks_as_ours(route: &RouteEntry) -> bool {
    let metric = match Family::of(&route.destination.addr()) {
        Family::V4 => 0,
        Family::V6 => 1024,
    };
    route.table == TABLE_MAIN && route.metric == metric
}

/// The link as a tunnel, if it can be one of the overlay's. What the kernel does not know of it is as in `wanted`.
pub(crate) fn read_tunnel(link: &Link, wanted: Option<&Tunnel>) -> Option<Tunnel> {
    let kind = match &link.kind {
        _ if !link.name.starts_with(PREFIX) => return None,
        LinkKind::Vxlan(vxlan) => TunnelKind::Vxlan(vxlan.clone()),
        LinkKind::Ipip(ipip) => TunnelKind::Ipip(*ipip),
        // The link does not say.
        LinkKind::Wireguard => TunnelKind::Wireguard { key: None, port: 0 },
        LinkKind::Tun => match wanted {
            Some(Tunnel { kind: TunnelKind::Tun { listen }, .. }) => TunnelKind::Tun { listen: *listen },
            _ => TunnelKind::Tun { listen: SocketAddr::from(([0, 0, 0, 0], 0)) },
        },
        _ => return None,
    };
    Some(Tunnel { device: link.name.as_str().into(), mac: link.mac, mtu: link.mtu, up: link.up, kind })
}

/// The overlay's neighbours and FDB entries of one device.
fn hanging_on(kernel: &mut dyn Route, site: &Site, device: &Name, index: u32) -> Result<Vec<Entry>> {
    let mut neighbours = kernel.neighbours(Some(index))?;
    neighbours.retain(|found| Family::of(&found.address) == site.family());
    let neighbours = neighbours.iter().filter_map(|found| read_neighbour(device, found));
    let fdb = kernel.fdb(Some(index))?;
    Ok(neighbours.chain(fdb.iter().filter_map(|found| read_fdb(device, found))).collect())
}

fn read_neighbour(device: &Name, found: &Neighbour) -> Option<Entry> {
    match *found {
        Neighbour { address, mac: Some(mac), state: NeighbourState::Permanent, .. } => {
            Some(Entry::Neighbour { device: device.clone(), address, mac })
        }
        _ => None,
    }
}

fn read_fdb(device: &Name, found: &FdbEntry) -> Option<Entry> {
    match *found {
        FdbEntry { table: FdbTable::Own, mac, remote: Some(remote), state, .. } if is_permanent(state) => {
            Some(Entry::Fdb { device: device.clone(), mac, remote })
        }
        _ => None,
    }
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
fn put_tunnel(kernel: &mut dyn Kernel, tunnel: &Tunnel) -> Result<(u32, Done)> {
    let found = kernel.link(&tunnel.device)?;
    let known = found.as_ref().and_then(|link| Some((link.index, read_tunnel(link, Some(tunnel))?)));
    let done = match &known {
        Some((index, there)) if is_changeable(&there.kind, &tunnel.kind) => {
            let changed = change_tunnel(kernel, *index, there, tunnel)?;
            return Ok((*index, if changed { Done::Changed } else { Done::Nothing }));
        }
        Some((index, _)) => {
            kernel.delete_link(*index)?;
            Done::Remade
        }
        // Something else of that name is not ours to delete; the kernel says so when the device is created.
        None => Done::Changed,
    };
    let kind = match &tunnel.kind {
        TunnelKind::Vxlan(vxlan) => NewLinkKind::Vxlan(vxlan.clone()),
        TunnelKind::Ipip(ipip) => NewLinkKind::Ipip(*ipip),
        TunnelKind::Wireguard { .. } => NewLinkKind::Wireguard,
        TunnelKind::Tun { .. } => NewLinkKind::Tun,
    };
    // Once it is up, it listens: not before it knows where.
    let listens = matches!(kind, NewLinkKind::Wireguard);
    let new = NewLink { mac: tunnel.mac, mtu: Some(tunnel.mtu), up: !listens, ..NewLink::new(&tunnel.device, kind) };
    let index = kernel.create_link(&new)?.index;
    if listens {
        wireguard::configure(kernel, index, &tunnel.kind)?;
        kernel.change_link(index, &[LinkChange::Up(true)]).map_err(|error| wireguard::explained(error, tunnel))?;
    }
    Ok((index, done))
}

/// Whether a device of the one kind becomes one of the other without being made anew.
fn is_changeable(from: &TunnelKind, to: &TunnelKind) -> bool {
    matches!((from, to), (TunnelKind::Wireguard { .. }, TunnelKind::Wireguard { .. })) || from == to
}

/// Changes in place what is not as in `tunnel`; returns whether anything was not.
fn change_tunnel(kernel: &mut dyn Kernel, index: u32, there: &Tunnel, tunnel: &Tunnel) -> Result<bool> {
    let configured = match tunnel.kind {
        TunnelKind::Wireguard { .. } if wireguard::read(kernel, &tunnel.device, index)?.0 != tunnel.kind => {
            wireguard::configure(kernel, index, &tunnel.kind)
                .map_err(|error| wireguard::explained(error, tunnel))
                .map(|()| true)?
        }
        _ => false,
    };
    let mut changes = Vec::new();
    if let Some(mac) = tunnel.mac.filter(|mac| there.mac != Some(*mac)) {
        changes.push(LinkChange::Mac(mac));
    }
    if there.mtu != tunnel.mtu {
        changes.push(LinkChange::Mtu(tunnel.mtu));
    }
    if there.up != tunnel.up {
        changes.push(LinkChange::Up(tunnel.up));
    }
    if !changes.is_empty() {
        kernel.change_link(index, &changes).map_err(|error| wireguard::explained(error, tunnel))?;
    }
    Ok(configured || !changes.is_empty())
}
