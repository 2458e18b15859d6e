//! Flags of kube-proxy 1.36.

use std::{net::IpAddr, path::PathBuf};

use clap::ArgAction::{Append, Set};

use super::{duration::GoDuration, schema::Configuration};

/// Flags of kube-proxy. Switches are read as Go reads them: `--name`, `--name=true`, `--name=false`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1). It is watched, and a change of it takes effect
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Write the effective configuration, defaults included, to this file and exit
    #[arg(long, value_name = "FILE")]
    pub(super) write_config_to: Option<PathBuf>,
    /// Remove what every mode left in the kernel, and exit
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) cleanup: bool,
    /// Set kernel parameters, which may take more privileges than the rest, and exit
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) init_only: bool,
    /// Name of this node's Node object [default: hostnameOverride of the file, or the machine's name]
    #[arg(long, value_name = "NAME")]
    pub(super) hostname_override: Option<String>,
    /// URL of the API server, instead of the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub(super) master: Option<String>,
    /// Verbosity of the log: from 4 on, what was done for each change
    #[arg(short, long, value_name = "LEVEL")]
    pub v: Option<u8>,
    #[command(flatten)]
    pub(super) values: Values,
    #[command(flatten)]
    unused: Unused,
}

/// Flags that say what the file would say; without effect where `--config` is given.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Instead of a configuration file")]
pub struct Values {
    /// How to reach the API server [default: as the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// nftables, iptables, ipvs or userspace [default: iptables]
    #[arg(long, value_name = "MODE")]
    proxy_mode: Option<String>,
    /// This node's primary address, whatever its Node object says
    #[arg(long, value_name = "ADDRESS")]
    bind_address: Option<IpAddr>,
    /// Where to answer /healthz and /livez [default: 0.0.0.0:10256]; port 0 for nowhere
    #[arg(long, value_name = "ADDRESS:PORT")]
    healthz_bind_address: Option<String>,
    /// Where to answer /metrics and /proxyMode [default: 127.0.0.1:10249]; empty or port 0 for nowhere
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_bind_address: Option<String>,
    /// Port of /healthz; 0 for nowhere (deprecated)
    #[arg(long, value_name = "PORT")]
    healthz_port: Option<u16>,
    /// Port of /metrics; 0 for nowhere (deprecated)
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
    /// End if one of these addresses is taken, rather than try again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    bind_address_hard_fail: Option<bool>,
    /// Address ranges of pods, of each family at most one
    #[arg(long, value_name = "RANGES")]
    cluster_cidr: Option<String>,
    /// How to tell traffic of pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    detect_local_mode: Option<String>,
    /// The bridge of pods, for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,
    /// How names of pods' interfaces begin, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pod_interface_name_prefix: Option<String>,
    /// Address ranges where node ports are served, or `primary`
    #[arg(long, value_name = "RANGES", value_delimiter = ',')]
    nodeport_addresses: Option<Vec<String>>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    masquerade_all: Option<bool>,
    /// Bit of the packet mark that asks for masquerading
    #[arg(long, value_name = "BIT", allow_negative_numbers = true)]
    iptables_masquerade_bit: Option<i32>,
    /// Serve node ports at 127.0.0.1 as well, in iptables mode
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    iptables_localhost_nodeports: Option<bool>,
    /// Half the time after which a kernel that is behind counts as unhealthy
    #[arg(long, value_name = "TIME")]
    iptables_sync_period: Option<GoDuration>,
    /// The same, for ipvs
    #[arg(long, value_name = "TIME")]
    ipvs_sync_period: Option<GoDuration>,
    /// How ipvs chooses endpoints
    #[arg(long, value_name = "NAME")]
    ipvs_scheduler: Option<String>,
    /// Ranges whose virtual servers are somebody else's
    #[arg(long, value_name = "RANGES", value_delimiter = ',')]
    ipvs_exclude_cidrs: Option<Vec<String>>,
    /// Do not answer ARP for addresses of kube-ipvs0
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipvs_strict_arp: Option<bool>,
    /// How long an idle TCP connection is kept; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    ipvs_tcp_timeout: Option<GoDuration>,
    /// How long a TCP connection is kept after a FIN; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    ipvs_tcpfin_timeout: Option<GoDuration>,
    /// How long an idle UDP flow is kept; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    ipvs_udp_timeout: Option<GoDuration>,
    /// Tracked connections for each processor; 0 leaves the limit alone
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    conntrack_max_per_core: Option<i32>,
    /// Tracked connections at least
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    conntrack_min: Option<i32>,
    /// How long an idle TCP connection is tracked; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    conntrack_tcp_timeout_established: Option<GoDuration>,
    /// How long a half-closed TCP connection is tracked; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Do not take TCP packets outside the window for invalid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    conntrack_tcp_be_liberal: Option<bool>,
    /// How long an unanswered UDP flow is tracked; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    conntrack_udp_timeout: Option<GoDuration>,
    /// How long an answered UDP flow is tracked; 0 for the kernel's
    #[arg(long, value_name = "TIME")]
    conntrack_udp_timeout_stream: Option<GoDuration>,
    /// What the kernel thinks of this process when memory runs out: -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    oom_score_adj: Option<i32>,
}

