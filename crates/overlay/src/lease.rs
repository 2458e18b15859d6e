//! flannel's node annotations ↔ [`Lease`].
//!
//! Source of the keys and of when they count: flannel `pkg/subnet/kube/{annotations,kube}.go`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use podwire_model::{Family, Lease, Node};

use crate::Error;

/// flannel's default for `--kube-annotation-prefix`.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

/// The annotation keys under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self { prefix: format!("{DEFAULT_PREFIX}/") }
    }
}

impl Keys {
    /// The keys for `--kube-annotation-prefix`: `example.org` or `example.org/flannel`.
    ///
    /// # Errors
    /// More than one slash, or an empty domain.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        let (domain, name) = prefix.split_once('/').unwrap_or((prefix, ""));
        if domain.is_empty() || name.contains('/') {
            let problem =
                format!("annotation prefix {prefix:?}: expected DOMAIN or DOMAIN/NAME, with at most one slash");
            return Err(Error::Site(problem));
        }
        let dash = if name.is_empty() || name.ends_with('-') { "" } else { "-" };
        Ok(Self { prefix: format!("{domain}/{name}{dash}") })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn get<'a>(&self, node: &'a Node, name: &str) -> Option<&'a str> {
        node.annotations.get(&self.key(name)).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The lease of `family` that the node's annotations publish; `None` when the node takes no part in the overlay
    /// (no `kube-subnet-manager: "true"`, or nothing published for the family).
    ///
    /// # Errors
    /// The node takes part, but an annotation is missing or wrong, or it has no pod range: names the annotation.
    pub fn read(&self, node: &Node, family: Family) -> Result<Option<Lease>, Error> {
        if self.get(node, "kube-subnet-manager") != Some("true") {
            return Ok(None);
        }
        let (ip_name, data_name) = names(family);
        let Some(public_ip) = self.get(node, ip_name) else { return Ok(None) };
        let error = |problem: String| Error::Lease { node: node.name.to_string(), problem };
        let public_ip = public_ip.parse().ok().filter(|ip| Family::of(ip) == family).ok_or_else(|| {
            error(format!("annotation {}: {public_ip:?} is no {family:?} address", self.key(ip_name)))
        })?;
        let subnet = pod_range(node, family)
            .ok_or_else(|| error(format!("has overlay annotations but no {family:?} range in spec.podCIDRs")))?;
        let backend = match node.annotations.get(&self.key("backend-type")).map(String::as_str) {
            // flannel's backend "udp" does not say its name.
            Some("") => "udp",
            Some(name) => name,
            None => return Err(error(format!("annotation {} is missing", self.key("backend-type")))),
        };
        Ok(Some(Lease {
            node: node.name.clone(),
            subnet,
            public_ip,
            backend: backend.into(),
            backend_data: self.get(node, data_name).unwrap_or("null").into(),
        }))
    }

    /// The annotations that publish `lease`.
    pub fn write(&self, lease: &Lease) -> BTreeMap<String, String> {
        let (ip_name, data_name) = names(Family::of(&lease.public_ip));
        BTreeMap::from([
            (self.key(data_name), lease.backend_data.to_string()),
            (self.key("backend-type"), lease.backend.to_string()),
            (self.key(ip_name), lease.public_ip.to_string()),
            (self.key("kube-subnet-manager"), "true".to_owned()),
        ])
    }

    /// The address that the administrator wants published instead of the uplink's own
    /// (annotation `public-ip-overwrite`, for nodes behind NAT).
    ///
    /// # Errors
    /// The annotation holds no address of `family`.
    pub fn public_ip_overwrite(&self, node: &Node, family: Family) -> Result<Option<IpAddr>, Error> {
        let name = format!("{}-overwrite", names(family).0);
        let Some(text) = self.get(node, &name) else { return Ok(None) };
        match text.parse() {
            Ok(ip) if Family::of(&ip) == family => Ok(Some(ip)),
            _ => Err(Error::Lease {
                node: node.name.to_string(),
                problem: format!("annotation {}: {text:?} is no {family:?} address", self.key(&name)),
            }),
        }
    }
}

/// The node's pod range of `family`.
pub fn pod_range(node: &Node, family: Family) -> Option<IpNet> {
    node.pod_cidrs.iter().copied().find(|net| Family::of(&net.addr()) == family).map(|net| net.trunc())
}

