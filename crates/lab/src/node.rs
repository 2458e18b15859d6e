//! One node of a lab: a process with its own network, mounts and host name that hands over to the kubelet.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What a node's kubelet is told (the kubelet's flags and configuration file, as one value).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The Node's name and host name, for example `node1`.
    pub name: String,
    /// The node's address on the underlay: its InternalIP.
    pub address: IpAddr,
    /// A kubeconfig (its text) for the API server's address on the underlay, with credentials for everything.
    pub kubeconfig: String,
    /// The API server as pods are told it, without the Service: host and port, for example 172.25.2.254 and 6443.
    pub api_server: (IpAddr, u16),
    /// `clusterDNS`: the nameserver of pods, for example 10.96.0.10.
    pub cluster_dns: IpAddr,
    /// `clusterDomain`, for example `cluster.local`.
    pub cluster_domain: String,
    /// Where CNI configuration is found, `/etc/cni/net.d`, as seen from the node's root.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are found, `/opt/cni/bin`, as seen from the node's root.
    pub cni_bin_dir: PathBuf,
}
