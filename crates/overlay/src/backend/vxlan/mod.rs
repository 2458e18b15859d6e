//! VXLAN: pods' packets in UDP between the nodes' kernels. See README.md.

use std::{borrow::Cow, fmt};

use ipnet::IpNet;
use podwire_model::{Family, Name};
use serde::Deserialize;

use super::Backend;
use crate::{
    Error,
    config::Fields,
    plan::{Entry, Mac, Peer, Site, Tunnel, TunnelKind, Uplink, Vxlan},
};

/// The value of `Backend.Type`.
pub const NAME: &str = "vxlan";

/// Outer IPv4 header 20, UDP 8, VXLAN 8, inner Ethernet 14 bytes. flannel takes 50 off for IPv6 as well, though the
/// outer header is 20 bytes longer there: 70.
const OVERHEAD: u32 = 50;
const OVERHEAD_V6: u32 = 70;

#[derive(Debug)]
struct VxlanBackend {
    vni: u32,
    port: u16,
    /// `MTU`: stands for the uplink's MTU, the overhead still comes off.
    mtu: Option<u32>,
    learning: bool,
    gbp: bool,
    /// Peers on the link are reached without a tunnel.
    direct: bool,
    /// What a MAC address that this node makes up begins with.
    mac_prefix: Option<[u8; 2]>,
}

/// The annotation `backend-data`, as flannel's `vxlanLeaseAttrs`.
struct LeaseData {
    vni: u32,
    mac: Mac,
}

impl LeaseData {
    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Json<'a> {
            #[serde(rename = "VNI", default)]
            vni: u32,
            #[serde(rename = "VtepMAC", borrow)]
            mac: Cow<'a, str>,
        }
        let Json { vni, mac } = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
        let mac = mac.parse().map_err(|error| format!("VtepMAC: {error}"))?;
        if is_usable(&mac) { Ok(Self { vni, mac }) } else { Err(format!("VtepMAC {mac} is no address of one machine")) }
    }

    /// Whether a node with this VNI may have published it: flannel left it out before 0.15, and wrote the lower sixteen bits
    /// of it before 0.24.
    const fn may_be_of(&self, vni: u32) -> bool {
        self.vni == 0 || self.vni == vni || self.vni == vni & 0xffff
    }
}

impl fmt::Display for LeaseData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"VNI":{},"VtepMAC":"{}"}}"#, self.vni, self.mac)
    }
}

pub(super) fn configure(fields: &mut Fields) -> Result<Box<dyn Backend>, Error> {
    let mac_prefix = fields.take::<String>("MacPrefix")?.map(|text| {
        let expected = "expected the first two octets of addresses for one machine, such as 0E-2A";
        read_prefix(&text).ok_or_else(|| fields.error("MacPrefix", format!("{text:?}: {expected}")))
    });
    Ok(Box::new(VxlanBackend {
        vni: fields.take_within("VNI", 1..=0xff_ffff)?.unwrap_or(1),
        port: fields.take("Port")?.filter(|port| *port != 0).unwrap_or(8472),
        mtu: fields.take_within("MTU", 576 + OVERHEAD_V6..=65_535)?,
        learning: fields.take("Learning")?.unwrap_or(false),
        gbp: fields.take("GBP")?.unwrap_or(false),
        direct: fields.take("DirectRouting")?.unwrap_or(false),
        mac_prefix: mac_prefix.transpose()?,
    }))
}

/// `0E-2A` or `0e:2a`.
fn read_prefix(text: &str) -> Option<[u8; 2]> {
    let Mac([first, second, ..]) = format!("{}:00:00:00:00", text.replace('-', ":")).parse().ok()?;
    (first & 1 == 0).then_some([first, second])
}

