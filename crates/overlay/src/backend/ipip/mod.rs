//! IPIP: pods' packets as they are in IPv4 packets between the nodes' kernels. See README.md.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_model::{Family, Name};

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Ipip, Peer, Site, Tunnel, TunnelKind, Uplink},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "ipip";
/// flannel's name for the device.
const DEVICE: &str = "flannel.ipip";
/// Outer IPv4 header.
const OVERHEAD: u32 = 20;

#[derive(Debug)]
struct IpipBackend {
    direct_routing: bool,
}

pub(super) fn configure(fields: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(IpipBackend { direct_routing: fields.take("DirectRouting")?.unwrap_or(false) }))
}

impl Backend for IpipBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        uplink.mtu.saturating_sub(OVERHEAD)
    }

    fn lease_data(&self, _: &Site) -> String {
        "null".to_owned()
    }

    fn check_networks(&self, networks: &[IpNet]) -> Result<(), Error> {
        super::check_ipv4_only(NAME, networks)
    }

    fn check(&self, site: &Site) -> Result<(), Error> {
        match (site.family(), site.uplink.address) {
            (Family::V4, IpAddr::V4(_)) => Ok(()),
            _ => Err(Error::Site(format!("backend ipip carries IPv4 only, not {}: use vxlan for IPv6", site.network))),
        }
    }

    fn needs_path(&self) -> bool {
        self.direct_routing
    }

    fn local(&self, site: &Site) -> Vec<Entry> {
        let IpAddr::V4(local) = site.uplink.address else { return Vec::new() };
        let device = Name::from(DEVICE);
        let tunnel = Tunnel {
            device: device.clone(),
            mac: None,
            mtu: self.mtu(&site.uplink),
            up: true,
            kind: TunnelKind::Ipip(Ipip { local, device: None }),
        };
        // A host prefix, so that the kernel adds no broadcast or subnet route. The address is the source of what the
        // node itself sends to remote pods.
        vec![Entry::Tunnel(tunnel), Entry::Address { device, address: IpNet::from(site.subnet.network()) }]
    }

    fn peer(&self, _: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let (destination, gateway) = (peer.lease.subnet, Some(peer.lease.public_ip));
        let direct = peer.path.filter(|path| self.direct_routing && path.gateway.is_none());
        Ok(vec![match direct {
            Some(path) => super::direct_route(peer.lease, path),
            None => Entry::Route { device: DEVICE.into(), destination, gateway, onlink: true },
        }])
    }
}

#[cfg(test)]
mod tests {
    use podwire_model::Lease;

    use super::*;
    use crate::plan::Path;

    fn configured(json: &str) -> Result<Box<dyn Backend>, String> {
        super::super::tests::configured(json)
    }

    fn site() -> Site {
        super::super::tests::site(1)
    }

    #[test]
    fn the_device_is_flannels() {
        let backend = configured(r#"{"Type": "ipip"}"#).unwrap();
        let [Entry::Tunnel(tunnel), Entry::Address { address, .. }] = &backend.local(&site())[..] else {
            panic!("one device and its address")
        };
        assert_eq!((&*tunnel.device, tunnel.mtu, tunnel.mac), ("flannel.ipip", 1480, None));
        assert_eq!(tunnel.kind, TunnelKind::Ipip(Ipip { local: "172.25.2.1".parse().unwrap(), device: None }));
        assert_eq!(address.to_string(), "10.244.1.0/32");
        assert_eq!(backend.lease_data(&site()), "null");
    }

    #[test]
    fn a_peer_on_the_link_is_routed_directly_if_asked_for() {
        let lease = Lease {
            node: "node2".into(),
            subnet: "10.244.2.0/24".parse().unwrap(),
            public_ip: [172, 25, 2, 2].into(),
            backend: NAME.into(),
            backend_data: "null".into(),
        };
        let near = Path { device: "eth0".into(), gateway: None };
        let far = Path { device: "eth0".into(), gateway: Some([172, 25, 2, 254].into()) };
        let tunnelled = ("flannel.ipip", true);
        for (conf, path, expected) in [
            (r#"{"Type": "ipip"}"#, Some(&near), tunnelled),
            (r#"{"Type": "ipip", "DirectRouting": true}"#, Some(&near), ("eth0", false)),
            (r#"{"Type": "ipip", "Directrouting": true}"#, Some(&far), tunnelled),
            (r#"{"Type": "ipip", "DirectRouting": true}"#, None, tunnelled),
        ] {
            let backend = configured(conf).unwrap();
            assert_eq!(backend.needs_path(), conf.contains("true"));
            let (device, onlink) = (expected.0.into(), expected.1);
            let route = Entry::Route { device, destination: lease.subnet, gateway: Some(lease.public_ip), onlink };
            assert_eq!(backend.peer(&site(), Peer { lease: &lease, path }).unwrap(), [route], "{conf} {path:?}");
        }
    }

    #[test]
    fn ipv6_and_unknown_fields_are_refused_by_name() {
        let backend = configured(r#"{"Type": "ipip"}"#).unwrap();
        let v6 = Site { network: "fd00:10:244::/56".parse().unwrap(), ..site() };
        assert!(backend.check(&site()).is_ok());
        assert!(backend.check(&v6).unwrap_err().to_string().contains("fd00:10:244::/56"));
        let message = backend.check_networks(&[site().network, v6.network]).unwrap_err().to_string();
        assert!(message.contains("EnableIPv6: must be false with backend ipip"), "{message}");
        let message = configured(r#"{"Type": "ipip", "MTU": 1400}"#).unwrap_err();
        assert!(message.contains("Backend.MTU: unknown field"), "{message}");
    }
}
