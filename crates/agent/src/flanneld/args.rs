use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::ensure;
use clap::ArgAction::{Set, SetTrue};
use podwire_overlay::lease;
use regex::Regex;
use tracing::warn;

use super::checksum::Offload;
use crate::flags::go_bool;

/// The variable of a flag begins so: `--ip-masq` is `FLANNELD_IP_MASQ`.
pub const ENVIRONMENT: &str = "FLANNELD";

/// flanneld's flags, by flanneld's names. Switches are read as Go reads them: `--name`, `--name=true`, `--name=false`.
/// Each can be given in the environment instead: `--ip-masq` as FLANNELD_IP_MASQ.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the node's pod range from its Node object; must be given, there is no etcd mode
    #[arg(long, value_name = "BOOL", action = Set, default_value = "false", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) kube_subnet_mgr: bool,
    /// Translate the source of what leaves the overlay network
    #[arg(long, value_name = "BOOL", action = Set, default_value = "false", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) ip_masq: bool,
    /// Keep source ports when masquerading, where possible
    #[arg(long, value_name = "BOOL", action = Set, default_value = "false", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) ip_masq_fully_random_disable: bool,
    /// Accept what is forwarded from and to pods
    #[arg(long, value_name = "BOOL", action = Set, default_value = "true", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) iptables_forward_rules: bool,
    /// How often to see whether the masquerade and forward rules are still there, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    iptables_resync: u32,
    /// Drop what is sent to this node's pod range and to no pod of it
    #[arg(long, value_name = "BOOL", action = Set, default_value = "false", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) ip_blackhole_route: bool,
    /// Set the node's NetworkUnavailable condition to False when ready
    #[arg(long, value_name = "BOOL", action = Set, default_value = "true", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) set_node_network_unavailable: bool,
    /// Interface (name or address) between nodes; the first that exists is used [default: that of the default route]
    #[arg(long)]
    pub(super) iface: Vec<String>,
    /// Pattern of that interface's address or name, where no --iface exists; the first that matches is used
    #[arg(long, value_name = "REGEX")]
    pub(super) iface_regex: Vec<Regex>,
    /// Use the interface by which this address is reached, where neither of the above says which
    #[arg(long, value_name = "ADDRESS")]
    pub(super) iface_can_reach: Option<IpAddr>,
    /// Address that other nodes send to [default: the interface's own]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) public_ip: Option<Ipv4Addr>,
    /// The same for IPv6
    #[arg(long, value_name = "ADDRESS")]
    pub(super) public_ipv6: Option<Ipv6Addr>,
    /// The network's configuration. It is watched, and a change of it takes effect
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub(super) net_config_path: PathBuf,
    /// Where to tell the CNI plugin of the pod range and the MTU
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(super) subnet_file: PathBuf,
    /// How to reach the API server [default: as the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig_file: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub(super) kube_api_url: Option<String>,
    /// Address to answer /healthz, /readyz and /metrics on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub(super) healthz_ip: IpAddr,
    /// Port to answer /healthz, /readyz and /metrics on; 0 for none
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(super) healthz_port: u16,
    /// Prefix of the node annotations: DOMAIN or DOMAIN/NAME
    #[arg(long, value_name = "PREFIX", default_value = lease::DEFAULT_PREFIX)]
    pub(super) kube_annotation_prefix: String,
    /// Verbosity of the log: from 4 on, every operation
    #[arg(short, long, value_name = "LEVEL")]
    pub v: Option<u8>,
    /// Print the version and exit
    #[arg(long, action = SetTrue)]
    pub(super) version: bool,
    #[command(flatten)]
    pub(super) own: Own,
    #[command(flatten)]
    unused: Unused,
}

/// Flags that flanneld does not have.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Podwire's own")]
pub(super) struct Own {
    /// Name of this node's Node object [default: $NODE_NAME, or the node of the Pod $POD_NAME]
    #[arg(long, value_name = "NAME")]
    pub(super) node_name: Option<String>,
    /// Once pods can be attached, copy this CNI configuration ...
    #[arg(long, value_name = "FILE", requires = "cni_conf_dst")]
    pub(super) cni_conf_src: Option<PathBuf>,
    /// ... to where the container runtime reads it
    #[arg(long, value_name = "FILE", requires = "cni_conf_src")]
    pub(super) cni_conf_dst: Option<PathBuf>,
    /// Try out how large packets to each peer may be, and warn where that is less than the backend needs
    #[arg(long, value_name = "BOOL", action = Set, default_value = "true", value_parser = go_bool)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) probe_path_mtu: bool,
    /// Whether the vxlan device leaves checksums of what this node sends to hardware: on, off, or auto (off once packets
    /// with such checksums turn out to get lost on the way)
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) vxlan_tx_checksum: Offload,
}

