//! The process that owns a lab: makes the underlay, runs the control plane, starts the machines, and waits.
//!
//! It runs in the lab's PID and mount namespaces and in the host's network namespace. Nothing needs tearing down: when it
//! ends, the init process does, and with that the kernel ends the rest.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use podwire_kernel::ns::Namespace;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time,
};

use crate::{
    control_plane::ControlPlane,
    dns_relay::DnsRelay,
    error::{Context, Error, Result},
    manifests,
    node::{CNI_BIN_DIR, CNI_CONF_DIR, Executables, Kubelet, MachineSpec, NodeConfig},
    progress::Progress,
    ready,
    state::{Directory, Running, RunningMachine},
    topology::{self, API_PORT, CLUSTER_DOMAIN, GATEWAY, Machine, NODE_LOCAL_DNS, Options},
    underlay::Underlay,
};

/// How long a lab may take to come up before it is given up. It takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where nameservers listen.
const DNS_PORT: u16 = 53;

/// What the supervisor is told on its command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What the user asked for.
    pub options: Options,
    /// The executables to show to the machines.
    pub executables: Executables,
}

/// Brings the lab up, reports progress on standard output, and runs until SIGTERM.
///
/// # Errors
/// The lab could not come up, or whoever asked for it is gone before it did.
pub fn run(config: &str) -> Result<()> {
    let config: Config =
        serde_json::from_str(config).map_err(io::Error::from).trying(|| "read what lab to supervise")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .trying(|| "start the supervisor's runtime")?;
    let outcome = runtime.block_on(supervise(&config));
    // Tasks of the control plane may be anywhere; they end with the process.
    runtime.shutdown_background();
    outcome
}

