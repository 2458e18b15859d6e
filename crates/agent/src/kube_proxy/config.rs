//! `KubeProxyConfiguration`, v1alpha1.
//!
//! Every field of the API is known by name, so that a stock file is accepted and a misspelt field is not. Settings of
//! other modes are accepted and have no effect; settings that would change how traffic flows and are not supported are
//! errors.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use podwire_model::IpNet;
use serde::{Deserialize, de::IgnoredAny};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// Bit 14: the mark 0x4000, which flannel and others know.
const DEFAULT_MASQUERADE_BIT: u32 = 14;

/// A part of the file whose contents have no effect here.
type Unused = Option<IgnoredAny>;

/// The file. Absent and null fields have kube-proxy's defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(rename = "featureGates")]
    _feature_gates: Option<BTreeMap<String, bool>>,
    client_connection: Option<ClientConnection>,
    #[serde(rename = "logging")]
    _logging: Unused,
    hostname_override: Option<String>,
    #[serde(rename = "bindAddress")]
    _bind_address: Unused,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    #[serde(rename = "bindAddressHardFail")]
    _bind_address_hard_fail: Unused,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Unused,
    #[serde(rename = "showHiddenMetricsForVersion")]
    _show_hidden_metrics_for_version: Unused,
    mode: Option<String>,
    #[serde(rename = "iptables")]
    _iptables: Unused,
    #[serde(rename = "ipvs")]
    _ipvs: Unused,
    nftables: Option<Nftables>,
    #[serde(rename = "winkernel")]
    _winkernel: Unused,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    #[serde(rename = "oomScoreAdj")]
    _oom_score_adj: Unused,
    conntrack: Option<Conntrack>,
    #[serde(rename = "configSyncPeriod")]
    _config_sync_period: Unused,
    #[serde(rename = "portRange")]
    _port_range: Unused,
    #[serde(rename = "windowsRunAsService")]
    _windows_run_as_service: Unused,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
    #[serde(rename = "acceptContentTypes")]
    _accept_content_types: Unused,
    #[serde(rename = "contentType")]
    _content_type: Unused,
    #[serde(rename = "qps")]
    _qps: Unused,
    #[serde(rename = "burst")]
    _burst: Unused,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Nftables {
    masquerade_bit: Option<u32>,
    masquerade_all: Option<bool>,
    #[serde(rename = "syncPeriod")]
    _sync_period: Unused,
    #[serde(rename = "minSyncPeriod")]
    _min_sync_period: Unused,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DetectLocal {
    #[serde(rename = "bridgeInterface")]
    _bridge_interface: Unused,
    #[serde(rename = "interfaceNamePrefix")]
    _interface_name_prefix: Unused,
    #[serde(rename = "clusterCIDRs")]
    cluster_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Conntrack {
    #[serde(rename = "maxPerCore")]
    _max_per_core: Unused,
    #[serde(rename = "min")]
    _min: Unused,
    #[serde(rename = "tcpEstablishedTimeout")]
    _tcp_established_timeout: Unused,
    #[serde(rename = "tcpCloseWaitTimeout")]
    _tcp_close_wait_timeout: Unused,
    tcp_be_liberal: Option<bool>,
    #[serde(rename = "udpTimeout")]
    _udp_timeout: Unused,
    #[serde(rename = "udpStreamTimeout")]
    _udp_stream_timeout: Unused,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// It cannot be read, is no such configuration (line, column and field are named), or asks for what is not
    /// supported.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no usable {KIND}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = serde_saphyr::from_str(text)?;
        let (version, kind) = (config.api_version.as_deref(), config.kind.as_deref());
        ensure!(version == Some(API_VERSION), "apiVersion is {}, expected {API_VERSION}", version.unwrap_or("missing"));
        ensure!(kind == Some(KIND), "kind is {}, expected {KIND}", kind.unwrap_or("missing"));
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        podwire_proxy::mode::find(self.mode()).map(drop).context("mode")?;
        match self.detect_local_mode.as_deref() {
            None | Some("" | "ClusterCIDR") => {}
            Some(other) => bail!("detectLocalMode: {other:?} is not supported; supported: ClusterCIDR"),
        }
        if self.node_port_addresses.as_ref().is_some_and(|addresses| !addresses.is_empty()) {
            bail!("nodePortAddresses is not supported; node ports are served on every address of the node");
        }
        let bit = self.masquerade_bit();
        ensure!(bit < 32, "nftables.masqueradeBit: {bit} is not a bit of a packet mark (0 to 31)");
        self.pod_ranges().map(drop)?;
        self.healthz_address().map(drop)?;
        self.metrics_address().map(drop)
    }

    /// The proxy mode; nftables where none is named.
    pub fn mode(&self) -> &str {
        match self.mode.as_deref() {
            None | Some("") => "nftables",
            Some(mode) => mode,
        }
    }

    /// `clientConnection.kubeconfig`; `None` means the pod's service account.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        let connection = self.client_connection.as_ref()?;
        connection.kubeconfig.clone().filter(|path| !path.as_os_str().is_empty())
    }

    /// `hostnameOverride`, if set.
    pub fn hostname_override(&self) -> Option<String> {
        self.hostname_override.clone().filter(|name| !name.is_empty())
    }

    /// Which sources are pods: `detectLocal.clusterCIDRs`, else `clusterCIDR` (several are separated by commas).
    ///
    /// # Errors
    /// A range is none.
    pub fn pod_ranges(&self) -> anyhow::Result<Vec<IpNet>> {
        let listed = self.detect_local.as_ref().and_then(|detect| detect.cluster_cidrs.clone()).unwrap_or_default();
        let (field, ranges) = if listed.is_empty() {
            let joined = self.cluster_cidr.as_deref().unwrap_or_default();
            ("clusterCIDR", joined.split(',').map(str::to_owned).collect())
        } else {
            ("detectLocal.clusterCIDRs", listed)
        };
        let ranges = ranges.iter().map(|range| range.trim()).filter(|range| !range.is_empty());
        ranges.map(|range| range.parse().with_context(|| format!("{field}: {range:?} is no address range"))).collect()
    }

    /// The mark that asks for masquerading.
    pub fn masquerade_mark(&self) -> u32 {
        1_u32.checked_shl(self.masquerade_bit()).unwrap_or(1 << DEFAULT_MASQUERADE_BIT)
    }

    fn masquerade_bit(&self) -> u32 {
        self.nftables.as_ref().and_then(|nftables| nftables.masquerade_bit).unwrap_or(DEFAULT_MASQUERADE_BIT)
    }

    /// `nftables.masqueradeAll`.
    pub fn masquerade_all(&self) -> bool {
        self.nftables.as_ref().and_then(|nftables| nftables.masquerade_all).unwrap_or(false)
    }

    /// `conntrack.tcpBeLiberal`.
    pub fn tcp_be_liberal(&self) -> bool {
        self.conntrack.as_ref().and_then(|conntrack| conntrack.tcp_be_liberal).unwrap_or(false)
    }

    /// Where `/healthz` is; `None` when switched off by an empty port.
    ///
    /// # Errors
    /// It is no address.
    pub fn healthz_address(&self) -> anyhow::Result<Option<SocketAddr>> {
        address("healthzBindAddress", self.healthz_bind_address.as_deref(), ([0, 0, 0, 0], 10256).into())
    }

    /// Where `/metrics` is.
    ///
    /// # Errors
    /// It is no address.
    pub fn metrics_address(&self) -> anyhow::Result<Option<SocketAddr>> {
        address("metricsBindAddress", self.metrics_bind_address.as_deref(), ([127, 0, 0, 1], 10249).into())
    }
}

