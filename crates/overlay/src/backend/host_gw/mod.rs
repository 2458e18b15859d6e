//! host-gw: every node is the router to its own pods. See README.md.

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Peer, Site, Uplink},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "host-gw";

#[derive(Debug)]
struct HostGw;

pub(super) fn configure(_: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(HostGw))
}

impl Backend for HostGw {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        uplink.mtu
    }

    fn lease_data(&self, _: &Site) -> String {
        "null".to_owned()
    }

    fn local(&self, _: &Site) -> Vec<Entry> {
        Vec::new()
    }

    fn peer(&self, _: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let Peer { lease, path } = peer;
        let address = lease.public_ip;
        let problem = match path {
            Some(path) if path.gateway.is_none() => return Ok(vec![super::direct_route(lease, path)]),
            Some(path) => format!(
                "host-gw reaches only nodes on the same network, and {address} is behind a router ({} on {}); use vxlan with \
                 DirectRouting",
                path.gateway.unwrap_or(address),
                path.device
            ),
            None => format!("no route leads to its address {address}"),
        };
        Err(Error::Lease { node: lease.node.to_string(), problem })
    }

    fn needs_path(&self) -> bool {
        true
    }

    fn check(&self, site: &Site) -> Result<(), Error> {
        let Site { node, public_ip, uplink, .. } = site;
        if *public_ip == uplink.address {
            return Ok(());
        }
        Err(Error::Site(format!(
            "host-gw: node {node} publishes {public_ip}, but {} has {}: peers cannot use an address that is translated on \
             the way as a router; use vxlan",
            uplink.name, uplink.address
        )))
    }
}

#[cfg(test)]
mod tests {
    use podwire_model::Lease;

    use super::*;
    use crate::plan::Path;

    fn site() -> Site {
        super::super::tests::site(1)
    }

    #[test]
    fn a_peer_on_the_link_is_the_router_and_any_other_is_refused_by_name() {
        let lease = Lease {
            node: "node2".into(),
            subnet: "10.244.2.0/24".parse().unwrap(),
            public_ip: [172, 25, 2, 2].into(),
            backend: NAME.into(),
            backend_data: "null".into(),
        };
        let path = |gateway: Option<[u8; 4]>| Path { device: "eth1".into(), gateway: gateway.map(Into::into) };
        let near = HostGw.peer(&site(), Peer { lease: &lease, path: Some(&path(None)) }).unwrap();
        let route = Entry::Route {
            device: "eth1".into(),
            destination: lease.subnet,
            gateway: Some(lease.public_ip),
            onlink: false,
        };
        assert_eq!(near, [route]);
        let far = path(Some([172, 25, 2, 254]));
        let message = HostGw.peer(&site(), Peer { lease: &lease, path: Some(&far) }).unwrap_err().to_string();
        assert!(message.starts_with("node node2: ") && message.contains("behind a router (172.25.2.254"), "{message}");
        let message = HostGw.peer(&site(), Peer { lease: &lease, path: None }).unwrap_err().to_string();
        assert!(message.contains("no route leads to its address 172.25.2.2"), "{message}");
    }

    #[test]
    fn a_node_behind_nat_is_refused() {
        assert!(HostGw.check(&site()).is_ok());
        let message = HostGw.check(&Site { public_ip: [203, 0, 113, 7].into(), ..site() }).unwrap_err().to_string();
        assert!(message.contains("publishes 203.0.113.7") && message.contains("eth0 has 172.25.2.1"), "{message}");
    }
}
