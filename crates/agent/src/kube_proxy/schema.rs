//! `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1) as it is written, field by field, with upstream's
//! defaults. What the fields mean here is decided in [`Config`](super::config::Config).
//!
//! Accepted and without effect: `featureGates`, `logging` (use `-v` or `RUST_LOG`), `enableProfiling`,
//! `showHiddenMetricsForVersion`, `configSyncPeriod` (nothing has to be listed again), `minSyncPeriod` of each mode (work
//! is in proportion to the change, so there is nothing to save up), `portRange`, `winkernel`, `windowsRunAsService`, and
//! all of `clientConnection` but `kubeconfig`.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, anyhow, ensure};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::duration::GoDuration;

/// The file's `apiVersion`.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The file's `kind`.
pub const KIND: &str = "KubeProxyConfiguration";

/// Objects of the file. Absent and null fields have the zero value, as Go has it; unknown fields are errors.
macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$meta])* #[serde(deserialize_with = "null_is_zero")] pub $field: $type,)*
        }
    )*};
}

objects! {
    /// The whole file.
    Configuration {
        api_version: String,
        kind: String,
        feature_gates: BTreeMap<String, bool>,
        client_connection: ClientConnection,
        logging: Logging,
        hostname_override: String,
        bind_address: String,
        healthz_bind_address: String,
        metrics_bind_address: String,
        bind_address_hard_fail: bool,
        enable_profiling: bool,
        show_hidden_metrics_for_version: String,
        mode: String,
        iptables: Iptables,
        ipvs: Ipvs,
        nftables: Nftables,
        winkernel: Winkernel,
        detect_local_mode: String,
        detect_local: DetectLocal,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        node_port_addresses: Vec<String>,
        oom_score_adj: Option<i32>,
        conntrack: Conntrack,
        config_sync_period: GoDuration,
        port_range: String,
        windows_run_as_service: bool,
    }

    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f32,
        burst: i32,
    }

    Logging {
        format: String,
        /// Nanoseconds, or text like `5s`.
        flush_frequency: Value,
        verbosity: u32,
        vmodule: Vec<VModule>,
        options: LoggingOptions,
    }

    VModule {
        file_pattern: String,
        verbosity: u32,
    }

    LoggingOptions {
        text: LoggingFormat,
        json: LoggingFormat,
    }

    LoggingFormat {
        split_stream: bool,
        /// A quantity.
        info_buffer_size: Value,
    }

    Iptables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        localhost_node_ports: Option<bool>,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }

    Ipvs {
        sync_period: GoDuration,
        min_sync_period: GoDuration,
        scheduler: String,
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Vec<String>,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        tcp_timeout: GoDuration,
        tcp_fin_timeout: GoDuration,
        udp_timeout: GoDuration,
    }

    Nftables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }

    Winkernel {
        network_name: String,
        source_vip: String,
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        root_hns_endpoint_name: String,
        forward_health_check_vip: bool,
    }

    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }

    Conntrack {
        max_per_core: Option<i32>,
        min: Option<i32>,
        tcp_established_timeout: Option<GoDuration>,
        tcp_close_wait_timeout: Option<GoDuration>,
        tcp_be_liberal: bool,
        udp_timeout: GoDuration,
        udp_stream_timeout: GoDuration,
    }
}

fn null_is_zero<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Configuration {
    /// Reads a file's text; no defaults are filled in.
    ///
    /// # Errors
    /// The text is no YAML, another kind of object, or has an unknown or malformed field: which, and where.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Types {
            api_version: Option<String>,
            kind: Option<String>,
        }
        let Types { api_version, kind } = serde_saphyr::from_str(text)?;
        let shown = |value: Option<String>| value.unwrap_or_else(|| "missing".to_owned());
        ensure!(
            api_version.as_deref() == Some(API_VERSION),
            "apiVersion is {}, expected {API_VERSION}",
            shown(api_version)
        );
        ensure!(kind.as_deref() == Some(KIND), "kind is {}, expected {KIND}", shown(kind));
        let mut path = None;
        let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            let mut track = serde_path_to_error::Track::new();
            let parsed = Self::deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track));
            path = Some(track.path().to_string());
            parsed
        });
        parsed.map_err(|error| anyhow!(error)).with_context(|| path.unwrap_or_default())
    }

    /// Fills in what is not said, as kube-proxy 1.36 does on Linux.
    pub fn with_defaults(mut self) -> Self {
        API_VERSION.clone_into(&mut self.api_version);
        KIND.clone_into(&mut self.kind);
        text(&mut self.bind_address, "0.0.0.0");
        let v6 = self.bind_address.parse().is_ok_and(|address: IpAddr| address.is_ipv6());
        text(&mut self.healthz_bind_address, if v6 { "[::]:10256" } else { "0.0.0.0:10256" });
        text(&mut self.metrics_bind_address, if v6 { "[::1]:10249" } else { "127.0.0.1:10249" });
        text(&mut self.mode, "iptables");
        text(&mut self.detect_local_mode, "ClusterCIDR");
        if self.mode == "nftables" && self.node_port_addresses.is_empty() {
            self.node_port_addresses = vec!["primary".to_owned()];
        }
        self.oom_score_adj.get_or_insert(-999);
        period(&mut self.config_sync_period, 15 * 60);
        let connection = &mut self.client_connection;
        text(&mut connection.content_type, "application/vnd.kubernetes.protobuf");
        if connection.qps == 0.0 {
            connection.qps = 5.0;
        }
        if connection.burst == 0 {
            connection.burst = 10;
        }
        text(&mut self.logging.format, "text");
        value(&mut self.logging.flush_frequency, "5s");
        for format in [&mut self.logging.options.text, &mut self.logging.options.json] {
            value(&mut format.info_buffer_size, "0");
        }
        for bit in [&mut self.iptables.masquerade_bit, &mut self.nftables.masquerade_bit] {
            bit.get_or_insert(14);
        }
        self.iptables.localhost_node_ports.get_or_insert(true);
        for sync in [&mut self.iptables.sync_period, &mut self.ipvs.sync_period, &mut self.nftables.sync_period] {
            period(sync, 30);
        }
        for pause in [&mut self.iptables.min_sync_period, &mut self.nftables.min_sync_period] {
            period(pause, 1);
        }
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32 * 1024);
        conntrack.min.get_or_insert(128 * 1024);
        conntrack.tcp_established_timeout.get_or_insert(seconds(24 * 60 * 60));
        conntrack.tcp_close_wait_timeout.get_or_insert(seconds(60 * 60));
        self
    }

    /// The file's text.
    ///
    /// # Errors
    /// None for what [`Configuration::parse`] gave.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }
}

fn text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn value(field: &mut Value, default: &str) {
    if field.is_null() {
        *field = default.into();
    }
}

fn period(field: &mut GoDuration, default: u64) {
    if field.0.is_zero() {
        *field = seconds(default);
    }
}

const fn seconds(seconds: u64) -> GoDuration {
    GoDuration(std::time::Duration::from_secs(seconds))
}
