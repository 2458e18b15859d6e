use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::ArgAction::Set;
use podwire_overlay::lease;

/// The variable of a flag begins so: `--ip-masq` is `FLANNELD_IP_MASQ`.
pub const ENVIRONMENT: &str = "FLANNELD";

/// flanneld's flags, by flanneld's names. Switches are read as Go reads them: `--name`, `--name=true`, `--name=false`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the node's pod range from its Node object; must be given, there is no etcd mode
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) kube_subnet_mgr: bool,
    /// Translate the source of what leaves the overlay network
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) ip_masq: bool,
    /// Keep source ports when masquerading, where possible
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) ip_masq_fully_random_disable: bool,
    /// Accept what is forwarded from and to pods
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) iptables_forward_rules: bool,
    /// Set the node's NetworkUnavailable condition to False when ready
    #[arg(long, value_name = "BOOL", action = Set, default_value_t = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) set_node_network_unavailable: bool,
    /// Interface (name or address) between nodes; the first that exists is used [default: that of the default route]
    #[arg(long)]
    pub(super) iface: Vec<String>,
    /// Address that other nodes send to [default: the interface's own]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) public_ip: Option<Ipv4Addr>,
    /// The network's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub(super) net_config_path: PathBuf,
    /// Where to tell the CNI plugin of the pod range and the MTU
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(super) subnet_file: PathBuf,
    /// How to reach the API server [default: as the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig_file: Option<PathBuf>,
    /// Name of this node's Node object [default: $NODE_NAME, or the node of the Pod $POD_NAME]
    #[arg(long, value_name = "NAME")]
    pub(super) node_name: Option<String>,
    /// Address to answer /healthz and /readyz on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub(super) healthz_ip: IpAddr,
    /// Port to answer /healthz and /readyz on; 0 for none
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(super) healthz_port: u16,
    /// Prefix of the node annotations: DOMAIN or DOMAIN/NAME
    #[arg(long, value_name = "PREFIX", default_value = lease::DEFAULT_PREFIX)]
    pub(super) kube_annotation_prefix: String,
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

    #[test]
    fn the_arguments_of_flannels_manifest_are_understood() {
        let line =
            ["flanneld", "--ip-masq", "--kube-subnet-mgr=true", "--healthz-port=8081", "--iface=eth1", "--iface=eth0"];
        let args = Cli::parse_from(line).args;
        assert!(args.ip_masq && args.kube_subnet_mgr && args.iptables_forward_rules);
        assert_eq!((args.healthz_port, args.iface), (8081, vec!["eth1".to_owned(), "eth0".to_owned()]));
        assert!(!Cli::parse_from(["flanneld", "--iptables-forward-rules=false"]).args.iptables_forward_rules);
        assert!(Cli::try_parse_from(["flanneld", "--ip-masq=perhaps"]).is_err());
    }
}
