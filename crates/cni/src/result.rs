use std::net::IpAddr;

use podwire_model::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, Result, Version};

/// What ADD made: interfaces, addresses, routes. Written in the version that was asked for, read in any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CniResult {
    /// In which version it is written.
    pub cni_version: Version,
    /// The interfaces, on the host and in the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// The container's routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteConfig>,
    /// The container's resolver settings.
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface that ADD made or used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace that it is in; absent on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address that ADD assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Which of [`CniResult::interfaces`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address and the prefix length of its network.
    pub address: IpNet,
    /// The router of that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Where to.
    pub dst: IpNet,
    /// Through which router; that of the address of the same family when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to announce, in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope number (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl RouteConfig {
    /// A route to `dst`, with everything else left to defaults.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Resolver settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Suffixes to try for short names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// [`Error::Decode`] for the wrong shape; `what` names the JSON in it.
    pub fn from_json(value: &Value, what: &str) -> Result<Self> {
        Self::deserialize(value).map_err(|error| Error::decode(what, &error))
    }

    /// The result in the shape of `version`.
    pub fn to_json(&self, version: Version) -> Value {
        let mut result = self.clone();
        result.cni_version = version;
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
            }
            for route in &mut result.routes {
                *route = RouteConfig { gw: route.gw, ..RouteConfig::to(route.dst) };
            }
        }
        let mut value = json!(result);
        if version < Version::V1_0_0
            && let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = json!(if config.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> CniResult {
        CniResult {
            interfaces: vec![Interface { name: "eth0".into(), mtu: Some(1450), ..Interface::default() }],
            ips: vec![IpConfig { interface: Some(0), address: "10.244.0.2/24".parse().unwrap(), gateway: None }],
            routes: vec![RouteConfig { priority: Some(7), ..RouteConfig::to("0.0.0.0/0".parse().unwrap()) }],
            ..CniResult::default()
        }
    }

    #[test]
    fn an_old_version_has_the_old_shape() {
        let expected = json!({
            "cniVersion": "0.3.1",
            "interfaces": [{"name": "eth0"}],
            "ips": [{"version": "4", "interface": 0, "address": "10.244.0.2/24"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        assert_eq!(result().to_json(Version::V0_3_1), expected);
    }

    #[test]
    fn a_result_is_read_as_it_is_written() {
        for version in Version::ALL {
            let read = CniResult::from_json(&result().to_json(version), "result").unwrap();
            assert_eq!((read.cni_version, &read.ips), (version, &result().ips));
        }
        assert_eq!(CniResult::from_json(&result().to_json(Version::V1_1_0), "result").unwrap(), result());
    }
}
