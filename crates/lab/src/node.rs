//! One machine of a lab: a process with its own network, mounts and host name. A node hands over to the kubelet; the
//! client outside the cluster only stays.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use podwire_kernel::{
    ns::{self, Kind, Namespace},
    process::{self, BlockedSignals, Signal},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Error, Result},
    kubelet,
    rootfs::Rootfs,
};

/// Where a machine has its CNI plugins: one multi-call executable under the names that it answers to.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// Where a machine has its CNI configuration.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Where a machine has a kubeconfig for the API server's address on the underlay, as kubeadm's control plane does.
pub const KUBECONFIG: &str = "/etc/kubernetes/admin.conf";

/// What kubeadm's preflight asks of a node, and what routing between pods needs. The last is absent without br_netfilter.
const SYSCTLS: [(&str, &str); 5] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
];

/// What a machine's process is told over its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its host name.
    pub name: String,
    /// The network namespace to be in: a file that can be opened until the machine says that it is up.
    pub network: PathBuf,
    /// An empty directory to mount the root on.
    pub root_base: PathBuf,
    /// The executables to show to the machine, as paths of the host.
    pub executables: Executables,
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// The text of [`KUBECONFIG`].
    pub kubeconfig: String,
    /// What a node runs; absent for the client.
    pub kubelet: Option<Kubelet>,
}

/// The executables of this program, as paths of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executables {
    /// `podwire`.
    pub podwire: PathBuf,
    /// `podwire-cni`.
    pub cni: PathBuf,
}

/// The kubelet of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubelet {
    /// Its configuration.
    pub config: NodeConfig,
    /// The unix socket to listen on, as a path of the host.
    pub socket: PathBuf,
}

/// What a node's kubelet is told (the kubelet's flags and configuration file, as one value).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The Node's name and host name, for example `node1`.
    pub name: String,
    /// The node's addresses on the underlay: its InternalIPs, the first also that of pods on its network.
    pub addresses: Vec<IpAddr>,
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

impl NodeConfig {
    /// The node's addresses as text, as statuses have them.
    pub fn ips(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }
}

/// Becomes the machine that standard input describes, says so with a line on standard output, and runs until SIGTERM.
///
/// The calling process must have one thread only.
///
/// # Errors
/// A namespace, mount or file could not be had, or the kubelet failed.
pub fn run() -> Result<()> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).trying(|| "read what machine to be")?;
    let spec: MachineSpec =
        serde_json::from_slice(&text).map_err(io::Error::from).trying(|| "read what machine to be")?;
    Namespace::open(&spec.network)?.enter()?;
    ns::unshare(&[Kind::Mount, Kind::Uts, Kind::Ipc])?;
    process::set_hostname(&spec.name)?;
    let kubelet = match spec.kubelet.clone() {
        Some(Kubelet { config, socket }) => {
            // Bound while the host's file system is the root; the supervisor connects to it there.
            let listener = UnixListener::bind(&socket).trying(|| format!("listen on {}", socket.display()))?;
            Some((config, listener))
        }
        None => None,
    };
    root(&spec).enter(&spec.root_base)?;
    set_sysctls()?;
    say_up()?;
    match kubelet {
        Some((config, listener)) => run_kubelet(config, listener),
        None => BlockedSignals::new(&[Signal::TERM])?.wait().map(drop).map_err(Error::from),
    }
}

fn root(spec: &MachineSpec) -> Rootfs {
    let bare = Rootfs::node(&spec.executables.podwire);
    let with_plugins = podwire_cni::PLUGINS
        .iter()
        .fold(bare, |root, plugin| root.bind_read_only(&spec.executables.cni, Path::new(CNI_BIN_DIR).join(plugin)));
    with_plugins
        .tmpfs("/etc/kubernetes", 0o700)
        .file(KUBECONFIG, spec.kubeconfig.as_str())
        .file("/etc/hostname", format!("{}\n", spec.name))
        .file("/etc/hosts", spec.hosts.as_str())
        .file("/etc/resolv.conf", spec.resolv_conf.as_str())
}

fn set_sysctls() -> Result<()> {
    for (name, value) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        match std::fs::write(&path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(
                    sysctl = name,
                    "the kernel lacks this setting; Services may not work between pods of one node"
                );
            }
            result => result.trying(|| format!("set {name} to {value}"))?,
        }
    }
    Ok(())
}

fn say_up() -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(b"up\n").and_then(|()| out.flush()).trying(|| "say that the machine is up")
}

fn run_kubelet(config: NodeConfig, listener: UnixListener) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().trying(|| "start the kubelet's runtime")?;
    runtime.block_on(kubelet::run(config, listener))
}
