//! What a [`Configuration`] asks for: checked, with defaults, in our own terms.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use podwire_model::{Family, IpNet};
use podwire_proxy::mode::{IpvsSettings, NodePortAddresses};

use super::{
    args::Values,
    duration::GoDuration,
    schema::{self, Configuration},
};

/// Every mode of kube-proxy there was: what is not in this build's `MODES` has a way to fall back, or an error.
const MODES: [&str; 4] = ["nftables", "iptables", "ipvs", "userspace"];
/// Schedulers of ipvs (Linux 6.18); the kernel has those whose modules it finds.
const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "fo", "ovf", "mh", "twos"];
/// `IFNAMSIZ` less the zero at its end.
const LONGEST_INTERFACE: usize = 15;

/// The configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What must be the same until the next start.
    pub fixed: Fixed,
    /// The proxy mode's name.
    pub mode: String,
    /// How to tell which traffic is that of pods.
    pub detect_local: DetectLocal,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// This node's primary address, where it is not to be taken from the Node object.
    pub bind_address: Option<IpAddr>,
    /// The packet mark that asks for masquerading.
    pub masquerade_mark: u32,
    /// Masquerade pods' traffic to cluster IPs as well.
    pub masquerade_all: bool,
    /// Serve node ports at 127.0.0.1 as well.
    pub localhost_node_ports: bool,
    /// Settings of ipvs mode.
    pub ipvs: IpvsSettings,
    /// How long the kernel may be behind the API before this proxy counts as sick.
    pub patience: Duration,
    /// Connection tracking.
    pub conntrack: Conntrack,
}

/// What is taken at start only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// How to reach the API server; `None` means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The Node object's name.
    pub hostname_override: Option<String>,
    /// Where `/healthz` is, if anywhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// End if one of these addresses is taken.
    pub bind_hard_fail: bool,
    /// What to put into `oom_score_adj`.
    pub oom_score_adj: i32,
}

/// `detectLocalMode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address; empty where nobody can tell.
    ClusterCidr(Vec<IpNet>),
    /// By source address, in the ranges of the Node object.
    NodeCidr,
    /// By interface.
    BridgeInterface(String),
    /// By the beginning of the interface's name.
    InterfaceNamePrefix(String),
}

/// The section `conntrack`. Zero leaves the kernel's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Tracked connections for each processor.
    pub max_per_core: u32,
    /// Tracked connections at least, where `max_per_core` is not zero.
    pub min: u32,
    /// Idle TCP connections.
    pub tcp_established: Duration,
    /// Half-closed TCP connections.
    pub tcp_close_wait: Duration,
    /// Take no TCP packet for invalid.
    pub tcp_be_liberal: bool,
    /// Unanswered UDP flows.
    pub udp: Duration,
    /// Answered UDP flows.
    pub udp_stream: Duration,
}

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// `--config`.
    File(PathBuf),
    /// The other flags.
    Flags(Box<Values>),
}

impl Source {
    /// The configuration as written, with defaults.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn schema(&self) -> anyhow::Result<Configuration> {
        let configuration = match self {
            Self::File(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Configuration::parse(&text).with_context(|| unusable(path))?
            }
            Self::Flags(values) => values.configuration(),
        };
        Ok(configuration.with_defaults())
    }

    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// It cannot be read, is malformed (line, column and field are named), or asks for what cannot be (the field is
    /// named).
    pub fn read(&self) -> anyhow::Result<Config> {
        let config = Config::new(&self.schema()?);
        match self {
            Self::File(path) => config.with_context(|| unusable(path)),
            Self::Flags(_) => config,
        }
    }
}

fn unusable(path: &Path) -> String {
    format!("{} is no usable {}", path.display(), schema::KIND)
}