/// Flags that are accepted and have no effect: in flanneld they have none with `--kube-subnet-mgr`, or they are about
/// its way to log.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted, without effect")]
struct Unused {
    /// For flanneld's etcd mode
    #[arg(long, value_name = "URLS")]
    etcd_endpoints: Option<String>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "PREFIX")]
    etcd_prefix: Option<String>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// For flanneld's etcd mode
    #[arg(long, value_name = "PASSWORD")]
    etcd_password: Option<String>,
    /// For flanneld's etcd mode: 1 to 1439
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..1440))]
    subnet_lease_renew_margin: u32,
    /// Verbosity by source file of flanneld
    #[arg(long, value_name = "PATTERNS")]
    vmodule: Option<String>,
    /// Log the stack at a line of flanneld's source
    #[arg(long = "log_backtrace_at", value_name = "FILE:LINE")]
    log_backtrace_at: Option<String>,
}

impl Args {
    /// Refuses what can never work, and says what has no effect.
    ///
    /// # Errors
    /// Without `--kube-subnet-mgr` pod ranges would come from etcd, which is not supported.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.kube_subnet_mgr,
            "only --kube-subnet-mgr is supported: pod ranges come from Node objects, not from etcd"
        );
        let Unused { etcd_endpoints, etcd_prefix, etcd_username, etcd_password, vmodule, log_backtrace_at, .. } =
            &self.unused;
        let Unused { etcd_keyfile, etcd_certfile, etcd_cafile, .. } = &self.unused;
        for (name, given) in [
            ("etcd-endpoints", etcd_endpoints.is_some()),
            ("etcd-prefix", etcd_prefix.is_some()),
            ("etcd-keyfile", etcd_keyfile.is_some()),
            ("etcd-certfile", etcd_certfile.is_some()),
            ("etcd-cafile", etcd_cafile.is_some()),
            ("etcd-username", etcd_username.is_some()),
            ("etcd-password", etcd_password.is_some()),
            ("vmodule", vmodule.is_some()),
            ("log_backtrace_at", log_backtrace_at.is_some()),
        ] {
            if given {
                warn!("--{name} has no effect");
            }
        }
        Ok(())
    }

    /// How often to look after the rules.
    pub(super) fn resync(&self) -> Duration {
        Duration::from_secs(self.iptables_resync.into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn read(line: &str) -> Result<Args, String> {
        let parsed = Cli::try_parse_from(line.split(' '));
        parsed.map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_arguments_of_flannels_manifest_are_understood() {
        let args = read("flanneld --ip-masq --kube-subnet-mgr=true --healthz-port=8081 --iface=eth1 --iface=eth0");
        let args = args.unwrap();
        assert!(args.ip_masq && args.kube_subnet_mgr && args.iptables_forward_rules);
        assert_eq!((args.healthz_port, &args.iface[..]), (8081, &["eth1".to_owned(), "eth0".to_owned()][..]));
        assert!(!read("flanneld --iptables-forward-rules=false").unwrap().iptables_forward_rules);
    }

    #[test]
    fn every_flag_of_flanneld_is_known() {
        // `flanneld --help` of flannel 0.28.
        let line = "flanneld --etcd-endpoints=http://127.0.0.1:2379 --etcd-prefix=/coreos.com/network --etcd-keyfile=k \
                    --etcd-certfile=c --etcd-cafile=a --etcd-username=u --etcd-password=p --kube-subnet-mgr \
                    --kube-api-url=https://10.0.0.1:6443 --kube-annotation-prefix=example.org --kubeconfig-file=f \
                    --iface=eth0 --iface-regex=10\\.2\\..* --iface-can-reach=192.0.2.1 --ip-masq=T \
                    --ip-masq-fully-random-disable --subnet-file=s --public-ip=192.0.2.7 --public-ipv6=2001:db8::7 \
                    --subnet-lease-renew-margin=60 --healthz-ip=:: --healthz-port=8081 --iptables-resync=7 \
                    --iptables-forward-rules=0 --ip-blackhole-route --net-config-path=n \
                    --set-node-network-unavailable=false --version -v=4 --vmodule=kube=4 --log_backtrace_at=main.go:1";
        let words: Vec<_> = line.split_whitespace().collect();
        let args = read(&words.join(" ")).unwrap();
        args.check().unwrap();
        assert_eq!((args.resync(), args.v, args.ip_masq), (Duration::from_secs(7), Some(4), true));
        assert!(args.version && args.ip_blackhole_route && !args.iptables_forward_rules);
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (line, expected) in [
            ("flanneld --ip-masq=perhaps", "--ip-masq"),
            ("flanneld --public-ip=fd00::1", "--public-ip"),
            ("flanneld --iface-regex=(", "--iface-regex"),
            ("flanneld --subnet-lease-renew-margin=1440", "--subnet-lease-renew-margin"),
            ("flanneld --iptables-resync=0", "--iptables-resync"),
            ("flanneld --vxlan-tx-checksum=maybe", "--vxlan-tx-checksum"),
            ("flanneld --cni-conf-dst=/etc/cni/net.d/10-flannel.conflist", "--cni-conf-src"),
            ("flanneld --no-such-flag", "--no-such-flag"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
        let message = read("flanneld").unwrap().check().unwrap_err().to_string();
        assert!(message.contains("only --kube-subnet-mgr"), "{message}");
    }
}
