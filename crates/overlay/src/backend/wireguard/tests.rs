use podwire_kernel::wireguard::PublicKey;
use podwire_model::Lease;

use super::*;
use crate::backend::tests::{configured, key, site};

fn theirs() -> PublicKey {
    PrivateKey::from_bytes([2; 32]).public()
}

fn lease(backend_data: String) -> Lease {
    Lease {
        node: "node2".into(),
        subnet: "10.244.2.0/24".parse().unwrap(),
        public_ip: [172, 25, 2, 2].into(),
        backend: NAME.into(),
        backend_data: backend_data.into(),
    }
}

#[test]
fn defaults_are_those_of_flannel() {
    let backend = configured(r#"{"Type": "wireguard"}"#).unwrap();
    let device = Name::from("flannel-wg");
    let kind = TunnelKind::Wireguard { key: Some(key()), port: 51820 };
    let expected = [
        Entry::Tunnel(Tunnel { device: device.clone(), mac: None, mtu: 1420, up: true, kind }),
        Entry::Address { device: device.clone(), address: "10.244.1.0/32".parse().unwrap() },
        Entry::Route { device, destination: "10.244.0.0/16".parse().unwrap(), gateway: None, onlink: false },
    ];
    assert_eq!(backend.local(&site(1)), expected);
    let published = format!(r#"{{"PublicKey":"{}","Port":51820}}"#, key().public());
    assert_eq!(backend.lease_data(&site(1)), published);
}

#[test]
fn ipv6_has_a_device_and_a_port_of_its_own() {
    let backend = configured(r#"{"Type": "wireguard", "ListenPortV6": 4500}"#).unwrap();
    let address = "fd00:25::1".parse().unwrap();
    let v6 = Site {
        network: "fd00:10:244::/56".parse().unwrap(),
        subnet: "fd00:10:244:1::/64".parse().unwrap(),
        uplink: Uplink { address, ..site(1).uplink },
        public_ip: address,
        ..site(1)
    };
    let local = backend.local(&v6);
    assert!(local.iter().all(|entry| entry.device().is_some_and(|device| &**device == "flannel-wg-v6")));
    assert!(matches!(&local[0], Entry::Tunnel(Tunnel { kind: TunnelKind::Wireguard { port: 4500, .. }, .. })));
    assert!(backend.lease_data(&v6).ends_with(r#""Port":4500}"#));
    let peer = Lease {
        subnet: "fd00:10:244:2::/64".parse().unwrap(),
        public_ip: "fd00:25::2".parse().unwrap(),
        ..lease(format!(r#"{{"PublicKey":"{}"}}"#, theirs()))
    };
    let entries = backend.peer(&v6, Peer { lease: &peer, path: None }).unwrap();
    let Entry::WireguardPeer { peer, .. } = &entries[0] else { panic!("{entries:?}") };
    assert_eq!(peer.endpoint, Some("[fd00:25::2]:4500".parse().unwrap()), "an old flannel does not tell its port");
}

#[test]
fn a_peer_gets_its_endpoint_and_its_range() {
    let psk = PrivateKey::from_bytes([9; 32]).to_secret_text();
    let conf = format!(r#"{{"Type": "wireguard", "PSK": "{psk}", "PersistentKeepaliveInterval": 25, "MTU": 9000}}"#);
    let backend = configured(&conf).unwrap();
    assert_eq!(backend.mtu(&site(1).uplink), 8920);
    let lease = lease(format!(r#"{{"PublicKey":"{}","Port":51999}}"#, theirs()));
    let entries = backend.peer(&site(1), Peer { lease: &lease, path: None }).unwrap();
    let device = Name::from("flannel-wg");
    let settings = wireguard::Peer {
        public_key: theirs(),
        preshared_key: Some(psk.parse().unwrap()),
        endpoint: Some("172.25.2.2:51999".parse().unwrap()),
        keepalive: Duration::from_secs(25),
    };
    let expected = [
        Entry::WireguardPeer { device: device.clone(), peer: settings },
        Entry::Allowed { device, range: lease.subnet, peer: theirs() },
    ];
    assert_eq!(entries, expected);
    assert!(entries.is_sorted_by_key(Entry::key));
    assert!(!format!("{backend:?} {entries:?}").contains(&psk));
}

#[test]
fn a_peer_without_a_key_of_its_own_is_refused() {
    let backend = configured(r#"{"Type": "wireguard"}"#).unwrap();
    let own = backend.lease_data(&site(1));
    for (data, expected) in [("null".to_owned(), "backend data: null"), (own, "this node's own public key")] {
        let refused = backend.peer(&site(1), Peer { lease: &lease(data), path: None }).unwrap_err().to_string();
        assert!(refused.starts_with("node node2: ") && refused.contains(expected), "{refused}");
    }
}

#[test]
fn fields_are_read_and_wrong_ones_named_but_no_secret() {
    let networks: [IpNet; 2] = ["10.244.0.0/16", "fd00:10:244::/56"].map(|network| network.parse().unwrap());
    for (mode, both) in [("separate", true), ("auto", false), ("ipv4", false)] {
        let backend = configured(&format!(r#"{{"Type": "wireguard", "Mode": "{mode}", "PSK": ""}}"#)).unwrap();
        assert!(backend.check_networks(&networks[..1]).is_ok());
        assert_eq!(backend.check_networks(&networks).is_ok(), both, "{mode}");
    }
    for (json, expected) in [
        (r#"{"Type": "wireguard", "Mode": "ipv6"}"#, "Backend.Mode: ipv6 is not supported"),
        (r#"{"Type": "wireguard", "Mode": "both"}"#, r#"Backend.Mode: "both" is unknown, expected separate"#),
        (r#"{"Type": "wireguard", "ListenPort": 70000}"#, "Backend.ListenPort: 70000"),
        (r#"{"Type": "wireguard", "ListenPort": 0}"#, "Backend.ListenPort: 0 is out of range"),
        (r#"{"Type": "wireguard", "MTU": 600}"#, "Backend.MTU: 600 is out of range, expected 656"),
        (r#"{"Type": "wireguard", "PersistentKeepaliveInterval": 1e9}"#, "Backend.PersistentKeepaliveInterval: "),
        (r#"{"Type": "wireguard", "PSK": "hush"}"#, "Backend.PSK: not a WireGuard key"),
        (r#"{"Type": "wireguard", "PSK": ["hush"]}"#, "Backend.PSK: not a WireGuard key"),
        (r#"{"Type": "wireguard", "VNI": 1}"#, "Backend.VNI: unknown field"),
    ] {
        let message = configured(json).unwrap_err();
        assert!(message.contains(expected) && !message.contains("hush"), "{message}\n want: {expected}");
    }
}