/// Flags that are accepted and have no effect: see [`super::schema`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted, without effect")]
#[allow(dead_code, reason = "that is what these are")]
struct Unused {
    /// Switches of features
    #[arg(long, value_name = "NAME=BOOL,...", value_delimiter = ',', action = Append)]
    feature_gates: Vec<String>,
    /// Format of requests
    #[arg(long, value_name = "TYPE")]
    kube_api_content_type: Option<String>,
    /// Requests at once
    #[arg(long, value_name = "COUNT")]
    kube_api_burst: Option<i32>,
    /// Requests for each second
    #[arg(long, value_name = "RATE")]
    kube_api_qps: Option<f32>,
    /// How often to list everything again
    #[arg(long, value_name = "TIME")]
    config_sync_period: Option<GoDuration>,
    /// How long to save up changes
    #[arg(long, value_name = "TIME")]
    iptables_min_sync_period: Option<GoDuration>,
    /// How long to save up changes, for ipvs
    #[arg(long, value_name = "TIME")]
    ipvs_min_sync_period: Option<GoDuration>,
    /// Serve Go profiles
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profiling: Option<bool>,
    /// Show metrics that an earlier version had
    #[arg(long, value_name = "VERSION")]
    show_hidden_metrics_for_version: Option<String>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT")]
    logging_format: Option<String>,
    /// How often to write the log out
    #[arg(long, value_name = "TIME")]
    log_flush_frequency: Option<GoDuration>,
    /// Buffer of the log
    #[arg(long, value_name = "SIZE")]
    log_json_info_buffer_size: Option<String>,
    /// Two streams for the log
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_json_split_stream: Option<bool>,
    /// Buffer of the log
    #[arg(long, value_name = "SIZE")]
    log_text_info_buffer_size: Option<String>,
    /// Two streams for the log
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_text_split_stream: Option<bool>,
    /// Verbosity by source file
    #[arg(long, value_name = "PATTERN=LEVEL,...")]
    vmodule: Option<String>,
}

impl Values {
    /// What these flags say, as a configuration without defaults.
    pub fn configuration(&self) -> Configuration {
        let values = self.clone();
        let mut config = Configuration::default();
        put(&mut config.client_connection.kubeconfig, values.kubeconfig);
        put(&mut config.mode, values.proxy_mode);
        put(&mut config.bind_address, values.bind_address.map(|address| address.to_string()));
        put(&mut config.healthz_bind_address, page_address(values.healthz_bind_address, values.healthz_port));
        put(&mut config.metrics_bind_address, page_address(values.metrics_bind_address, values.metrics_port));
        put(&mut config.bind_address_hard_fail, values.bind_address_hard_fail);
        put(&mut config.cluster_cidr, values.cluster_cidr);
        put(&mut config.detect_local_mode, values.detect_local_mode);
        put(&mut config.detect_local.bridge_interface, values.pod_bridge_interface);
        put(&mut config.detect_local.interface_name_prefix, values.pod_interface_name_prefix);
        put(&mut config.node_port_addresses, values.nodeport_addresses);
        config.oom_score_adj = values.oom_score_adj;
        for all in [&mut config.iptables.masquerade_all, &mut config.nftables.masquerade_all] {
            put(all, values.masquerade_all);
        }
        config.iptables.masquerade_bit = values.iptables_masquerade_bit;
        config.iptables.localhost_node_ports = values.iptables_localhost_nodeports;
        for period in [&mut config.iptables.sync_period, &mut config.nftables.sync_period] {
            put(period, values.iptables_sync_period);
        }
        let ipvs = &mut config.ipvs;
        put(&mut ipvs.sync_period, values.ipvs_sync_period);
        put(&mut ipvs.scheduler, values.ipvs_scheduler);
        put(&mut ipvs.exclude_cidrs, values.ipvs_exclude_cidrs);
        put(&mut ipvs.strict_arp, values.ipvs_strict_arp);
        put(&mut ipvs.tcp_timeout, values.ipvs_tcp_timeout);
        put(&mut ipvs.tcp_fin_timeout, values.ipvs_tcpfin_timeout);
        put(&mut ipvs.udp_timeout, values.ipvs_udp_timeout);
        let conntrack = &mut config.conntrack;
        conntrack.max_per_core = values.conntrack_max_per_core;
        conntrack.min = values.conntrack_min;
        conntrack.tcp_established_timeout = values.conntrack_tcp_timeout_established;
        conntrack.tcp_close_wait_timeout = values.conntrack_tcp_timeout_close_wait;
        put(&mut conntrack.tcp_be_liberal, values.conntrack_tcp_be_liberal);
        put(&mut conntrack.udp_timeout, values.conntrack_udp_timeout);
        put(&mut conntrack.udp_stream_timeout, values.conntrack_udp_timeout_stream);
        config
    }
}

fn put<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The address with the port of the deprecated flag where it has none of its own; port 0 for what is switched off.
fn page_address(address: Option<String>, port: Option<u16>) -> Option<String> {
    match (address, port) {
        (_, Some(0)) => Some(":0".to_owned()),
        (Some(address), _) if address.is_empty() => Some(":0".to_owned()),
        (Some(address), Some(port)) if address.parse::<IpAddr>().is_ok() => {
            Some(std::net::SocketAddr::new(address.parse().ok()?, port).to_string())
        }
        (Some(address), _) => Some(address),
        (None, port) => port.map(|port| format!(":{port}")),
    }
}
