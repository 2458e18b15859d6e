mod check;
mod vlans;

use std::{
    collections::BTreeMap,
    fmt::{Arguments, Display},
    net::IpAddr,
};

use podwire_model::{Family, IpNet};

use self::check::check_mtu;
use super::{
    Address, BridgePort, BridgeVlans, FdbEntry, FdbTable, Ipip, Link, LinkChange, LinkKind, Mac, Neighbour,
    NeighbourState, NewLink, NewLinkKind, NextHop, Peer, PortVlans, Route, RouteEntry, RouteFilter, RouteKind,
    RouteProtocol, TABLE_MAIN, Vxlan, socket::check_name, types::family,
};
use crate::{Error, Result, wireguard::FakeDevice};

/// One network namespace in memory, for tests of what is built upon [`Route`]: it refuses what the kernel refuses.
///
/// It begins with `lo`, up. Networks of addresses get their connected routes, and both go with their device, as in the
/// kernel. It does not invent IPv6 link-local addresses, routes of the local table, or learned neighbours. Links that
/// are put into another namespace are gone from it.
#[derive(Debug, Clone, Default)]
pub struct FakeRoute {
    links: BTreeMap<u32, Link>,
    addresses: Vec<Address>,
    routes: Vec<RouteEntry>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    fdb: BTreeMap<(u32, bool, Mac), FdbEntry>,
    /// Whether it is native, by port and VLAN.
    vlans: BTreeMap<(u32, u16), bool>,
    pub(crate) wireguards: BTreeMap<u32, FakeDevice>,
    last_index: u32,
    operations: usize,
    fail_every: Option<usize>,
}

impl FakeRoute {
    /// A new network namespace.
    pub fn new() -> Self {
        let mut fake = Self::default();
        let lo = fake.add_device("lo");
        fake.set_up(lo, true);
        fake
    }

    /// Adds a physical device that is down, and returns its index.
    pub fn add_device(&mut self, name: &str) -> u32 {
        let mac = Some(self.mac());
        self.insert(name, LinkKind::Other(String::new()), mac, None)
    }

    /// From now on lets every `n`-th operation fail with EBUSY, before it changes anything. Zero: none.
    pub fn fail_every(&mut self, n: usize) {
        self.fail_every = Some(n).filter(|n| *n > 0);
    }

    /// How many operations were asked for so far, also failed ones.
    pub fn operations(&self) -> usize {
        self.operations
    }

    pub(crate) fn step(&mut self, what: Arguments<'_>) -> Result<()> {
        self.operations += 1;
        match self.fail_every {
            Some(n) if self.operations.is_multiple_of(n) => Err(Error::refused(what, libc::EBUSY)),
            _ => Ok(()),
        }
    }

    pub(crate) fn kind_of(&self, index: u32) -> Option<&LinkKind> {
        self.links.get(&index).map(|link| &link.kind)
    }

    fn insert(&mut self, name: &str, kind: LinkKind, mac: Option<Mac>, mtu: Option<u32>) -> u32 {
        self.last_index += 1;
        let link = Link {
            index: self.last_index,
            name: name.to_owned(),
            kind,
            mac: mac.or_else(|| Some(self.mac())),
            mtu: mtu.unwrap_or(1500),
            up: false,
            running: false,
            master: None,
            alias: None,
            peer_index: None,
            peer_netns_id: None,
            parent: None,
            port: None,
            vlans: None,
            promiscuous: false,
            all_multicast: false,
            tx_queue_length: 1000,
        };
        self.links.insert(self.last_index, link);
        self.last_index
    }

    fn mac(&self) -> Mac {
        let [.., a, b] = self.last_index.to_be_bytes();
        Mac([0x02, 0, 0, 0, a, b])
    }

    fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    fn at(&mut self, index: u32, what: impl Display) -> Result<&mut Link> {
        self.links.get_mut(&index).ok_or_else(|| Error::refused(what, libc::ENODEV))
    }