impl Config {
    /// Checks a configuration that has its defaults.
    ///
    /// # Errors
    /// A value is invalid or contradicts another one: the field is named.
    pub fn new(file: &Configuration) -> anyhow::Result<Self> {
        ensure!(
            MODES.contains(&file.mode.as_str()),
            "mode: {:?} is not supported; supported: {}",
            file.mode,
            MODES.join(", ")
        );
        check_periods(file)?;
        ensure!(
            file.client_connection.burst >= 0,
            "clientConnection.burst: {} is negative",
            file.client_connection.burst
        );
        let bind = field("bindAddress", file.bind_address.parse::<IpAddr>())?;
        // ipvs mode shares the section with iptables mode, as upstream.
        let (section, bit, masquerade_all, sync) = match file.mode.as_str() {
            "nftables" => {
                ("nftables", file.nftables.masquerade_bit, file.nftables.masquerade_all, file.nftables.sync_period)
            }
            "ipvs" => ("iptables", file.iptables.masquerade_bit, file.iptables.masquerade_all, file.ipvs.sync_period),
            _ => ("iptables", file.iptables.masquerade_bit, file.iptables.masquerade_all, file.iptables.sync_period),
        };
        Ok(Self {
            fixed: Fixed::new(file)?,
            mode: file.mode.clone(),
            detect_local: detect_local(file)?,
            node_port_addresses: node_port_addresses(&file.node_port_addresses)?,
            bind_address: Some(bind).filter(|address| !address.is_unspecified()),
            masquerade_mark: masquerade_mark(section, bit.unwrap_or_default())?,
            masquerade_all,
            localhost_node_ports: file.iptables.localhost_node_ports.unwrap_or_default(),
            ipvs: ipvs(&file.ipvs)?,
            patience: sync.0 * 2,
            conntrack: conntrack(&file.conntrack)?,
        })
    }
}

impl Fixed {
    fn new(file: &Configuration) -> anyhow::Result<Self> {
        let oom_score_adj = file.oom_score_adj.unwrap_or_default();
        ensure!((-1000..=1000).contains(&oom_score_adj), "oomScoreAdj: {oom_score_adj} is not within -1000 to 1000");
        let bind: IpAddr = field("bindAddress", file.bind_address.parse())?;
        let [any, localhost]: [IpAddr; 2] = match Family::of(&bind) {
            Family::V4 => [[0, 0, 0, 0].into(), [127, 0, 0, 1].into()],
            Family::V6 => [[0; 16].into(), std::net::Ipv6Addr::LOCALHOST.into()],
        };
        let set = |text: &str| Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            kubeconfig: set(&file.client_connection.kubeconfig).map(PathBuf::from),
            hostname_override: set(&file.hostname_override),
            healthz: address("healthzBindAddress", &file.healthz_bind_address, (any, 10256).into())?,
            metrics: address("metricsBindAddress", &file.metrics_bind_address, (localhost, 10249).into())?,
            bind_hard_fail: file.bind_address_hard_fail,
            oom_score_adj,
        })
    }
}

/// Names the field in an error.
fn field<T, E: std::fmt::Display>(name: impl std::fmt::Display, value: Result<T, E>) -> anyhow::Result<T> {
    value.map_err(|error| anyhow!("{name}: {error}"))
}

/// `ADDRESS:PORT`, `:PORT` or `ADDRESS`; port 0 switches it off.
fn address(name: &str, text: &str, default: SocketAddr) -> anyhow::Result<Option<SocketAddr>> {
    let parsed = match text.strip_prefix(':') {
        Some(port) => port.parse().ok().map(|port| SocketAddr::new(default.ip(), port)),
        None => {
            let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, default.port()));
            text.parse::<SocketAddr>().ok().or_else(alone)
        }
    };
    let address = parsed.with_context(|| format!("{name}: {text:?} is no address and port"))?;
    Ok((address.port() != 0).then_some(address))
}

fn ranges<'a>(name: &str, texts: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Vec<IpNet>> {
    let texts = texts.into_iter().map(str::trim).filter(|text| !text.is_empty());
    let parse = |text: &str| {
        text.parse().map_err(|_| anyhow!("{name}: {text:?} is no address range; write it like 10.244.0.0/16"))
    };
    texts.map(parse).collect()
}

fn detect_local(file: &Configuration) -> anyhow::Result<DetectLocal> {
    let interface = |name: &str, text: &str| {
        ensure!(!text.is_empty(), "{name} must be set for detectLocalMode {}", file.detect_local_mode);
        ensure!(
            text.len() <= LONGEST_INTERFACE,
            "{name}: {text:?} is too long for an interface's name ({LONGEST_INTERFACE} bytes)"
        );
        Ok(text.to_owned())
    };
    let cluster = ranges("clusterCIDR", file.cluster_cidr.split(','))?;
    for family in [Family::V4, Family::V6] {
        let count = cluster.iter().filter(|range| Family::of(&range.addr()) == family).count();
        ensure!(count <= 1, "clusterCIDR: {:?} has more than one range of a family", file.cluster_cidr);
    }
    match file.detect_local_mode.as_str() {
        "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(cluster)),
        "NodeCIDR" => Ok(DetectLocal::NodeCidr),
        "BridgeInterface" => interface("detectLocal.bridgeInterface", &file.detect_local.bridge_interface)
            .map(DetectLocal::BridgeInterface),
        "InterfaceNamePrefix" => interface("detectLocal.interfaceNamePrefix", &file.detect_local.interface_name_prefix)
            .map(DetectLocal::InterfaceNamePrefix),
        other => bail!(
            "detectLocalMode: {other:?} is not supported; supported: ClusterCIDR, NodeCIDR, BridgeInterface, \
             InterfaceNamePrefix"
        ),
    }
}

