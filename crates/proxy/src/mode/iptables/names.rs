//! The names of chains: kube-proxy's own, so that one can take over from the other.

use std::fmt;

use podwire_kernel::iptables::Table;
use podwire_model::Protocol;
use sha2::{Digest as _, Sha256};

use crate::plan::Backend;

/// What a chain of a Service port does, in the order in which they must be made: each leads to earlier ones only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `KUBE-SEP-`: to one endpoint.
    Endpoint,
    /// `KUBE-SVC-`: spread over the endpoints of the cluster.
    Cluster,
    /// `KUBE-SVL-`: spread over the endpoints of this node.
    Local,
    /// `KUBE-EXT-`: traffic from outside the cluster, or for addresses outside.
    External,
    /// `KUBE-FW-`: only from some sources.
    Firewall,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Endpoint, Self::Cluster, Self::Local, Self::External, Self::Firewall];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Endpoint => "KUBE-SEP-",
            Self::Cluster => "KUBE-SVC-",
            Self::Local => "KUBE-SVL-",
            Self::External => "KUBE-EXT-",
            Self::Firewall => "KUBE-FW-",
        }
    }
}

/// A chain of a Service port, in table nat. 17 bytes: there is one for every endpoint of every Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    /// What it does.
    pub kind: Kind,
    hash: [u8; 16],
}

impl Chain {
    /// The chain of a Service port (`namespace/name:port`), for one endpoint if there is one.
    ///
    /// The name is kube-proxy's: the first 16 letters of the SHA-256 of port, protocol and endpoint in base 32.
    pub fn new(kind: Kind, label: &str, protocol: Protocol, endpoint: Option<&Backend>) -> Self {
        let mut hasher = Sha256::new_with_prefix(label);
        hasher.update(protocol.lower());
        if let Some(endpoint) = endpoint {
            hasher.update(socket_address(endpoint));
        }
        let digest = hasher.finalize();
        let bits = digest.iter().take(10).fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
        let letter = |at: usize| b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[(bits >> (75 - 5 * at)) as usize & 31];
        Self { kind, hash: std::array::from_fn(letter) }
    }

    /// The chain of that name, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let (kind, hash) = Kind::ALL.iter().find_map(|kind| Some((*kind, name.strip_prefix(kind.prefix())?)))?;
        Some(Self { kind, hash: hash.as_bytes().try_into().ok()? })
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.prefix())?;
        f.write_str(str::from_utf8(&self.hash).unwrap_or_default())
    }
}

/// `ADDRESS:PORT`, or `[ADDRESS]:PORT`.
pub fn socket_address(backend: &Backend) -> String {
    std::net::SocketAddr::new(backend.address, backend.port).to_string()
}

/// The chains that all Services have rules in, in an order in which they can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// `KUBE-NODEPORTS` of table nat: node ports.
    NodePorts,
    /// `KUBE-SERVICES` of table nat: addresses of Services.
    Addresses,
    /// `KUBE-CLUSTER-IPS` of table filter: ports of cluster IPs that no Service has.
    ClusterIps,
    /// `KUBE-EXTERNAL-SERVICES` of table filter: other addresses and node ports without endpoints.
    UnservedExternal,
    /// `KUBE-SERVICES` of table filter: cluster IPs without endpoints.
    Unserved,
    /// `KUBE-PROXY-FIREWALL` of table filter: what did not come from the right sources.
    Firewall,
}

impl Shared {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NodePorts, Self::Addresses, Self::ClusterIps, Self::UnservedExternal, Self::Unserved, Self::Firewall];

    /// Which table it is in.
    pub const fn table(self) -> Table {
        match self {
            Self::Addresses | Self::NodePorts => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Addresses | Self::Unserved => "KUBE-SERVICES",
            Self::NodePorts => "KUBE-NODEPORTS",
            Self::UnservedExternal => "KUBE-EXTERNAL-SERVICES",
            Self::Firewall => "KUBE-PROXY-FIREWALL",
            Self::ClusterIps => "KUBE-CLUSTER-IPS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names from kube-proxy's own tests.
    #[test]
    fn chains_are_called_as_kube_proxy_calls_them() {
        let name = |kind, label, endpoint: Option<&str>| {
            let backend = endpoint.map(|text| {
                let to: std::net::SocketAddr = text.parse().unwrap();
                Backend { address: to.ip(), port: to.port() }
            });
            Chain::new(kind, label, Protocol::Tcp, backend.as_ref()).to_string()
        };
        assert_eq!(name(Kind::Cluster, "ns1/svc1:p80", None), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(name(Kind::Endpoint, "ns1/svc1:p80", Some("10.180.0.1:80")), "KUBE-SEP-SXIVWICOYRO3J4NJ");
        assert_eq!(name(Kind::Local, "ns2/svc2:p80", None), "KUBE-SVL-GNZBNJ2PO5MGZ6GT");
        assert_eq!(name(Kind::External, "ns4/svc4:p80", None), "KUBE-EXT-4SW47YFZTEDKD3PK");
        assert_eq!(name(Kind::Endpoint, "ns4/svc4:p80", Some("10.180.0.5:80")), "KUBE-SEP-C6EBXVWJJZMIWKLZ");
        assert_eq!(name(Kind::Firewall, "ns5/svc5:p80", None), "KUBE-FW-NUKIZ6OKUXPJNT4C");
    }

    #[test]
    fn only_our_own_chains_are_recognised() {
        let chain = Chain::new(Kind::Local, "default/web", Protocol::Udp, None);
        assert_eq!(Chain::parse(&chain.to_string()), Some(chain));
        for other in ["KUBE-SERVICES", "KUBE-SVC-SHORT", "KUBE-KUBELET-CANARY", "DOCKER", "KUBE-SEP-"] {
            assert_eq!(Chain::parse(other), None, "{other}");
        }
    }
}