    fn mtu_of(&self, index: u32) -> Option<u32> {
        self.links.get(&index).map(|link| link.mtu)
    }

    fn add_peer(&mut self, near: u32, peer: &Peer<'_>) {
        let far = (self.last_index + 1, peer.netns.map(|_| 0));
        if peer.netns.is_none() {
            let index = self.insert(peer.name, LinkKind::Veth, peer.mac, peer.mtu);
            if let Some(link) = self.links.get_mut(&index) {
                link.peer_index = Some(near);
            }
        }
        if let Some(link) = self.links.get_mut(&near) {
            (link.peer_index, link.peer_netns_id) = (Some(far.0), far.1);
        }
    }

    fn set_master(&mut self, index: u32, master: Option<u32>) {
        if let Some(link) = self.links.get_mut(&index) {
            link.master = master;
            link.port = master.map(|_| BridgePort {
                hairpin: false,
                learning: true,
                flood: true,
                isolated: false,
                locked: false,
            });
        }
        self.set_default_vlan(index, master);
        if master.is_none() {
            self.fdb.retain(|(device, own, _), _| *device != index || *own);
        }
    }

    fn set_up(&mut self, index: u32, up: bool) {
        let Some(link) = self.links.get_mut(&index).filter(|link| link.up != up) else { return };
        (link.up, link.running) = (up, up);
        if up {
            for address in self.addresses.clone().iter().filter(|address| address.device == index) {
                self.connect(address);
            }
        } else {
            self.routes.retain(|route| route.device != Some(index));
            self.neighbours.retain(|(device, _), entry| *device != index || entry.state == NeighbourState::Permanent);
        }
    }

    /// Adds the route to an address's own network.
    fn connect(&mut self, address: &Address) {
        let net = address.net;
        if net.prefix_len() == net.max_prefix_len() && family(net) == Family::V4 {
            return;
        }
        let mut route = RouteEntry::on_link(net.trunc(), address.device);
        route.protocol = RouteProtocol::KERNEL;
        match family(net) {
            Family::V4 => route.source = Some(net.addr()),
            Family::V6 => route.metric = 256,
        }
        self.routes.push(route);
    }

    fn remove(&mut self, index: u32) {
        self.set_up(index, false);
        self.links.remove(&index);
        self.wireguards.remove(&index);
        self.addresses.retain(|address| address.device != index);
        self.neighbours.retain(|(device, _), _| *device != index);
        self.fdb.retain(|(device, ..), _| *device != index);
        let ports: Vec<u32> = self.links.values().filter(|l| l.master == Some(index)).map(|l| l.index).collect();
        for port in ports {
            self.set_master(port, None);
        }
    }

    fn same_route(&self, route: &RouteEntry) -> Option<usize> {
        let key = |route: &RouteEntry| (route.table, route.destination, route.metric);
        self.routes.iter().position(|other| key(other) == key(route))
    }

    fn next_hop(&self, to: IpAddr) -> Option<NextHop> {
        if self.addresses.iter().any(|address| address.net.addr() == to) {
            return Some(NextHop { kind: RouteKind::Local, device: 1, gateway: None });
        }
        let leads = |route: &&RouteEntry| route.table == TABLE_MAIN && route.destination.contains(&to);
        let nearer = |route: &&RouteEntry| (route.destination.prefix_len(), std::cmp::Reverse(route.metric));
        let best = self.routes.iter().filter(leads).max_by_key(nearer)?;
        (best.kind == RouteKind::Unicast)
            .then(|| Some(NextHop { kind: best.kind, device: best.device?, gateway: best.gateway }))
            .flatten()
    }

    fn put_route(&mut self, route: &RouteEntry, exclusive: bool) -> Result<()> {
        let what = format_args!("set route {route}");
        self.step(what)?;
        let route = self.check_route(route, what)?;
        match self.same_route(&route) {
            Some(_) if exclusive => return Err(Error::refused(what, libc::EEXIST)),
            Some(at) => self.routes[at] = route,
            None => self.routes.push(route),
        }
        Ok(())
    }
}