fn node_port_addresses(texts: &[String]) -> anyhow::Result<NodePortAddresses> {
    match texts {
        [] => Ok(NodePortAddresses::All),
        [keyword] if keyword == "primary" => Ok(NodePortAddresses::Primary),
        several if several.iter().any(|text| text == "primary") => {
            bail!("nodePortAddresses: \"primary\" cannot be used together with address ranges")
        }
        several => ranges("nodePortAddresses", several.iter().map(String::as_str)).map(NodePortAddresses::Ranges),
    }
}

fn masquerade_mark(section: &str, bit: i32) -> anyhow::Result<u32> {
    let mark = u32::try_from(bit).ok().and_then(|bit| 1_u32.checked_shl(bit));
    mark.with_context(|| format!("{section}.masqueradeBit: {bit} is not a bit of a packet mark (0 to 31)"))
}

fn ipvs(section: &schema::Ipvs) -> anyhow::Result<IpvsSettings> {
    let scheduler = if section.scheduler.is_empty() { "rr" } else { &section.scheduler };
    ensure!(
        SCHEDULERS.contains(&scheduler),
        "ipvs.scheduler: {scheduler:?} is not supported; supported: {}",
        SCHEDULERS.join(", ")
    );
    Ok(IpvsSettings {
        scheduler: scheduler.to_owned(),
        exclude: ranges("ipvs.excludeCIDRs", section.exclude_cidrs.iter().map(String::as_str))?,
        strict_arp: section.strict_arp,
        timeouts: [section.tcp_timeout.0, section.tcp_fin_timeout.0, section.udp_timeout.0],
    })
}

fn conntrack(section: &schema::Conntrack) -> anyhow::Result<Conntrack> {
    let count = |name, value: Option<i32>| {
        let value = value.unwrap_or_default();
        u32::try_from(value).map_err(|_| anyhow!("conntrack.{name}: {value} is negative"))
    };
    let time = |value: Option<GoDuration>| value.unwrap_or_default().0;
    Ok(Conntrack {
        max_per_core: count("maxPerCore", section.max_per_core)?,
        min: count("min", section.min)?,
        tcp_established: time(section.tcp_established_timeout),
        tcp_close_wait: time(section.tcp_close_wait_timeout),
        tcp_be_liberal: section.tcp_be_liberal,
        udp: section.udp_timeout.0,
        udp_stream: section.udp_stream_timeout.0,
    })
}