impl VxlanBackend {
    fn device(&self, family: Family) -> Name {
        match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        }
        .into()
    }

    /// The tunnel end's link-layer address: the one published before, so that no peer's entries go stale over a restart
    /// or a take-over from flanneld; otherwise one derived from the node's name, so that it is the same next time too.
    fn mac(&self, site: &Site) -> Mac {
        let published = site.published.as_ref().filter(|lease| &*lease.backend == NAME);
        let published = published.and_then(|lease| LeaseData::parse(&lease.backend_data).ok());
        let wanted = |mac: &Mac| self.mac_prefix.is_none_or(|prefix| mac.0.starts_with(&prefix));
        published.map(|data| data.mac).filter(wanted).unwrap_or_else(|| {
            let Mac(mut octets) = derived_mac(site, self.vni);
            if let Some(prefix) = self.mac_prefix {
                octets[..2].copy_from_slice(&prefix);
            }
            Mac(octets)
        })
    }
}

impl Backend for VxlanBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mtu(&self, uplink: &Uplink) -> u32 {
        // The kernel makes no vxlan device larger than what it sends through takes.
        self.mtu.unwrap_or(uplink.mtu).min(uplink.mtu).saturating_sub(self.overhead(uplink))
    }

    fn overhead(&self, uplink: &Uplink) -> u32 {
        if uplink.address.is_ipv6() { OVERHEAD_V6 } else { OVERHEAD }
    }

    fn lease_data(&self, site: &Site) -> String {
        LeaseData { vni: self.vni, mac: self.mac(site) }.to_string()
    }

    fn local(&self, site: &Site) -> Vec<Entry> {
        let device = self.device(site.family());
        let tunnel = Tunnel {
            device: device.clone(),
            mac: Some(self.mac(site)),
            mtu: self.mtu(&site.uplink),
            up: true,
            kind: TunnelKind::Vxlan(Vxlan {
                id: self.vni,
                port: self.port,
                local: Some(site.uplink.address),
                device: Some(site.uplink.index),
                learning: self.learning,
                gbp: self.gbp,
            }),
        };
        // A host prefix, so that the kernel adds no broadcast or subnet route. The address is the source of what the
        // node itself sends to remote pods.
        vec![Entry::Tunnel(tunnel), Entry::Address { device, address: IpNet::from(site.subnet.network()) }]
    }

    fn peer(&self, site: &Site, peer: Peer<'_>) -> Result<Vec<Entry>, Error> {
        let Peer { lease: peer, path } = peer;
        let node = || peer.node.to_string();
        let data = LeaseData::parse(&peer.backend_data)
            .map_err(|why| Error::Lease { node: node(), problem: format!("backend data: {why}") })?;
        if !data.may_be_of(self.vni) {
            let problem = format!("uses VNI {}, this node {}", data.vni, self.vni);
            return Err(Error::OtherBackend { node: node(), problem });
        }
        if let Some(path) = path.filter(|path| self.direct && path.gateway.is_none()) {
            return Ok(vec![super::direct_route(peer, path)]);
        }
        let device = self.device(site.family());
        let gateway = peer.subnet.network();
        Ok(vec![
            Entry::Neighbour { device: device.clone(), address: gateway, mac: data.mac },
            Entry::Fdb { device: device.clone(), mac: data.mac, remote: peer.public_ip },
            Entry::Route { device, destination: peer.subnet, gateway: Some(gateway), onlink: true },
        ])
    }

    fn needs_path(&self) -> bool {
        self.direct
    }
}

/// Neither zero (the default destination of an FDB) nor a group address.
fn is_usable(mac: &Mac) -> bool {
    mac.0 != [0; 6] && mac.0[0] & 1 == 0
}