impl Route for FakeRoute {
    fn links(&mut self) -> Result<Vec<Link>> {
        self.step(format_args!("list links"))?;
        Ok(self.links.values().cloned().collect())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.step(format_args!("look up link {name}"))?;
        check_name(name)?;
        Ok(self.by_name(name).cloned())
    }

    fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.step(format_args!("look up link #{index}"))?;
        Ok(self.links.get(&index).cloned())
    }

    fn create_link(&mut self, link: &NewLink<'_>) -> Result<Link> {
        let what = format_args!("create link {}", link.name);
        self.step(what)?;
        self.check_new(link, what)?;
        let (kind, mtu) = match &link.kind {
            NewLinkKind::Bridge | NewLinkKind::VlanBridge => (LinkKind::Bridge, link.mtu),
            NewLinkKind::Veth(_) => (LinkKind::Veth, link.mtu),
            NewLinkKind::Dummy => (LinkKind::Dummy, link.mtu),
            NewLinkKind::Ifb => (LinkKind::Ifb, link.mtu),
            NewLinkKind::Wireguard => (LinkKind::Wireguard, link.mtu.or(Some(1420))),
            NewLinkKind::Tun => (LinkKind::Tun, link.mtu),
            NewLinkKind::Macvlan { mode, lower, .. } => (LinkKind::Macvlan(*mode), link.mtu.or(self.mtu_of(*lower))),
            NewLinkKind::Ipvlan { mode, lower } => (LinkKind::Ipvlan(*mode), link.mtu.or(self.mtu_of(*lower))),
            NewLinkKind::Vlan { id, lower } => (LinkKind::Vlan(*id), link.mtu.or(self.mtu_of(*lower))),
            NewLinkKind::Ipip(ipip) => {
                let lower = ipip.device.and_then(|device| self.mtu_of(device)).map(|lower| lower - 20);
                (LinkKind::Ipip(*ipip), link.mtu.or(lower))
            }
            NewLinkKind::Vxlan(vxlan) => {
                let lower = vxlan.device.and_then(|device| self.mtu_of(device)).map(|lower| lower - 50);
                (LinkKind::Vxlan(vxlan.clone()), link.mtu.or(lower))
            }
        };
        let index = self.insert(link.name, kind, link.mac, mtu);
        match link.kind {
            NewLinkKind::Tun | NewLinkKind::Ipip(_) | NewLinkKind::Wireguard => self.at(index, what)?.mac = None,
            NewLinkKind::Bridge | NewLinkKind::VlanBridge => {
                let filtering = matches!(link.kind, NewLinkKind::VlanBridge);
                self.at(index, what)?.vlans = Some(BridgeVlans { filtering, default: 1 });
            }
            _ => {}
        }
        if let NewLinkKind::Veth(peer) = &link.kind {
            self.add_peer(index, peer);
        }
        match &link.kind {
            NewLinkKind::Vxlan(Vxlan { device, .. }) | NewLinkKind::Ipip(Ipip { device, .. }) => {
                self.at(index, what)?.peer_index = *device;
            }
            kind => self.at(index, what)?.peer_index = kind.lower().or(self.at(index, what)?.peer_index),
        }
        self.set_master(index, link.master);
        self.set_up(index, link.up);
        self.at(index, what).cloned()
    }

    fn change_link(&mut self, index: u32, changes: &[LinkChange<'_>]) -> Result<()> {
        let what = format_args!("change link #{index}: {changes:?}");
        self.step(what)?;
        for change in changes {
            let taken =
                matches!(change, LinkChange::Name(name) if self.by_name(name).is_some_and(|l| l.index != index));
            let link = self.at(index, what)?;
            match *change {
                LinkChange::Up(up) => self.set_up(index, up),
                LinkChange::Mtu(mtu) => {
                    check_mtu(Some(mtu), what)?;
                    link.mtu = mtu;
                }
                LinkChange::Promiscuous(on) => link.promiscuous = on,
                LinkChange::AllMulticast(on) => link.all_multicast = on,
                LinkChange::TxQueueLength(length) => link.tx_queue_length = length,
                LinkChange::Mac(mac) => link.mac = Some(mac),
                LinkChange::Master(master) => {
                    if let Some(master) = master {
                        self.check_master(master, what)?;
                    }
                    self.set_master(index, master);
                }
                LinkChange::Name(name) => {
                    check_name(name)?;
                    if taken {
                        return Err(Error::refused(what, libc::EEXIST));
                    }
                    name.clone_into(&mut link.name);
                }
                LinkChange::Alias(alias) => link.alias = Some(alias.to_owned()).filter(|alias| !alias.is_empty()),
                LinkChange::Netns(_) => self.remove(index),
                LinkChange::Hairpin(on) => port(link, what)?.hairpin = on,
                LinkChange::Learning(on) => port(link, what)?.learning = on,
                LinkChange::Flood(on) => port(link, what)?.flood = on,
                LinkChange::Isolated(on) => port(link, what)?.isolated = on,
                LinkChange::Locked(on) => port(link, what)?.locked = on,
            }
        }
        Ok(())
    }

    fn delete_link(&mut self, index: u32) -> Result<()> {
        let what = format_args!("delete link #{index}");
        self.step(what)?;
        let link = self.at(index, what)?.clone();
        if matches!(link.kind, LinkKind::Other(_)) {
            return Err(Error::refused(what, libc::EOPNOTSUPP));
        }
        if let (LinkKind::Veth, Some(peer), None) = (&link.kind, link.peer_index, link.peer_netns_id) {
            self.remove(peer);
        }
        self.remove(index);
        Ok(())
    }

    fn addresses(&mut self, device: Option<u32>) -> Result<Vec<Address>> {
        self.step(format_args!("list addresses"))?;
        if let Some(device) = device {
            self.at(device, "list addresses")?;
        }
        let wanted = |address: &&Address| device.is_none_or(|device| address.device == device);
        Ok(self.addresses.iter().filter(wanted).cloned().collect())
    }

    fn add_address(&mut self, address: &Address) -> Result<()> {
        let what = format_args!("add address {} to link #{}", address.net, address.device);
        self.step(what)?;
        let up = self.at(address.device, what)?.up;
        if self.addresses.iter().any(|other| (other.device, other.net) == (address.device, address.net)) {
            return Err(Error::refused(what, libc::EEXIST));
        }
        let no_dad = address.no_dad && family(address.net) == Family::V6;
        self.addresses.push(Address { no_dad, ..address.clone() });
        if up {
            self.connect(address);
        }
        Ok(())
    }

    fn delete_address(&mut self, address: &Address) -> Result<()> {
        let what = format_args!("delete address {} of link #{}", address.net, address.device);
        self.step(what)?;
        self.at(address.device, what)?;
        let same = |other: &Address| (other.device, other.net) == (address.device, address.net);
        let at = self.addresses.iter().position(same).ok_or_else(|| Error::refused(what, libc::EADDRNOTAVAIL))?;
        self.addresses.remove(at);
        let (net, ip): (IpNet, _) = (address.net.trunc(), address.net.addr());
        self.routes.retain(|route| {
            let connected = route.protocol == RouteProtocol::KERNEL && route.destination == net;
            route.device != Some(address.device) || !(connected || route.source == Some(ip))
        });
        Ok(())
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<RouteEntry>> {
        self.step(format_args!("list routes"))?;
        Ok(self.routes.iter().filter(|route| filter.admits(route)).cloned().collect())
    }

    fn add_route(&mut self, route: &RouteEntry) -> Result<()> {
        self.put_route(route, true)
    }

    fn replace_route(&mut self, route: &RouteEntry) -> Result<()> {
        self.put_route(route, false)
    }

    fn delete_route(&mut self, route: &RouteEntry) -> Result<()> {
        let what = format_args!("delete route {route}");
        self.step(what)?;
        let at = self.routes.iter().position(|other| other == route);
        self.routes.remove(at.ok_or_else(|| Error::refused(what, libc::ESRCH))?);
        Ok(())
    }

    fn neighbours(&mut self, device: Option<u32>) -> Result<Vec<Neighbour>> {
        self.step(format_args!("list neighbours"))?;
        let wanted = |entry: &&Neighbour| device.is_none_or(|device| entry.device == device);
        Ok(self.neighbours.values().filter(wanted).cloned().collect())
    }

    fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let what = format_args!("set neighbour {} on link #{}", neighbour.address, neighbour.device);
        self.step(what)?;
        self.at(neighbour.device, what)?;
        let key = (neighbour.device, neighbour.address);
        let mac = neighbour.mac.or_else(|| self.neighbours.get(&key)?.mac);
        if neighbour.state == NeighbourState::Permanent && mac.is_none() {
            return Err(Error::refused(what, libc::EINVAL));
        }
        self.neighbours.insert(key, Neighbour { mac, ..neighbour.clone() });
        Ok(())
    }

    fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let what = format_args!("delete neighbour {} on link #{}", neighbour.address, neighbour.device);
        self.step(what)?;
        self.at(neighbour.device, what)?;
        let gone = self.neighbours.remove(&(neighbour.device, neighbour.address));
        gone.map(drop).ok_or_else(|| Error::refused(what, libc::ENOENT))
    }

    fn port_vlans(&mut self) -> Result<Vec<PortVlans>> {
        self.step(format_args!("list VLANs"))?;
        Ok(self.list_vlans())
    }

    fn add_port_vlans(&mut self, vlans: &PortVlans) -> Result<()> {
        let what = format_args!("put link #{} into VLANs", vlans.device);
        self.step(what)?;
        self.put_vlans(vlans, what)
    }

    fn delete_port_vlans(&mut self, vlans: &PortVlans) -> Result<()> {
        let what = format_args!("take link #{} out of VLANs", vlans.device);
        self.step(what)?;
        self.remove_vlans(vlans, what)
    }

    fn fdb(&mut self, device: Option<u32>) -> Result<Vec<FdbEntry>> {
        self.step(format_args!("list forwarding entries"))?;
        let wanted = |entry: &&FdbEntry| device.is_none_or(|device| entry.device == device);
        Ok(self.fdb.values().filter(wanted).cloned().collect())
    }

    fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let what = format_args!("set forwarding entry {} of link #{}", entry.mac, entry.device);
        self.step(what)?;
        self.check_fdb(entry, what)?;
        self.fdb.insert(fdb_key(entry), entry.clone());
        Ok(())
    }

    fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<()> {
        let what = format_args!("delete forwarding entry {} of link #{}", entry.mac, entry.device);
        self.step(what)?;
        self.check_fdb(entry, what)?;
        let same = |found: &FdbEntry| found.remote == entry.remote;
        match self.fdb.get(&fdb_key(entry)).is_some_and(same) {
            true => _ = self.fdb.remove(&fdb_key(entry)),
            false => return Err(Error::refused(what, libc::ENOENT)),
        }
        Ok(())
    }

    fn next_hops(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<NextHop>>> {
        self.step(format_args!("look up routes"))?;
        Ok(addresses.iter().map(|to| self.next_hop(*to)).collect())
    }
}

fn fdb_key(entry: &FdbEntry) -> (u32, bool, Mac) {
    (entry.device, entry.table == FdbTable::Own, entry.mac)
}

fn port<'a>(link: &'a mut Link, what: Arguments<'_>) -> Result<&'a mut BridgePort> {
    link.port.as_mut().ok_or_else(|| Error::refused(what, libc::EOPNOTSUPP))
}
