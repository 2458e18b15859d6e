//! IP packets in UDP, carried by this program: for where UDP is all that passes. See README.md.

use std::net::SocketAddr;

use ipnet::IpNet;
use podwire_model::{Family, Name};

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Peer, Site, Tunnel, TunnelKind, Uplink},
};

pub mod forward;
mod packet;

/// The value of `Backend.Type`.
pub const NAME: &str = "udp";

/// The device; flannel asks the kernel for the first free `flannel%d`, which is this one.
const DEVICE: &str = "flannel0";
/// Outer IPv4 header 20 and UDP 8 bytes.
const OVERHEAD: u32 = 28;
/// No UDP datagram over IPv4 carries more, however large the uplink's MTU.
const LARGEST: u32 = 65_535 - OVERHEAD;
const PORT: u16 = 8285;

#[derive(Debug)]
struct UdpBackend {
    port: u16,
}

pub(super) fn configure(fields: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(UdpBackend { port: fields.take("Port")?.filter(|port| *port != 0).unwrap_or(PORT) }))
}

impl Backend for UdpBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        uplink.mtu.saturating_sub(OVERHEAD).min(LARGEST)
    }

    /// flannel publishes nothing besides the address.
    fn lease_data(&self, _: &Site) -> String {
        "null".into()
    }

    fn local(&self, site: &Site) -> Vec<Entry> {
        let device = Name::from(DEVICE);
        let listen = SocketAddr::new(site.uplink.address, self.port);
        let mtu = self.mtu(&site.uplink);
        let tunnel = Tunnel { device: device.clone(), mac: None, mtu, up: true, kind: TunnelKind::Tun { listen } };
        vec![
            Entry::Tunnel(tunnel),
            // A host prefix, so that the kernel adds no broadcast or subnet route. The address is the source of what the
            // node itself sends to remote pods.
            Entry::Address { device: device.clone(), address: IpNet::from(site.subnet.network()) },
            Entry::Route { device, destination: site.network, gateway: None, onlink: false },
        ]
    }

    fn peer(&self, _: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let to = SocketAddr::new(peer.lease.public_ip, self.port);
        Ok(vec![Entry::Forward { destination: peer.lease.subnet, to }])
    }

    fn check_networks(&self, networks: &[IpNet]) -> Result<(), Error> {
        super::check_ipv4_only(NAME, networks)
    }

    fn check(&self, site: &Site) -> Result<(), Error> {
        match site.family() {
            Family::V4 => Ok(()),
            Family::V6 => Err(Error::Site("backend udp carries IPv4 only; for IPv6 choose vxlan or host-gw".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use podwire_model::Lease;

    use super::*;

    fn configured(json: &str) -> Result<Box<dyn Backend>, String> {
        super::super::tests::configured(json)
    }

    fn site(network: &str, subnet: &str, address: &str) -> Site {
        let address = address.parse().unwrap();
        Site {
            node: "node1".into(),
            network: network.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            uplink: Uplink { name: "eth0".into(), index: 7, mtu: 1500, address },
            public_ip: address,
            published: None,
            prepared: None,
        }
    }

    #[test]
    fn the_entries_are_those_of_flannel() {
        let site = site("10.244.0.0/16", "10.244.0.0/24", "172.25.2.1");
        let backend = configured(r#"{"Type": "udp"}"#).unwrap();
        let device = Name::from("flannel0");
        let kind = TunnelKind::Tun { listen: "172.25.2.1:8285".parse().unwrap() };
        let expected = [
            Entry::Tunnel(Tunnel { device: device.clone(), mac: None, mtu: 1472, up: true, kind }),
            Entry::Address { device: device.clone(), address: "10.244.0.0/32".parse().unwrap() },
            Entry::Route { device, destination: site.network, gateway: None, onlink: false },
        ];
        assert_eq!(backend.local(&site), expected);
        assert_eq!(backend.mtu(&Uplink { mtu: 65_536, ..site.uplink.clone() }), 65_507);
        let own = site.lease(backend.as_ref());
        assert_eq!((&*own.backend, &*own.backend_data), ("udp", "null"));

        let subnet = "10.244.1.0/24".parse().unwrap();
        let lease = Lease { node: "node2".into(), subnet, public_ip: [203, 0, 113, 7].into(), ..own };
        let entries = backend.peer(&site, Peer { lease: &lease, path: None }).unwrap();
        assert_eq!(entries, [Entry::Forward { destination: subnet, to: "203.0.113.7:8285".parse().unwrap() }]);
    }

    #[test]
    fn fields_are_read_and_wrong_ones_named() {
        let backend = configured(r#"{"Type": "udp", "Port": 9000}"#).unwrap();
        let site_v4 = site("10.244.0.0/16", "10.244.0.0/24", "172.25.2.1");
        let Entry::Tunnel(tunnel) = &backend.local(&site_v4)[0] else { panic!("the device first") };
        assert_eq!(tunnel.kind, TunnelKind::Tun { listen: "172.25.2.1:9000".parse().unwrap() });
        assert!(configured(r#"{"Type": "udp", "Port": 70000}"#).unwrap_err().contains("Backend.Port"));
        let message = configured(r#"{"Type": "udp", "MTU": 1400}"#).unwrap_err();
        assert!(message.contains("Backend.MTU: unknown field"), "{message}");
        let message = backend.check(&site("fd00::/48", "fd00:0:0:1::/64", "fd01::1")).unwrap_err().to_string();
        assert!(message.contains("IPv4 only"), "{message}");
    }
}
