//! Which backend of the overlay a lab begins with: the `Backend` of `net-conf.json` in ConfigMap `kube-flannel-cfg`.

use std::fmt::Write;

use podwire_model::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// `podwire lab up --backend`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Packets travel in UDP, by the kernel.
    #[default]
    Vxlan,
    /// As vxlan, but plain routes to nodes of the same network (`DirectRouting`).
    VxlanDirect,
    /// Plain routes; all nodes must be on one network.
    HostGw,
    /// Packets travel in UDP, by flanneld itself.
    Udp,
    /// Packets travel encrypted, by the kernel.
    Wireguard,
    /// Packets travel in IP, by the kernel.
    Ipip,
    /// flanneld hands out ranges only; the lab's router knows the way to every node's pods, as a cloud's would.
    Alloc,
}

impl Backend {
    /// The `Backend` object, its fields on lines of their own.
    fn fields(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Vxlan => &[("Type", r#""vxlan""#)],
            Self::VxlanDirect => &[("Type", r#""vxlan""#), ("DirectRouting", "true")],
            Self::HostGw => &[("Type", r#""host-gw""#)],
            Self::Udp => &[("Type", r#""udp""#)],
            Self::Wireguard => &[("Type", r#""wireguard""#)],
            Self::Ipip => &[("Type", r#""ipip""#)],
            Self::Alloc => &[("Type", r#""alloc""#)],
        }
    }

    /// The text of `net-conf.json`, laid out as flannel's manifest has it, for a user to edit.
    pub fn net_conf(self, network: Ipv4Net, network_v6: Option<Ipv6Net>) -> String {
        let mut text = format!("{{\n  \"Network\": \"{network}\",\n");
        if let Some(network) = network_v6 {
            // Writing to a String cannot fail.
            let _ = write!(text, "  \"EnableIPv6\": true,\n  \"IPv6Network\": \"{network}\",\n");
        }
        let fields: Vec<_> = self.fields().iter().map(|(name, value)| format!("    \"{name}\": {value}")).collect();
        let _ = write!(text, "  \"Backend\": {{\n{}\n  }}\n}}", fields.join(",\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use serde_json::{Value, json};

    use super::*;

    fn parsed(backend: Backend, network_v6: Option<&str>) -> Value {
        let network_v6 = network_v6.map(|range| range.parse().unwrap());
        serde_json::from_str(&backend.net_conf("10.244.0.0/16".parse().unwrap(), network_v6)).unwrap()
    }

    #[test]
    fn net_conf_is_what_flannel_reads() {
        assert_eq!(parsed(Backend::Vxlan, None), json!({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}));
        let direct = parsed(Backend::VxlanDirect, Some("fd00:10:244::/56"));
        let expected = json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
            "Backend": {"Type": "vxlan", "DirectRouting": true},
        });
        assert_eq!(direct, expected);
    }

    #[test]
    fn a_backend_is_asked_for_by_the_name_of_its_type() {
        for backend in Backend::value_variants() {
            let name = backend.to_possible_value().unwrap().get_name().to_owned();
            let kind = parsed(*backend, None)["Backend"]["Type"].clone();
            assert!(kind == name || name == "vxlan-direct", "{name}: {kind}");
        }
    }
}
