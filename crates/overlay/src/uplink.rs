//! Which interface carries encapsulated packets.

use std::net::IpAddr;

use podwire_kernel::route::{Address, Link, Route, RouteFilter, RouteKind, Scope};
use podwire_model::{Family, Node};

use crate::{Error, plan::Uplink};

/// Chooses the uplink: the first of `wanted` (interface names or addresses, `--iface`) that exists; with none wanted,
/// the interface of the default route, or the one that holds an InternalIP of the node. Its address is the one named,
/// an InternalIP of the node, or its first.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podwire_kernel::route::{FakeRoute, LinkChange, RouteEntry};

    use super::*;

    /// eth0 172.25.2.1 and 172.25.2.11, eth1 192.0.2.1.
    fn kernel() -> FakeRoute {
        let mut kernel = FakeRoute::new();
        for (name, nets) in [("eth0", &["172.25.2.11/24", "172.25.2.1/24"][..]), ("eth1", &["192.0.2.1/24"])] {
            let index = kernel.add_device(name);
            kernel.change_link(index, &[LinkChange::Up(true)]).unwrap();
            for net in nets {
                kernel.add_address(&Address::new(index, net.parse::<ipnet::IpNet>().unwrap())).unwrap();
            }
        }
        kernel
    }

    fn node(ip: &str) -> Node {
        Node {
            name: "node1".into(),
            internal_ips: vec![ip.parse().unwrap()],
            pod_cidrs: vec![],
            zone: None,
            annotations: BTreeMap::new(),
            deleting: false,
        }
    }

    fn chosen(kernel: &mut FakeRoute, wanted: &[&str], ip: &str) -> Result<(String, String), String> {
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let uplink = choose(kernel, &wanted, &node(ip), Family::V4).map_err(|error| error.to_string())?;
        Ok((uplink.name.to_string(), uplink.address.to_string()))
    }

    fn default_via(kernel: &mut FakeRoute, gateway: &str, device: &str, metric: u32) {
        let device = kernel.link(device).unwrap().unwrap().index;
        let default: ipnet::IpNet = "0.0.0.0/0".parse().unwrap();
        let route = RouteEntry { metric, ..RouteEntry::via(default, gateway.parse().unwrap(), device) };
        kernel.add_route(&route).unwrap();
    }

    #[test]
    fn the_best_default_route_decides_and_the_internal_ip_is_preferred() {
        let mut kernel = kernel();
        default_via(&mut kernel, "192.0.2.254", "eth1", 200);
        assert_eq!(chosen(&mut kernel, &[], "172.25.2.1"), Ok(("eth1".into(), "192.0.2.1".into())));
        default_via(&mut kernel, "172.25.2.254", "eth0", 100);
        assert_eq!(chosen(&mut kernel, &[], "172.25.2.1"), Ok(("eth0".into(), "172.25.2.1".into())));
        assert_eq!(chosen(&mut kernel, &[], "203.0.113.1"), Ok(("eth0".into(), "172.25.2.11".into())));
    }

    #[test]
    fn without_a_default_route_the_holder_of_the_internal_ip_is_it() {
        assert_eq!(chosen(&mut kernel(), &[], "192.0.2.1"), Ok(("eth1".into(), "192.0.2.1".into())));
        let message = chosen(&mut kernel(), &[], "203.0.113.1").unwrap_err();
        assert!(message.contains("--iface") && message.contains("eth1 [192.0.2.1]"), "{message}");
    }

    #[test]
    fn the_first_wanted_that_exists_is_it() {
        let mut kernel = kernel();
        let eth1 = Ok(("eth1".into(), "192.0.2.1".into()));
        assert_eq!(chosen(&mut kernel, &["ens3", "eth1", "eth0"], "172.25.2.1"), eth1);
        assert_eq!(chosen(&mut kernel, &["192.0.2.1"], "172.25.2.1"), eth1);
        assert_eq!(chosen(&mut kernel, &["172.25.2.11"], "172.25.2.1"), Ok(("eth0".into(), "172.25.2.11".into())));
        let message = chosen(&mut kernel, &["ens3"], "172.25.2.1").unwrap_err();
        assert!(message.contains("--iface ens3: no such interface"), "{message}");
    }
}