async fn supervise(config: &Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).trying(|| "listen for SIGTERM")?;
    let attempt = time::timeout(PATIENCE, Lab::bring_up(config));
    let mut lab = tokio::select! {
        result = attempt => match result.unwrap_or_else(|_| Err(too_slow())) {
            Ok(lab) => lab,
            Err(error) => {
                Progress::Failed(error.to_string()).send()?;
                return Err(error);
            }
        },
        _ = terminate.recv() => return Ok(()),
    };
    Progress::Ready(lab.running()).send()?;
    loop {
        tokio::select! {
            ended = lab.machines.join_next(), if !lab.machines.is_empty() => {
                if let Some(Ok((name, status))) = ended {
                    tracing::error!(machine = name, status, "a machine of the lab has ended");
                }
            }
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn too_slow() -> Error {
    Error::Failed(format!("the lab did not come up within {} s", PATIENCE.as_secs()))
}

/// What must stay alive while the lab does.
struct Lab {
    control_plane: ControlPlane,
    underlay: Underlay,
    running: Vec<RunningMachine>,
    /// Waits for each machine's process; yields its name and how it ended.
    machines: JoinSet<(String, String)>,
}

impl Lab {
    async fn bring_up(config: &Config) -> Result<Self> {
        let options = &config.options;
        let directory = Directory::of(&options.name)?;
        let mut underlay = Underlay::new(options)?;
        let control_plane = ControlPlane::start(options, &directory, underlay.listen(API_PORT)?).await?;
        Progress::Step(format!("API server on {} and {GATEWAY}:{API_PORT}", control_plane.url)).send()?;
        if let Some(upstream) = options.upstream_dns.filter(|address| !is_on_underlay(options, *address)) {
            let relay = DnsRelay::new(underlay.bind(DNS_PORT)?, underlay.listen(DNS_PORT)?, upstream);
            tokio::spawn(relay.trying(|| format!("relay DNS to {upstream}"))?.run());
        }

        control_plane.register(&options.nodes()).await?;
        let mut started = Vec::new();
        for machine in options.machines() {
            let network = underlay.attach(&machine)?;
            let spec = spec(config, &directory, &machine, &network, &control_plane);
            started.push(StartedMachine::start(machine, network, &spec).await?);
        }
        manifests::create(&control_plane.client.kube(), options).await?;
        let mut lab = Self { control_plane, underlay, running: Vec::new(), machines: JoinSet::new() };
        let mut networks = Vec::new();
        for mut machine in started {
            machine.wait_until_up().await?;
            lab.running.push(RunningMachine { machine: machine.machine.clone(), pid: machine.pid });
            let mut child = machine.child;
            let name = machine.machine.name.clone();
            lab.machines.spawn(async move {
                let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
                (name, status)
            });
            networks.push((machine.machine.name, machine.network));
        }
        let plural = if options.nodes == 1 { "" } else { "s" };
        let networks_of: Vec<_> = options.segments().iter().map(|segment| segment.net.to_string()).collect();
        let on = networks_of.join(" and ");
        Progress::Step(format!("{} node{plural} and a client on {on}", options.nodes)).send()?;
        lab.wait_until_ready(options, &networks).await?;
        Ok(lab)
    }

    async fn wait_until_ready(&mut self, options: &Options, networks: &[(String, Namespace)]) -> Result<()> {
        let client = self.control_plane.client.clone();
        let wait = async {
            ready::nodes(&client, usize::from(options.nodes)).await?;
            Progress::Step("every node is Ready".to_owned()).send()?;
            for (name, network) in networks.iter().filter(|(name, _)| *name != topology::CLIENT_NAME) {
                ready::dns(network, options.cluster_dns()).await.trying(|| format!("ask cluster DNS from {name}"))?;
            }
            Progress::Step(format!("cluster DNS answers at {} from every node", options.cluster_dns())).send()?;
            if options.node_local_dns {
                for (name, network) in networks.iter().filter(|(name, _)| *name != topology::CLIENT_NAME) {
                    ready::dns(network, NODE_LOCAL_DNS).await.trying(|| format!("ask {name}'s own DNS server"))?;
                }
                Progress::Step(format!("each node answers itself at {NODE_LOCAL_DNS}")).send()?;
            }
            Ok(())
        };
        tokio::select! {
            done = wait => done,
            Some(Ok((name, status))) = self.machines.join_next() => {
                Err(Error::Failed(format!("{name} ended while the lab came up: {status}")))
            }
        }
    }

    fn running(&self) -> Running {
        Running {
            api_url: self.control_plane.url.clone(),
            supervisor: std::process::id(),
            underlay: format!("fd/{}", self.underlay.as_fd().as_raw_fd()).into(),
            machines: self.running.clone(),
        }
    }
}

fn spec(
    config: &Config,
    directory: &Directory,
    machine: &Machine,
    network: &Namespace,
    control_plane: &ControlPlane,
) -> MachineSpec {
    let options = &config.options;
    let kubeconfig = control_plane.underlay_kubeconfig.clone();
    let is_node = machine.name != topology::CLIENT_NAME;
    let kubelet = is_node.then(|| Kubelet {
        config: NodeConfig {
            name: machine.name.clone(),
            addresses: machine.addresses(),
            kubeconfig: kubeconfig.clone(),
            api_server: (GATEWAY.into(), API_PORT),
            cluster_dns: options.cluster_dns().into(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            cni_conf_dir: CNI_CONF_DIR.into(),
            cni_bin_dir: CNI_BIN_DIR.into(),
        },
        socket: directory.socket(&machine.name),
    });
    MachineSpec {
        name: machine.name.clone(),
        network: open_file(network),
        root_base: directory.root_base(&machine.name),
        executables: config.executables.clone(),
        hosts: hosts(options),
        resolv_conf: resolv_conf(options),
        kubeconfig,
        kubelet,
    }
}

/// A path by which a process of the lab can open a file that this process has open.
fn open_file(file: &impl AsFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd()).into()
}

fn hosts(options: &Options) -> String {
    let lines: String = options
        .machines()
        .iter()
        .flat_map(|machine| machine.addresses().into_iter().map(|address| format!("{address}\t{}\n", machine.name)))
        .collect();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{lines}")
}

/// A machine's own nameserver: the upstream, or the gateway, where there is a relay to it. Without an upstream nothing
/// listens there, so names outside the cluster fail at once.
fn resolv_conf(options: &Options) -> String {
    let direct = options.upstream_dns.filter(|address| is_on_underlay(options, *address));
    format!("nameserver {}\n", direct.unwrap_or(GATEWAY.into()))
}

fn is_on_underlay(options: &Options, address: IpAddr) -> bool {
    options.segments().iter().any(|segment| matches!(address, IpAddr::V4(address) if segment.net.contains(&address)))
}

/// A machine whose process runs, and may not be up yet.
struct StartedMachine {
    machine: Machine,
    network: Namespace,
    pid: u32,
    child: Child,
}

impl StartedMachine {
    async fn start(machine: Machine, network: Namespace, spec: &MachineSpec) -> Result<Self> {
        let failed = || format!("start {}", machine.name);
        let mut child = Command::new("/proc/self/exe")
            .arg0("podwire")
            .arg("lab-node")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .trying(failed)?;
        let text = serde_json::to_vec(spec).map_err(io::Error::from).trying(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&text).await.trying(failed)?;
        }
        let pid = child.id().unwrap_or_default();
        Ok(Self { machine, network, pid, child })
    }

    async fn wait_until_up(&mut self) -> Result<()> {
        let mut line = String::new();
        if let Some(stdout) = self.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).await.trying(|| format!("start {}", self.machine.name))?;
        }
        if line.is_empty() {
            return Err(Error::Failed(format!("{} did not come up; the lab's log says why", self.machine.name)));
        }
        Ok(())
    }
}