/// Names of the address annotation and of the backend data annotation.
const fn names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("public-ip", "backend-data"),
        Family::V6 => ("public-ipv6", "backend-v6-data"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(annotations: &[(&str, &str)]) -> Node {
        Node {
            name: "node2".into(),
            internal_ips: vec!["172.25.2.2".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            zone: None,
            annotations: annotations.iter().map(|&(k, v)| (format!("{DEFAULT_PREFIX}/{k}"), v.to_owned())).collect(),
            deleting: false,
        }
    }

    const STOCK: [(&str, &str); 4] = [
        ("backend-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
        ("backend-type", "vxlan"),
        ("kube-subnet-manager", "true"),
        ("public-ip", "172.25.2.2"),
    ];

    #[test]
    fn reads_and_writes_what_flannel_writes() {
        let node = node(&STOCK);
        let lease = Keys::default().read(&node, Family::V4).unwrap().unwrap();
        assert_eq!(lease.subnet, "10.244.1.0/24".parse().unwrap());
        assert_eq!(lease.public_ip, "172.25.2.2".parse::<IpAddr>().unwrap());
        assert_eq!((&*lease.backend, &*lease.backend_data), ("vxlan", STOCK[0].1));
        assert_eq!(Keys::default().write(&lease), node.annotations);
        assert_eq!(Keys::default().read(&node, Family::V6).unwrap(), None);
    }

    #[test]
    fn an_empty_type_is_that_of_flannels_udp() {
        let mut annotations = STOCK;
        (annotations[0].1, annotations[1].1) = ("null", "");
        let lease = Keys::default().read(&node(&annotations), Family::V4).unwrap().unwrap();
        assert_eq!((&*lease.backend, &*lease.backend_data), ("udp", "null"));
        let without: Vec<_> = STOCK.into_iter().filter(|(key, _)| *key != "backend-type").collect();
        assert!(Keys::default().read(&node(&without), Family::V4).unwrap_err().to_string().contains("is missing"));
    }

    #[test]
    fn a_node_that_takes_no_part_has_no_lease() {
        assert_eq!(Keys::default().read(&node(&[]), Family::V4).unwrap(), None);
        assert_eq!(Keys::default().read(&node(&[("public-ip", "172.25.2.2")]), Family::V4).unwrap(), None);
    }

    #[test]
    fn a_broken_annotation_is_named() {
        let mut broken = node(&STOCK);
        broken.annotations.insert(format!("{DEFAULT_PREFIX}/public-ip"), "172.25.2".into());
        let message = Keys::default().read(&broken, Family::V4).unwrap_err().to_string();
        assert_eq!(
            message,
            r#"node node2: annotation flannel.alpha.coreos.com/public-ip: "172.25.2" is no V4 address"#
        );
        let mut rangeless = node(&STOCK);
        rangeless.pod_cidrs.clear();
        assert!(Keys::default().read(&rangeless, Family::V4).unwrap_err().to_string().contains("spec.podCIDRs"));
    }

    #[test]
    fn the_overwrite_annotation_is_read() {
        let natted = node(&[("public-ip-overwrite", "203.0.113.7")]);
        let ip = Keys::default().public_ip_overwrite(&natted, Family::V4).unwrap();
        assert_eq!(ip, Some("203.0.113.7".parse().unwrap()));
        assert_eq!(Keys::default().public_ip_overwrite(&node(&[]), Family::V4).unwrap(), None);
    }

    #[test]
    fn prefixes_join_as_in_flannel() {
        for (prefix, key) in
            [("example.org", "example.org/"), ("example.org/a", "example.org/a-"), ("example.org/a-", "example.org/a-")]
        {
            assert_eq!(Keys::new(prefix).unwrap().key("x"), format!("{key}x"));
        }
        assert!(Keys::new("a/b/c").is_err());
    }

    proptest! {
        #[test]
        fn any_annotations_are_read_or_refused(
            values in prop::collection::vec(r#"[ -~]{0,30}|true|172\.25\.2\.[0-9]{1,3}|vxlan"#, 4)
        ) {
            let keys = STOCK.iter().map(|(key, _)| *key);
            let annotations: Vec<_> = keys.zip(values.iter().map(String::as_str)).collect();
            let node = node(&annotations);
            if let Ok(Some(lease)) = Keys::default().read(&node, Family::V4) {
                let mut again = node.clone();
                again.annotations = Keys::default().write(&lease);
                prop_assert_eq!(Keys::default().read(&again, Family::V4).unwrap(), Some(lease));
            }
        }
    }
}
