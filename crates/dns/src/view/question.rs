//! From a queried name to what it asks of the cluster. Nothing here allocates.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str,
};

use domain::base::{Name, name::Label};

/// The most labels below the zone that a name can have and still mean something:
/// `_port._protocol.service.namespace.svc`.
const MAX_LABELS: usize = 5;

/// The labels of a name below a zone, lower-cased, held on the stack.
#[derive(Debug)]
pub struct Labels {
    text: [u8; 255],
    ends: [usize; MAX_LABELS],
    count: usize,
}

impl Labels {
    /// The labels of `name` that stand before its suffix `zone`. `None` when there are too many of them, or one is not
    /// UTF-8: no such name exists in a cluster. The caller has checked that `name` ends with `zone`.
    pub fn below(name: &Name<[u8]>, zone: &Name<[u8]>) -> Option<Self> {
        let count = name.label_count().checked_sub(zone.label_count())?;
        if count > MAX_LABELS {
            return None;
        }
        let mut labels = Self { text: [0; 255], ends: [0; MAX_LABELS], count };
        let mut end = 0;
        for (index, label) in name.iter().take(count).enumerate() {
            let to = labels.text.get_mut(end..end + label.len())?;
            to.copy_from_slice(label.as_slice());
            to.make_ascii_lowercase();
            str::from_utf8(to).ok()?;
            end += label.len();
            labels.ends[index] = end;
        }
        Some(labels)
    }

    /// What the labels ask of the cluster (Kubernetes DNS specification 1.1.0).
    pub fn asked(&self) -> Asked<'_> {
        let mut labels = [""; MAX_LABELS];
        let mut start = 0;
        for (label, end) in labels.iter_mut().zip(self.ends).take(self.count) {
            *label = str::from_utf8(&self.text[start..end]).unwrap_or_default();
            start = end;
        }
        match labels[..self.count] {
            [] | ["svc" | "pod"] => Asked::Branch,
            ["dns-version"] => Asked::Version,
            [namespace, "svc" | "pod"] => Asked::Namespace(namespace),
            [pod, namespace, "pod"] => Asked::Pod { namespace, address: pod },
            [service, namespace, "svc"] => Asked::Service(ServiceName { namespace, service, selector: Selector::All }),
            [host, service, namespace, "svc"] => {
                Asked::Service(ServiceName { namespace, service, selector: Selector::Endpoint(host) })
            }
            [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) if !port.is_empty() => {
                    Asked::Service(ServiceName { namespace, service, selector: Selector::Port { port, protocol } })
                }
                _ => Asked::Nothing,
            },
            _ => Asked::Nothing,
        }
    }
}

/// What a name below the cluster's zone asks for. All text is lower-case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// The zone itself, `svc` or `pod`: names that exist and hold nothing of their own.
    Branch,
    /// `dns-version`.
    Version,
    /// `<namespace>.svc` or `<namespace>.pod`: exists if the Namespace does.
    Namespace(&'a str),
    /// A Service, or part of one.
    Service(ServiceName<'a>),
    /// `<dashed address>.<namespace>.pod`.
    Pod {
        /// The Namespace.
        namespace: &'a str,
        /// The dashed address.
        address: &'a str,
    },
    /// A name that cannot exist.
    Nothing,
}

/// A Service and which part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceName<'a> {
    /// The Service's namespace.
    pub namespace: &'a str,
    /// The Service's name.
    pub service: &'a str,
    /// Which part of it.
    pub selector: Selector<'a>,
}

/// Which part of a Service a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector<'a> {
    /// The Service itself.
    All,
    /// `<hostname or dashed address>.<service>…`
    Endpoint(&'a str),
    /// `_<port>._<protocol>.<service>…`
    Port {
        /// The port's name.
        port: &'a str,
        /// `tcp`, `udp` or `sctp`.
        protocol: &'a str,
    },
}