/// `ADDRESS:PORT`, `:PORT` or `ADDRESS`; port 0 switches it off.
fn address(field: &str, text: Option<&str>, default: SocketAddr) -> anyhow::Result<Option<SocketAddr>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Some(default)) };
    let any = text.strip_prefix(':').map(|port| format!("{}:{port}", default.ip()));
    let parsed = any.as_deref().unwrap_or(text);
    let alone = || parsed.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, default.port()));
    let address = parsed.parse::<SocketAddr>().or_else(|_| alone());
    let address = address.with_context(|| format!("{field}: {text:?} is no address and port"))?;
    Ok((address.port() != 0).then_some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> anyhow::Result<Config> {
        Config::parse(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{body}"))
    }

    fn refused(body: &str, reason: &str) {
        let error = format!("{:#}", parse(body).unwrap_err());
        assert!(error.contains(reason), "{body:?}: {error}");
    }

    #[test]
    fn an_empty_configuration_has_the_defaults_of_kube_proxy() {
        let config = parse("").unwrap();
        assert_eq!(config.mode(), "nftables");
        assert_eq!(config.healthz_address().unwrap(), Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.metrics_address().unwrap(), Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!(config.masquerade_mark(), 0x4000);
        assert_eq!(config.pod_ranges().unwrap(), []);
        assert_eq!(config.kubeconfig(), None);
    }

    /// What `kubeadm init` writes.
    #[test]
    fn the_file_of_a_stock_cluster_is_accepted() {
        let config = parse(
            "bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: \"\", burst: 0, contentType: \"\", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: true, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: \"\", interfaceNamePrefix: \"\"}
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: \"\", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}, verbosity: 0}
metricsBindAddress: \"\"
mode: \"nftables\"
nftables: {masqueradeAll: false, masqueradeBit: 15, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: \"\", rootHnsEndpointName: \"\", sourceVip: \"\"}
",
        )
        .unwrap();
        assert_eq!(config.pod_ranges().unwrap().len(), 2);
        assert_eq!(config.masquerade_mark(), 0x8000);
        assert!(config.tcp_be_liberal());
        assert_eq!(config.kubeconfig().unwrap(), Path::new("/var/lib/kube-proxy/kubeconfig.conf"));
        assert_eq!(config.hostname_override(), None);
    }

    #[test]
    fn what_is_wrong_or_not_supported_is_named() {
        refused("clusterCidr: 10.244.0.0/16", "clusterCidr");
        refused("nftables: {masqueradBit: 14}", "masqueradBit");
        refused("mode: iptables", "mode: proxy mode \"iptables\" is not supported; supported: nftables");
        refused("clusterCIDR: 10.244.0.0", "clusterCIDR: \"10.244.0.0\" is no address range");
        refused("detectLocal: {clusterCIDRs: [10.244.0.0/33]}", "detectLocal.clusterCIDRs: \"10.244.0.0/33\"");
        refused("detectLocalMode: BridgeInterface", "BridgeInterface");
        refused("nodePortAddresses: [primary]", "nodePortAddresses");
        refused("nftables: {masqueradeBit: 32}", "masqueradeBit");
        refused("healthzBindAddress: somewhere", "healthzBindAddress");
        refused("mode: [", "line");
        let error = format!("{:#}", Config::parse("kind: KubeProxyConfiguration").unwrap_err());
        assert!(error.contains("apiVersion is missing"), "{error}");
    }

    #[test]
    fn the_file_is_named() {
        let path = std::env::temp_dir().join(format!("podwire-kube-proxy-config-{}", std::process::id()));
        let missing = format!("{:#}", Config::read(&path).unwrap_err());
        assert!(missing.starts_with(&format!("cannot read {}: ", path.display())), "{missing}");
        fs::write(&path, format!("apiVersion: {API_VERSION}\nkind: {KIND}\nmode: ipvs\n")).unwrap();
        let wrong = format!("{:#}", Config::read(&path).unwrap_err());
        fs::remove_file(&path).unwrap();
        assert!(wrong.starts_with(&format!("{} is no usable {KIND}: mode: ", path.display())), "{wrong}");
    }

    #[test]
    fn addresses_may_leave_out_one_half_and_port_zero_is_off() {
        let at = |text: &str| parse(&format!("metricsBindAddress: \"{text}\"")).unwrap().metrics_address().unwrap();
        assert_eq!(at(":1234"), Some("127.0.0.1:1234".parse().unwrap()));
        assert_eq!(at("0.0.0.0"), Some("0.0.0.0:10249".parse().unwrap()));
        assert_eq!(at("[::1]:9"), Some("[::1]:9".parse().unwrap()));
        assert_eq!(at("127.0.0.1:0"), None);
    }
}