/// A locally administered unicast address from a hash of the node's name, the family and the VNI.
fn derived_mac(site: &Site, vni: u32) -> Mac {
    let family: &[u8] = match site.family() {
        Family::V4 => &[],
        Family::V6 => b" v6",
    };
    let bytes = site.node.bytes().chain(family.iter().copied()).chain(vni.to_be_bytes());
    let [a, b, c, d, e, f, ..] = podwire_kernel::stable_hash(bytes).to_be_bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use podwire_model::Lease;
    use proptest::prelude::*;

    use super::*;
    use crate::plan::Path;

    fn configured(json: &str) -> Result<Box<dyn Backend>, String> {
        super::super::tests::configured(json)
    }

    fn site(node: &str) -> Site {
        let address = [172, 25, 2, 1].into();
        Site {
            node: node.into(),
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: "10.244.0.0/24".parse().unwrap(),
            uplink: Uplink { name: "eth0".into(), index: 7, mtu: 1500, address },
            public_ip: address,
            published: None,
            prepared: None,
        }
    }

    #[test]
    fn defaults_are_those_of_flannel() {
        let backend = configured(r#"{"Type": "vxlan"}"#).unwrap();
        let [Entry::Tunnel(tunnel), Entry::Address { address, .. }] = &backend.local(&site("node1"))[..] else {
            panic!("one device and its address")
        };
        assert_eq!((&*tunnel.device, tunnel.mtu, tunnel.up), ("flannel.1", 1450, true));
        let expected = Vxlan {
            id: 1,
            port: 8472,
            local: Some([172, 25, 2, 1].into()),
            device: Some(7),
            learning: false,
            gbp: false,
        };
        assert_eq!(tunnel.kind, TunnelKind::Vxlan(expected));
        assert_eq!(address.to_string(), "10.244.0.0/32");
    }

    #[test]
    fn fields_are_read_and_wrong_ones_named() {
        let backend = configured(r#"{"type": "vxlan", "VNI": 4096, "port": 4789, "MTU": 1400, "Directrouting": true}"#);
        let backend = backend.unwrap();
        assert_eq!((backend.mtu(&site("node1").uplink), backend.overhead(&site("node1").uplink)), (1350, 50));
        let larger = configured(r#"{"Type": "vxlan", "MTU": 9000}"#).unwrap();
        assert_eq!(larger.mtu(&site("node1").uplink), 1450, "what the uplink carries");
        assert_eq!(backend.local(&site("node1"))[0].device().map(|device| &**device), Some("flannel.4096"));
        for (json, expected) in [
            (r#"{"Type": "vxlan", "VNI": 0}"#, "Backend.VNI: 0 is out of range, expected 1 to 16777215"),
            (r#"{"Type": "vxlan", "Port": 70000}"#, "Backend.Port: 70000"),
            (r#"{"Type": "vxlan", "MTU": 100}"#, "Backend.MTU: 100 is out of range"),
            (r#"{"Type": "vxlan", "DirectRouting": "yes"}"#, r#"Backend.DirectRouting: "yes""#),
            (r#"{"Type": "vxlan", "MacPrefix": "0E"}"#, r#"Backend.MacPrefix: "0E": expected"#),
            (r#"{"Type": "vxlan", "MacPrefix": "01-00"}"#, r#"Backend.MacPrefix: "01-00": expected"#),
            (r#"{"Type": "vxlan", "PSK": "x"}"#, "Backend.PSK: unknown field, expected one of Type, "),
        ] {
            let message = configured(json).unwrap_err();
            assert!(message.contains(expected), "{message}\n want: {expected}");
        }
    }

    #[test]
    fn the_mac_is_kept_when_published_and_derived_otherwise() {
        let backend = configured(r#"{"Type": "vxlan"}"#).unwrap();
        let fresh = site("node1").lease(backend.as_ref());
        assert_eq!(fresh, site("node1").lease(backend.as_ref()));
        let flannels = Lease { backend_data: r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#.into(), ..fresh.clone() };
        let taken_over = Site { published: Some(flannels.clone()), ..site("node1") };
        assert_eq!(taken_over.lease(backend.as_ref()), flannels);
        let broken = Site { published: Some(Lease { backend_data: "null".into(), ..flannels }), ..site("node1") };
        assert_eq!(broken.lease(backend.as_ref()), fresh);
        let prefixed = configured(r#"{"Type": "vxlan", "MacPrefix": "0E-2A"}"#).unwrap();
        let data = taken_over.lease(prefixed.as_ref()).backend_data;
        assert!(data.contains(r#""VtepMAC":"0e:2a:"#), "{data}");
    }

    #[test]
    fn with_direct_routing_the_path_decides() {
        let backend = configured(r#"{"Type": "vxlan", "DirectRouting": true}"#).unwrap();
        let peer = Lease {
            subnet: "10.244.1.0/24".parse().unwrap(),
            public_ip: [172, 25, 2, 2].into(),
            ..site("node2").lease(backend.as_ref())
        };
        let kinds = |path: Option<&Path>| {
            let entries = backend.peer(&site("node1"), Peer { lease: &peer, path }).unwrap();
            entries.iter().map(|entry| (entry.key().kind(), entry.device().unwrap().to_string())).collect::<Vec<_>>()
        };
        let near = Path { device: "eth1".into(), gateway: None };
        let far = Path { gateway: Some([172, 25, 2, 254].into()), ..near.clone() };
        assert_eq!(kinds(Some(&near)), [("route", "eth1".to_owned())]);
        let tunnel = ["neighbour", "fdb", "route"].map(|kind| (kind, "flannel.1".to_owned()));
        assert_eq!(kinds(Some(&far)), tunnel);
        assert_eq!(kinds(None), tunnel);
    }

    #[test]
    fn ipv6_has_a_device_and_an_overhead_of_its_own() {
        let backend = configured(r#"{"Type": "vxlan"}"#).unwrap();
        let address = "2001:db8::1".parse().unwrap();
        let v6 = Site {
            network: "fd00:10:244::/48".parse().unwrap(),
            subnet: "fd00:10:244:1::/64".parse().unwrap(),
            uplink: Uplink { address, ..site("node1").uplink },
            public_ip: address,
            ..site("node1")
        };
        let [Entry::Tunnel(tunnel), Entry::Address { address, .. }] = &backend.local(&v6)[..] else {
            panic!("one device and its address")
        };
        assert_eq!(
            (&*tunnel.device, tunnel.mtu, address.to_string()),
            ("flannel-v6.1", 1430, "fd00:10:244:1::/128".into())
        );
        assert_ne!(v6.lease(backend.as_ref()).backend_data, site("node1").lease(backend.as_ref()).backend_data);
    }

    #[test]
    fn derived_macs_are_local_unicast_and_differ() {
        let macs: BTreeSet<_> = (0..10_000).map(|n| derived_mac(&site(&format!("node{n}")), 1)).collect();
        assert_eq!(macs.len(), 10_000);
        assert!(macs.iter().all(|mac| mac.0[0] & 3 == 2));
    }

    #[test]
    fn a_peer_gets_neighbour_fdb_entry_and_route_in_this_order() {
        let backend = configured(r#"{"Type": "vxlan"}"#).unwrap();
        let peer = Lease {
            node: "node2".into(),
            subnet: "10.244.1.0/24".parse().unwrap(),
            public_ip: [172, 25, 2, 2].into(),
            backend: "vxlan".into(),
            backend_data: r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#.into(),
        };
        let device: Name = "flannel.1".into();
        let mac = Mac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]);
        let gateway = [10, 244, 1, 0].into();
        let entries = backend.peer(&site("node1"), Peer { lease: &peer, path: None }).unwrap();
        let expected = [
            Entry::Neighbour { device: device.clone(), address: gateway, mac },
            Entry::Fdb { device: device.clone(), mac, remote: peer.public_ip },
            Entry::Route { device, destination: peer.subnet, gateway: Some(gateway), onlink: true },
        ];
        assert_eq!(entries, expected);
        assert!(entries.is_sorted_by_key(Entry::key));
        for (data, expected) in [
            ("null", "backend data"),
            (r#"{"VNI":2,"VtepMAC":"12:c6:65:89:b4:e3"}"#, "uses VNI 2, this node 1"),
            (r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#, "no address of one machine"),
            (r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#, "no address of one machine"),
        ] {
            let broken = Lease { backend_data: data.into(), ..peer.clone() };
            let message = backend.peer(&site("node1"), Peer { lease: &broken, path: None }).unwrap_err().to_string();
            assert!(message.starts_with("node node2: ") && message.contains(expected), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_lease_data_is_read_or_refused(
            text in r#"[ -~]{0,60}|\{"VNI":[0-9]{1,12},"VtepMAC":"[0-9a-f:]{0,20}"\}"#
        ) {
            if let Ok(data) = LeaseData::parse(&text) {
                let again = LeaseData::parse(&data.to_string()).unwrap();
                prop_assert_eq!((again.vni, again.mac), (data.vni, data.mac));
            }
        }
    }
}
