//! Nodes that run flannel and nodes that run Podwire understand each other's annotations.
//!
//! What flannel writes is known from its sources at the versions named: `pkg/subnet/kube/kube.go` (AcquireLease) and the
//! lease attributes of each backend.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use ipnet::IpNet;
use podwire_kernel::wireguard::PrivateKey;
use podwire_model::{Family, Lease, Node};
use podwire_overlay::{
    Overlay, Site, Uplink, config,
    lease::{DEFAULT_PREFIX, Keys},
    plan::{self, Entry, Path, Peer},
};

/// What a node publishes that is 172.25.2.2, fd00:25::2 and has the pods 10.244.2.0/24, fd00:10:244:2::/64.
struct Row {
    /// The first version that writes it so.
    flannel: &'static str,
    family: Family,
    /// The object `Backend` of the cluster's net-conf.json.
    backend: &'static str,
    /// Annotation `backend-type`.
    name: &'static str,
    /// Annotation `backend-data` or `backend-v6-data`.
    data: &'static str,
    /// What another node makes of it, in the words of `Debug`.
    becomes: &'static [&'static str],
    /// What Podwire writes in its place (type, data), where that is not the same.
    ours: Option<(&'static str, &'static str)>,
}

const VTEP: &str = r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#;
/// The key pair of Alice in RFC 7748, section 6.1.
const WG: &str = r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51820}"#;
const WG_V6: &str = r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51821}"#;
const WG_PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { flannel: "0.7", family: Family::V4, backend: r#"{"Type": "vxlan"}"#, name: "vxlan",
          data: r#"{"VtepMAC":"12:c6:65:89:b4:e3"}"#,
          becomes: &["mac: 12:c6:65:89:b4:e3, remote: 172.25.2.2", "gateway: Some(10.244.2.0), onlink: true"],
          ours: Some(("vxlan", VTEP)) },
    Row { flannel: "0.15", family: Family::V4, backend: r#"{"Type": "vxlan"}"#, name: "vxlan", data: VTEP,
          becomes: &["mac: 12:c6:65:89:b4:e3, remote: 172.25.2.2", "gateway: Some(10.244.2.0), onlink: true"],
          ours: None },
    // The number had sixteen bits: what did not fit was cut off.
    Row { flannel: "0.15", family: Family::V4, backend: r#"{"Type": "vxlan", "VNI": 70000}"#, name: "vxlan",
          data: r#"{"VNI":4464,"VtepMAC":"12:c6:65:89:b4:e3"}"#, becomes: &["flannel.70000", "remote: 172.25.2.2"],
          ours: Some(("vxlan", r#"{"VNI":70000,"VtepMAC":"12:c6:65:89:b4:e3"}"#)) },
    Row { flannel: "0.24", family: Family::V4, backend: r#"{"Type": "vxlan", "VNI": 70000}"#, name: "vxlan",
          data: r#"{"VNI":70000,"VtepMAC":"12:c6:65:89:b4:e3"}"#, becomes: &["flannel.70000", "remote: 172.25.2.2"],
          ours: None },
    Row { flannel: "0.24", family: Family::V6, backend: r#"{"Type": "vxlan"}"#, name: "vxlan", data: VTEP,
          becomes: &["flannel-v6.1", "mac: 12:c6:65:89:b4:e3, remote: fd00:25::2"], ours: None },
    Row { flannel: "0.7", family: Family::V4, backend: r#"{"Type": "host-gw"}"#, name: "host-gw", data: "null",
          becomes: &[r#"device: "eth0", destination: 10.244.2.0/24, gateway: Some(172.25.2.2)"#], ours: None },
    Row { flannel: "0.15", family: Family::V6, backend: r#"{"Type": "host-gw"}"#, name: "host-gw", data: "null",
          becomes: &[r#"device: "eth0", destination: fd00:10:244:2::/64, gateway: Some(fd00:25::2)"#], ours: None },
    // These two leave their name out.
    Row { flannel: "0.7", family: Family::V4, backend: r#"{"Type": "udp"}"#, name: "", data: "null",
          becomes: &["Forward { destination: 10.244.2.0/24, to: 172.25.2.2:8285 }"], ours: Some(("udp", "null")) },
    Row { flannel: "0.7", family: Family::V4, backend: r#"{"Type": "alloc"}"#, name: "", data: "null", becomes: &["[]"],
          ours: Some(("alloc", "null")) },
    Row { flannel: "0.11", family: Family::V4, name: "extension", data: "",
          backend: r#"{"Type": "extension", "SubnetAddCommand": "to $SUBNET $PUBLIC_IP"}"#,
          becomes: &["to $SUBNET $PUBLIC_IP", r#"("SUBNET", "10.244.2.0/24"), ("PUBLIC_IP", "172.25.2.2")"#],
          ours: Some(("extension", "null")) },
    Row { flannel: "0.11", family: Family::V4, name: "extension", data: r#""a key""#,
          backend: r#"{"Type": "extension", "PreStartupCommand": "x", "SubnetAddCommand": "to $SUBNET"}"#,
          becomes: &[r#"input: "a key""#], ours: None },
    Row { flannel: "0.10", family: Family::V4, backend: r#"{"Type": "ipip"}"#, name: "ipip", data: "null",
          becomes: &[r#""flannel.ipip", destination: 10.244.2.0/24, gateway: Some(172.25.2.2), onlink: true"#],
          ours: None },
    Row { flannel: "0.17", family: Family::V4, backend: r#"{"Type": "wireguard", "ListenPort": 4500}"#, name: "wireguard",
          data: r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="}"#,
          becomes: &["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "Some(172.25.2.2:4500)", "range: 10.244.2.0/24"],
          ours: Some(("wireguard",
                      r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":4500}"#)) },
    Row { flannel: "0.26.6", family: Family::V4, backend: r#"{"Type": "wireguard"}"#, name: "wireguard", data: WG,
          becomes: &["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "Some(172.25.2.2:51820)"], ours: None },
    Row { flannel: "0.26.6", family: Family::V6, backend: r#"{"Type": "wireguard"}"#, name: "wireguard", data: WG_V6,
          becomes: &["flannel-wg-v6", "Some([fd00:25::2]:51821)", "range: fd00:10:244:2::/64"], ours: None },
];

const V4: [&str; 5] = ["10.244.0.0/16", "10.244.1.0/24", "172.25.2.1", "10.244.2.0/24", "172.25.2.2"];
const V6: [&str; 5] = ["fd00:10:244::/56", "fd00:10:244:1::/64", "fd00:25::1", "fd00:10:244:2::/64", "fd00:25::2"];

/// The other node's object, as flannel left it.
fn node(row: &Row) -> Node {
    let v4 = row.family == Family::V4;
    let [.., range, address] = if v4 { V4 } else { V6 };
    let [ip, data] = if v4 { ["public-ip", "backend-data"] } else { ["public-ipv6", "backend-v6-data"] };
    let annotations = [(ip, address), (data, row.data), ("backend-type", row.name), ("kube-subnet-manager", "true")];
    Node {
        name: "node2".into(),
        internal_ips: vec![address.parse().unwrap()],
        pod_cidrs: vec![range.parse().unwrap()],
        zone: None,
        annotations: annotations.map(|(key, value)| (format!("{DEFAULT_PREFIX}/{key}"), value.to_owned())).into(),
        deleting: false,
    }
}

fn lease(row: &Row) -> Lease {
    Keys::default().read(&node(row), row.family).unwrap().unwrap()
}

/// A node that runs Podwire; the same one as `node` if that is so, having run flannel until now.
fn site(row: &Row, takes_over: bool) -> Site {
    let [network, mut range, mut address, other_range, other_address] = if row.family == Family::V4 { V4 } else { V6 };
    if takes_over {
        (range, address) = (other_range, other_address);
    }
    let address = address.parse().unwrap();
    Site {
        node: if takes_over { "node2".into() } else { "node1".into() },
        network: network.parse().unwrap(),
        subnet: range.parse::<IpNet>().unwrap(),
        uplink: Uplink { name: "eth0".into(), index: 2, mtu: 1500, address },
        public_ip: address,
        published: takes_over.then(|| lease(row)),
        prepared: Some("a key".into()),
    }
}

fn backend(row: &Row, key: &str) -> Box<dyn podwire_overlay::backend::Backend> {
    let net_conf = format!(r#"{{"Network": "10.244.0.0/16", "Backend": {}}}"#, row.backend);
    config::parse_with_key(&net_conf, &|| Ok(key.parse::<PrivateKey>().unwrap())).unwrap().backend
}

#[test]
fn what_flannel_publishes_is_understood() {
    let own_key = PrivateKey::from_bytes([1; 32]).to_secret_text();
    for row in ROWS {
        let backend = backend(row, &own_key);
        let (lease, path) = (lease(row), Path { device: "eth0".into(), gateway: None });
        let entries: Vec<Entry> =
            plan::peer(backend.as_ref(), &site(row, false), Peer { lease: &lease, path: Some(&path) })
                .unwrap_or_else(|error| panic!("{} of flannel {}: {error}", row.name, row.flannel));
        let shown = format!("{entries:?}");
        for expected in row.becomes {
            assert!(shown.contains(expected), "{} of flannel {}: {expected} is not in {shown}", row.name, row.flannel);
        }
    }
}

#[test]
fn a_node_that_ran_flannel_publishes_the_same_afterwards() {
    for row in ROWS {
        let overlay = Overlay::new(backend(row, WG_PRIVATE), site(row, true)).unwrap();
        let mut expected: BTreeMap<String, String> = node(row).annotations;
        if let Some((name, data)) = row.ours {
            let key = if row.family == Family::V4 { "backend-data" } else { "backend-v6-data" };
            expected.insert(format!("{DEFAULT_PREFIX}/backend-type"), name.to_owned());
            expected.insert(format!("{DEFAULT_PREFIX}/{key}"), data.to_owned());
        }
        let ours = Keys::default().write(&overlay.lease());
        assert_eq!(ours, expected, "{} of flannel {}", row.name, row.flannel);
    }
}

/// Every backend has its rows.
#[test]
fn no_backend_is_forgotten() {
    for kind in podwire_overlay::backend::BACKENDS {
        let named = |row: &&Row| row.backend.contains(&format!(r#""{}""#, kind.name));
        assert!(ROWS.iter().any(|row| named(&row)), "{}", kind.name);
    }
}