/// The address that a label such as `10-244-0-7` or `fd00--7` spells, if it does.
pub fn dashed_address(label: &str) -> Option<IpAddr> {
    let mut text = [0; 63];
    let text = text.get_mut(..label.len())?;
    text.copy_from_slice(label.as_bytes());
    let v4 = label.bytes().filter(|byte| *byte == b'-').count() == 3 && !label.contains("--");
    text.iter_mut().filter(|byte| **byte == b'-').for_each(|byte| *byte = if v4 { b'.' } else { b':' });
    let text = str::from_utf8(text).ok()?;
    if v4 { text.parse().ok().map(IpAddr::V4) } else { text.parse().ok().map(IpAddr::V6) }
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for, if it is a whole one (RFC 1035 3.5, RFC 3596 2.5).
pub fn reverse_address(name: &Name<[u8]>) -> Option<IpAddr> {
    let is =
        |label: Option<&Label>, text: &[u8]| label.is_some_and(|label| label.as_slice().eq_ignore_ascii_case(text));
    let mut labels = name.iter().rev();
    labels.next().filter(|label| label.is_root())?;
    if !is(labels.next(), b"arpa") {
        return None;
    }
    let family = labels.next();
    if is(family, b"in-addr") && name.label_count() == 4 + 3 {
        let mut octets = [0; 4];
        for (octet, label) in octets.iter_mut().zip(labels) {
            let text = str::from_utf8(label.as_slice()).ok()?;
            *octet = text.parse().ok().filter(|_| text == "0" || !text.starts_with(['0', '+']))?;
        }
        Some(Ipv4Addr::from(octets).into())
    } else if is(family, b"ip6") && name.label_count() == 32 + 3 {
        let mut bits = 0;
        for label in labels {
            let [digit] = label.as_slice() else { return None };
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        Some(Ipv6Addr::from(bits).into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name<Vec<u8>> {
        text.parse().unwrap()
    }

    #[test]
    fn names_below_the_zone() {
        let zone = name("cluster.local");
        let cases = [
            ("Cluster.LOCAL", "Branch"),
            ("svc.cluster.local", "Branch"),
            ("dns-version.cluster.local", "Version"),
            ("Default.SVC.cluster.local", r#"Namespace("default")"#),
            ("a.b.c.d.e.svc.cluster.local", "too long"),
            ("http._tcp.web.default.svc.cluster.local", "Nothing"),
            ("_._tcp.web.default.svc.cluster.local", "Nothing"),
            ("web.default.cluster.local", "Nothing"),
            ("1-2-3-4.default.pod.cluster.local", r#"Pod { namespace: "default", address: "1-2-3-4" }"#),
            (
                "Web.default.svc.cluster.local",
                r#"Service(ServiceName { namespace: "default", service: "web", selector: All })"#,
            ),
            (
                "a.web.default.svc.cluster.local",
                r#"Service(ServiceName { namespace: "default", service: "web", selector: Endpoint("a") })"#,
            ),
            (
                "_HTTP._tcp.web.default.svc.cluster.local",
                "Service(ServiceName { namespace: \"default\", service: \"web\", selector: Port { port: \"http\", protocol: \"tcp\" } })",
            ),
        ];
        for (text, wanted) in cases {
            let labels = Labels::below(name(text).for_slice(), zone.for_slice());
            let asked = labels.as_ref().map_or("too long".to_owned(), |labels| format!("{:?}", labels.asked()));
            assert_eq!(asked, wanted, "{text}");
        }
    }

    #[test]
    fn dashed_addresses() {
        assert_eq!(dashed_address("10-244-0-7"), Some([10, 244, 0, 7].into()));
        assert_eq!(dashed_address("fd00--7").unwrap().to_string(), "fd00::7");
        assert_eq!(dashed_address("1234-abcd--0").unwrap().to_string(), "1234:abcd::");
        for wrong in ["", "web", "10-244-0", "10-244-0-256", "10.244.0.7", &"1".repeat(64)] {
            assert_eq!(dashed_address(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn reverse_names() {
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.f.IP6.arpa";
        assert_eq!(reverse_address(name("10.0.96.10.In-Addr.arpa").for_slice()), Some([10, 96, 0, 10].into()));
        assert_eq!(reverse_address(name(v6).for_slice()).unwrap().to_string(), "fd00::1");
        for wrong in [
            "0.96.10.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "1.2.3.256.in-addr.arpa",
            "01.2.3.4.in-addr.arpa",
            "1.ip6.arpa",
            "1.2.3.4.example",
        ] {
            assert_eq!(reverse_address(name(wrong).for_slice()), None, "{wrong}");
        }
    }
}