fn check_periods(file: &Configuration) -> anyhow::Result<()> {
    let (iptables, ipvs, nftables) = (&file.iptables, &file.ipvs, &file.nftables);
    let periods = [
        ("iptables", iptables.min_sync_period, iptables.sync_period),
        ("ipvs", ipvs.min_sync_period, ipvs.sync_period),
        ("nftables", nftables.min_sync_period, nftables.sync_period),
    ];
    for (section, min, period) in periods {
        ensure!(min <= period, "{section}.minSyncPeriod: {min} is longer than {section}.syncPeriod, which is {period}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> anyhow::Result<Config> {
        let text = format!("apiVersion: {}\nkind: {}\n{body}", schema::API_VERSION, schema::KIND);
        Config::new(&Configuration::parse(&text)?.with_defaults())
    }

    fn refused(body: &str, reason: &str) {
        let error = format!("{:#}", parse(body).unwrap_err());
        assert!(error.contains(reason), "{body:?}: {error}");
    }

    #[test]
    fn an_empty_configuration_has_the_defaults_of_kube_proxy() {
        let config = parse("").unwrap();
        assert_eq!(config.mode, "iptables");
        assert_eq!(config.fixed.healthz, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.fixed.metrics, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!((config.fixed.oom_score_adj, config.fixed.kubeconfig), (-999, None));
        assert_eq!(config.masquerade_mark, 0x4000);
        assert_eq!(config.detect_local, DetectLocal::ClusterCidr(Vec::new()));
        assert_eq!(config.node_port_addresses, NodePortAddresses::All);
        assert_eq!(config.patience, Duration::from_secs(60));
        assert!(config.localhost_node_ports && !config.masquerade_all);
        assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (32_768, 131_072));
        assert_eq!(config.conntrack.tcp_established, Duration::from_secs(86_400));
        assert_eq!(config.ipvs, IpvsSettings::default());
    }

    /// What `kubeadm init` writes.
    const KUBEADM: &str = "bindAddress: 0.0.0.0
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
";

    #[test]
    fn the_file_of_a_stock_cluster_is_accepted() {
        let config = parse(KUBEADM).unwrap();
        let DetectLocal::ClusterCidr(ranges) = &config.detect_local else { panic!("{:?}", config.detect_local) };
        assert_eq!(ranges.len(), 2);
        assert_eq!((config.mode.as_str(), config.masquerade_mark), ("nftables", 0x8000));
        assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
        assert!(config.conntrack.tcp_be_liberal);
        assert_eq!(config.fixed.kubeconfig.unwrap(), Path::new("/var/lib/kube-proxy/kubeconfig.conf"));
        assert_eq!(config.fixed.hostname_override, None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for body in ["", "mode: nftables", KUBEADM, "conntrack: {udpTimeout: 1m30s}\nmode: userspace"] {
            let config = parse(body).unwrap();
            let text = format!("apiVersion: {}\nkind: {}\n{body}", schema::API_VERSION, schema::KIND);
            let written = Configuration::parse(&text).unwrap().with_defaults().to_yaml().unwrap();
            assert_eq!(Config::new(&Configuration::parse(&written).unwrap()).unwrap(), config, "{written}");
            assert!(written.contains("\n  maxPerCore: 32768\n"), "{written}");
        }
    }

    #[test]
    fn every_mode_has_its_section() {
        let of = |mode: &str, rest: &str| parse(&format!("mode: {mode}\n{rest}")).unwrap();
        let iptables = "iptables: {masqueradeBit: 3, masqueradeAll: true, syncPeriod: 10s}\nipvs: {syncPeriod: 20s}";
        for (mode, mark, all, patience) in [
            ("iptables", 8, true, 20),
            ("ipvs", 8, true, 40),
            ("userspace", 8, true, 20),
            ("nftables", 0x4000, false, 60),
        ] {
            let config = of(mode, iptables);
            let found = (config.masquerade_mark, config.masquerade_all, config.patience.as_secs());
            assert_eq!(found, (mark, all, patience), "{mode}");
        }
        let ipvs = "ipvs: {scheduler: wlc, strictARP: true, excludeCIDRs: [10.0.0.0/8], tcpTimeout: 15m}";
        let expected = IpvsSettings {
            scheduler: "wlc".to_owned(),
            exclude: vec!["10.0.0.0/8".parse().unwrap()],
            strict_arp: true,
            timeouts: [900, 0, 0].map(Duration::from_secs),
        };
        assert_eq!(of("ipvs", ipvs).ipvs, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        refused("clusterCidr: 10.244.0.0/16", "clusterCidr");
        refused("clusterCidr: 10.244.0.0/16", "line 3");
        refused("nftables: {masqueradBit: 14}", "nftables.masqueradBit");
        refused("detectLocal: {clusterCIDRs: []}", "detectLocal.clusterCIDRs");
        refused("conntrack:\n  maxPerCore: many", "conntrack.maxPerCore");
        refused("conntrack:\n  maxPerCore: many", "line 4");
        refused("iptables: {syncPeriod: soon}", "iptables.syncPeriod");
        refused("iptables: {syncPeriod: soon}", "\"soon\" is no length of time");
        refused("conntrack: {udpTimeout: -1s}", "\"-1s\" is negative");
        refused("conntrack: {min: -1}", "conntrack.min: -1 is negative");
        refused(
            "mode: kernelspace",
            "mode: \"kernelspace\" is not supported; supported: nftables, iptables, ipvs, userspace",
        );
        refused("clusterCIDR: 10.244.0.0", "clusterCIDR: \"10.244.0.0\" is no address range");
        refused(
            "clusterCIDR: 10.244.0.0/16,10.245.0.0/16",
            "clusterCIDR: \"10.244.0.0/16,10.245.0.0/16\" has more than one",
        );
        refused("detectLocalMode: Guess", "detectLocalMode: \"Guess\"");
        refused("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface must be set");
        refused("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix must be set");
        refused(
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: bridge-of-all-pods}",
            "\"bridge-of-all-pods\" is too long",
        );
        refused("nodePortAddresses: [primary, 10.0.0.0/8]", "\"primary\" cannot be used together");
        refused("nodePortAddresses: [10.0.0.1]", "nodePortAddresses: \"10.0.0.1\"");
        refused("mode: nftables\nnftables: {masqueradeBit: 32}", "nftables.masqueradeBit: 32");
        refused("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit: -1");
        refused("iptables: {minSyncPeriod: 1m}", "iptables.minSyncPeriod: 1m0s is longer than iptables.syncPeriod");
        refused("ipvs: {scheduler: best}", "ipvs.scheduler: \"best\"");
        refused("ipvs: {excludeCIDRs: [x]}", "ipvs.excludeCIDRs: \"x\"");
        refused("healthzBindAddress: somewhere", "healthzBindAddress: \"somewhere\"");
        refused("bindAddress: somewhere", "bindAddress: ");
        refused("oomScoreAdj: 1001", "oomScoreAdj: 1001");
        refused("mode: [", "line");
        let error = format!("{:#}", Configuration::parse("kind: KubeProxyConfiguration").unwrap_err());
        assert!(error.contains("apiVersion is missing"), "{error}");
    }

    #[test]
    fn the_file_is_named() {
        let path = std::env::temp_dir().join(format!("podwire-kube-proxy-config-{}", std::process::id()));
        let read = || format!("{:#}", Source::File(path.clone()).read().unwrap_err());
        let missing = read();
        assert!(missing.starts_with(&format!("cannot read {}: ", path.display())), "{missing}");
        fs::write(&path, format!("apiVersion: {}\nkind: {}\nmode: best\n", schema::API_VERSION, schema::KIND)).unwrap();
        let wrong = read();
        fs::remove_file(&path).unwrap();
        assert!(wrong.starts_with(&format!("{} is no usable {}: mode: ", path.display(), schema::KIND)), "{wrong}");
    }

    #[test]
    fn addresses_may_leave_out_one_half_and_port_zero_is_off() {
        let at = |text: &str| parse(&format!("metricsBindAddress: \"{text}\"")).unwrap().fixed.metrics;
        assert_eq!(at(":1234"), Some("127.0.0.1:1234".parse().unwrap()));
        assert_eq!(at("0.0.0.0"), Some("0.0.0.0:10249".parse().unwrap()));
        assert_eq!(at("[::1]:9"), Some("[::1]:9".parse().unwrap()));
        assert_eq!(at("127.0.0.1:0"), None);
        let v6 = parse("bindAddress: fd00::1").unwrap();
        assert_eq!(v6.fixed.healthz, Some("[::]:10256".parse().unwrap()));
        assert_eq!(v6.fixed.metrics, Some("[::1]:10249".parse().unwrap()));
        assert_eq!(v6.bind_address, Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn flags_say_what_a_file_would() {
        use clap::Parser;

        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            args: super::super::Args,
        }

        let read = |line: &str| {
            let args = Cli::try_parse_from(line.split(' ')).map(|cli| cli.args);
            args.map(|args| (Source::Flags(Box::new(args.values.clone())).read(), args))
        };
        let (config, args) = read(
            "kube-proxy --proxy-mode=ipvs --cluster-cidr=10.244.0.0/16 --ipvs-scheduler=sh --ipvs-strict-arp \
             --masquerade-all=false --nodeport-addresses=10.0.0.0/8,fd00::/8 --conntrack-tcp-timeout-established=1h30m \
             --healthz-port=0 --metrics-port 9000 --oom-score-adj -5 -v=4 --kube-api-qps=20 --feature-gates=A=true,B=false \
             --iptables-masquerade-bit 7 --hostname-override=node1 --cleanup=false --logging-format text",
        )
        .unwrap();
        let config = config.unwrap();
        assert_eq!(
            (config.mode.as_str(), config.ipvs.scheduler.as_str(), config.ipvs.strict_arp),
            ("ipvs", "sh", true)
        );
        assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
        let NodePortAddresses::Ranges(ranges) = &config.node_port_addresses else { panic!("no ranges") };
        assert_eq!(ranges.len(), 2);
        assert_eq!(config.conntrack.tcp_established, Duration::from_secs(5400));
        assert_eq!((config.fixed.healthz, config.fixed.metrics), (None, Some("127.0.0.1:9000".parse().unwrap())));
        assert_eq!((config.fixed.oom_score_adj, config.masquerade_mark), (-5, 1 << 7));
        assert_eq!((args.v, args.hostname_override.as_deref(), args.cleanup), (Some(4), Some("node1"), false));
        let (plain, args) = read("kube-proxy --config /x --cleanup --init-only").unwrap();
        assert_eq!(plain.unwrap(), parse("").unwrap());
        assert!(args.cleanup && args.init_only && args.values == Values::default());
        assert!(read("kube-proxy --proxy-mod=ipvs").is_err());
        assert!(read("kube-proxy --ipvs-tcp-timeout=soon").is_err());
        let wrong = format!("{:#}", read("kube-proxy --proxy-mode=best").unwrap().0.unwrap_err());
        assert!(wrong.starts_with("mode: \"best\""), "{wrong}");
    }
}
