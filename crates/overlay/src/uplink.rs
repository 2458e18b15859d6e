//! Which interface carries encapsulated packets.

use std::net::IpAddr;

use podwire_kernel::route::{Address, Link, Route, RouteFilter, RouteKind, Scope};
use podwire_model::{Family, Node};

use crate::{Error, plan::Uplink};

/// Chooses the uplink: the first of `wanted` (interface names or addresses, `--iface`) that exists; with none wanted, the
/// interface of the default route, or the one that holds an InternalIP of the node. Its address is the one named, an
/// InternalIP of the node, or its first.
///
/// # Errors
/// No such interface, or it has no address of the family: says what there is instead. The kernel could not be read.
pub fn choose(kernel: &mut dyn Route, wanted: &[String], node: &Node, family: Family) -> Result<Uplink, Error> {
    let links = kernel.links()?;
    let mut addresses = kernel.addresses(None)?;
    addresses.retain(|found| Family::of(&found.net.addr()) == family && found.scope == Scope::Global);
    let facts = Facts { links, addresses, node };
    let (link, address) = if wanted.is_empty() {
        let link = match default_device(kernel, family)? {
            Some(index) => facts.links.iter().find(|link| link.index == index),
            None => facts.node.internal_ips.iter().find_map(|ip| facts.holder(ip)),
        };
        let link = link.ok_or_else(|| {
            facts.nothing(
                "there is no default route and no interface has an InternalIP of the node; name one with --iface",
            )
        })?;
        (link, facts.address(link))
    } else {
        let found = wanted.iter().find_map(|wanted| match wanted.parse::<IpAddr>() {
            Ok(ip) => facts.holder(&ip).map(|link| (link, Some(ip))),
            Err(_) => facts.links.iter().find(|link| link.name == *wanted).map(|link| (link, facts.address(link))),
        });
        found.ok_or_else(|| facts.nothing(&format!("--iface {}: no such interface", wanted.join(", "))))?
    };
    let address = address.ok_or_else(|| facts.nothing(&format!("{} has no {family:?} address", link.name)))?;
    Ok(Uplink { name: link.name.as_str().into(), index: link.index, mtu: link.mtu, address })
}

/// The device of the default route with the lowest metric.
fn default_device(kernel: &mut dyn Route, family: Family) -> Result<Option<u32>, Error> {
    let routes = kernel.routes(&RouteFilter { family: Some(family), ..RouteFilter::MAIN })?;
    let defaults =
        routes.into_iter().filter(|route| route.destination.prefix_len() == 0 && route.kind == RouteKind::Unicast);
    Ok(defaults.filter_map(|route| Some((route.metric, route.device?))).min().map(|(_, device)| device))
}

struct Facts<'a> {
    links: Vec<Link>,
    addresses: Vec<Address>,
    node: &'a Node,
}

impl Facts<'_> {
    fn holder(&self, ip: &IpAddr) -> Option<&Link> {
        let device = self.addresses.iter().find(|found| found.net.addr() == *ip)?.device;
        self.links.iter().find(|link| link.index == device)
    }

    fn address(&self, link: &Link) -> Option<IpAddr> {
        let held: Vec<_> =
            self.addresses.iter().filter(|found| found.device == link.index).map(|found| found.net.addr()).collect();
        self.node.internal_ips.iter().find(|ip| held.contains(ip)).or(held.first()).copied()
    }

    fn nothing(&self, problem: &str) -> Error {
        let describe = |link: &Link| {
            let own = self.addresses.iter().filter(|found| found.device == link.index);
            let own: Vec<_> = own.map(|found| found.net.addr().to_string()).collect();
            format!("{} [{}]", link.name, own.join(" "))
        };
        let present: Vec<_> = self.links.iter().map(describe).collect();
        Error::Site(format!("no uplink for node {}: {problem}; interfaces: {}", self.node.name, present.join(", ")))
    }
}
