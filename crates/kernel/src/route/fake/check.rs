//! What the kernel refuses.

use std::{fmt::Arguments, net::IpAddr};

use podwire_model::Family;

use super::FakeRoute;
use crate::{
    Error, Result,
    route::{
        FdbEntry, FdbTable, Ipip, Link, LinkKind, Mac, NewLink, NewLinkKind, RouteEntry, RouteKind, Scope, TABLE_MAIN,
        Vxlan, socket::check_name, types::family,
    },
};

const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

impl FakeRoute {
    pub(super) fn check_free(&self, name: &str, what: Arguments<'_>) -> Result<()> {
        check_name(name)?;
        if self.by_name(name).is_some() { Err(Error::refused(what, libc::EEXIST)) } else { Ok(()) }
    }

    pub(super) fn check_new(&self, link: &NewLink<'_>, what: Arguments<'_>) -> Result<()> {
        self.check_free(link.name, what)?;
        check_mtu(link.mtu, what)?;
        match &link.kind {
            NewLinkKind::Bridge
            | NewLinkKind::VlanBridge
            | NewLinkKind::Dummy
            | NewLinkKind::Ifb
            | NewLinkKind::Wireguard => {}
            NewLinkKind::Tun if link.mac.is_some() => return Err(Error::refused(what, libc::EOPNOTSUPP)),
            NewLinkKind::Tun => {}
            NewLinkKind::Macvlan { lower, .. } | NewLinkKind::Ipvlan { lower, .. } => self.check_lower(*lower, what)?,
            NewLinkKind::Vlan { id, .. } if !(1..4095).contains(id) => return Err(Error::refused(what, libc::ERANGE)),
            NewLinkKind::Vlan { lower, .. } => self.check_lower(*lower, what)?,
            NewLinkKind::Ipip(ipip) => self.check_ipip(ipip, what)?,
            NewLinkKind::Veth(peer) => {
                check_mtu(peer.mtu, what)?;
                match peer.netns {
                    None if peer.name == link.name => return Err(Error::refused(what, libc::EEXIST)),
                    None => self.check_free(peer.name, what)?,
                    Some(_) => check_name(peer.name)?,
                }
            }
            NewLinkKind::Vxlan(vxlan) => self.check_vxlan(vxlan, what)?,
        }
        match link.master {
            Some(master) => self.check_master(master, what),
            None => Ok(()),
        }
    }

    pub(super) fn check_vxlan(&self, new: &Vxlan, what: Arguments<'_>) -> Result<()> {
        if new.id >= 1 << 24 {
            return Err(Error::refused(what, libc::ERANGE));
        }
        if new.device.is_some_and(|device| !self.links.contains_key(&device)) {
            return Err(Error::refused(what, libc::ENODEV));
        }
        // One for IPv4 and one for IPv6 do not meet.
        let known = |vxlan: &Vxlan| (vxlan.id, vxlan.port, vxlan.local.is_some_and(|local| local.is_ipv6()));
        let same = |link: &Link| matches!(&link.kind, LinkKind::Vxlan(old) if known(old) == known(new));
        if self.links.values().any(same) { Err(Error::refused(what, libc::EEXIST)) } else { Ok(()) }
    }

    fn check_lower(&self, lower: u32, what: Arguments<'_>) -> Result<()> {
        if self.links.contains_key(&lower) { Ok(()) } else { Err(Error::refused(what, libc::ENODEV)) }
    }

    fn check_ipip(&self, new: &Ipip, what: Arguments<'_>) -> Result<()> {
        let same = |link: &Link| matches!(link.kind, LinkKind::Ipip(old) if old.local == new.local);
        if self.links.values().any(same) { Err(Error::refused(what, libc::EEXIST)) } else { Ok(()) }
    }

    pub(super) fn check_master(&self, master: u32, what: Arguments<'_>) -> Result<()> {
        match self.links.get(&master) {
            None => Err(Error::refused(what, libc::EINVAL)),
            Some(link) if link.kind != LinkKind::Bridge => Err(Error::refused(what, libc::EOPNOTSUPP)),
            Some(_) => Ok(()),
        }
    }

    /// The route as the kernel would hold it, or why it would not.
    pub(super) fn check_route(&self, route: &RouteEntry, what: Arguments<'_>) -> Result<RouteEntry> {
        let refuse = |errno| Err(Error::refused(what, errno));
        let mut route = route.clone();
        match family(route.destination) {
            Family::V4 if route.destination.trunc() != route.destination => return refuse(libc::EINVAL),
            Family::V4 => {}
            Family::V6 => {
                (route.destination, route.scope) = (route.destination.trunc(), Scope::Global);
                route.metric = if route.metric == 0 { 1024 } else { route.metric };
            }
        }
        if route.kind.drops() {
            return Ok(route);
        }
        if let Some(device) = route.device {
            match self.links.get(&device) {
                None => return refuse(libc::ENODEV),
                Some(link) if !link.up => return refuse(libc::ENETDOWN),
                Some(_) => {}
            }
        }
        match (route.gateway, route.device) {
            (None, None) => return refuse(libc::ENODEV),
            (Some(_), None) if route.onlink => return refuse(libc::ENODEV),
            (Some(_), _) if route.onlink => {}
            (Some(gateway), device) => {
                if family(route.destination) == Family::V4 && route.scope != Scope::Global {
                    return refuse(libc::ENETUNREACH);
                }
                match self.on_link(gateway, device) {
                    Some(device) => route.device = Some(device),
                    None if gateway.is_ipv4() => return refuse(libc::ENETUNREACH),
                    None => return refuse(libc::EHOSTUNREACH),
                }
            }
            (None, Some(_)) => {}
        }
        match route.source {
            Some(source) if !self.addresses.iter().any(|address| address.net.addr() == source) => refuse(libc::EINVAL),
            _ => Ok(route),
        }
    }

    /// The device on whose link `gateway` is.
    pub(super) fn on_link(&self, gateway: IpAddr, device: Option<u32>) -> Option<u32> {
        let near = |route: &&RouteEntry| {
            route.kind == RouteKind::Unicast
                && route.table == TABLE_MAIN
                && route.gateway.is_none()
                && (device.is_none() || route.device == device)
                && route.destination.contains(&gateway)
        };
        let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let found = self.routes.iter().find(near).and_then(|route| route.device);
        found.or(if link_local(gateway) { device } else { None })
    }

    pub(super) fn check_fdb(&mut self, entry: &FdbEntry, what: Arguments<'_>) -> Result<()> {
        let link = self.at(entry.device, what)?;
        match (entry.table, &link.kind) {
            (FdbTable::Own, LinkKind::Vxlan(_)) if entry.remote.is_some() && entry.mac == Mac([0; 6]) => {
                Err(Error::refused(what, libc::EOPNOTSUPP))
            }
            (FdbTable::Own, LinkKind::Vxlan(_)) if entry.remote.is_some() => Ok(()),
            (FdbTable::Own, LinkKind::Vxlan(_)) => Err(Error::refused(what, libc::EINVAL)),
            (FdbTable::Bridge, _) if link.port.is_some() => Ok(()),
            _ => Err(Error::refused(what, libc::EOPNOTSUPP)),
        }
    }
}

pub(super) fn check_mtu(mtu: Option<u32>, what: Arguments<'_>) -> Result<()> {
    if mtu.is_some_and(|mtu| !MTU.contains(&mtu)) { Err(Error::refused(what, libc::EINVAL)) } else { Ok(()) }
}
