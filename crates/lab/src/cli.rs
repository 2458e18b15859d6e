//! The command line of the lab: `podwire lab …`, and the hidden commands that its processes are started with.

use std::{
    env, io,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use podwire_model::Ipv4Net;

use crate::{
    backend::Backend,
    container, enter, enter_pod,
    error::{Context, Result},
    init, launch, myapp, node,
    state::Directory,
    status::{self, Status},
    supervisor,
    topology::{self, Options},
};

/// The lab that commands are about unless they or the environment name another.
const DEFAULT_NAME: &str = "demo";

/// `podwire lab COMMAND`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Bring a lab up: nodes, pod network, Service proxy, cluster DNS and a Kubernetes API.
    Up(UpArgs),
    /// Take a lab down; nothing of it stays.
    Down(LabName),
    /// Show nodes, pods and the memory that each agent takes.
    Status(StatusArgs),
    /// Print the path of the lab's kubeconfig, for KUBECONFIG.
    Kubeconfig(LabName),
    /// Run a command on a node, on the client outside the cluster, or on the network between them.
    Exec(ExecArgs),
    /// List the labs of this machine.
    List,
}

/// Which lab.
#[derive(Debug, Clone, clap::Args)]
pub struct LabName {
    /// The lab's name.
    #[arg(long, env = "PODWIRE_LAB", default_value = DEFAULT_NAME)]
    name: String,
}

/// `podwire lab status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    lab: LabName,
    /// Print one JSON object, for scripts.
    #[arg(long)]
    json: bool,
}

/// `podwire lab up`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    lab: LabName,
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// Range of pod addresses; each node gets a /24 of it.
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pod_cidr: Ipv4Net,
    /// Range of Service addresses.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/12")]
    service_cidr: Ipv4Net,
    /// The nameserver for names outside the cluster; without one they fail at once.
    #[arg(long, value_name = "ADDRESS")]
    upstream_dns: Option<IpAddr>,
    /// How pods of different nodes reach each other; can be changed later, in ConfigMap kube-flannel-cfg.
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// How many networks the nodes are on: 1, or 2 with a router between odd and even nodes.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    subnets: u8,
    /// Give nodes, pods and Services IPv6 addresses besides.
    #[arg(long)]
    dual_stack: bool,
    /// Answer cluster DNS on every node for its own pods, as NodeLocal DNSCache does.
    #[arg(long)]
    node_local_dns: bool,
    /// The largest packet between nodes, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = topology::MTU)]
    mtu: u32,
}

/// `podwire lab exec`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    lab: LabName,
    /// node1, node2, …, client; underlay, what is between them with its bridge br0; or pod/NAME (pod/NAMESPACE/NAME).
    machine: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The commands that the lab starts its own processes with.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Hidden {
    /// Process 1 of a lab.
    #[command(hide = true)]
    LabInit(Config),
    /// Underlay, control plane, machines.
    #[command(hide = true)]
    LabSupervisor(Config),
    /// A machine; its description comes on standard input.
    #[command(hide = true)]
    LabNode,
    /// The launcher of a container.
    #[command(hide = true)]
    Container(container::Args),
    /// The built-in web app of image myapp.
    #[command(hide = true)]
    Myapp(myapp::Args),
}

/// What a lab's first processes are told.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// JSON.
    config: String,
}

/// Runs `podwire lab COMMAND`. The calling process must have one thread only.
///
/// # Errors
/// What the command could not do, worded for the user.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up(args).map(|()| ExitCode::SUCCESS),
        Command::Down(lab) => down(&lab.name).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => show_status(&args).map(|()| ExitCode::SUCCESS),
        Command::Kubeconfig(lab) => {
            println!("{}", launch::kubeconfig(&lab.name)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Exec(args) => exec(&args).map(ExitCode::from),
        Command::List => list().map(|()| ExitCode::SUCCESS),
    }
}

/// Runs one of the lab's own processes to its end. The calling process must have one thread only.
///
/// # Errors
/// The process could not do its part; goes into the lab's log.
pub fn run_hidden(command: Hidden) -> Result<ExitCode> {
    match command {
        Hidden::LabInit(args) => init::run(&args.config).map(ExitCode::from),
        Hidden::LabSupervisor(args) => supervisor::run(&args.config).map(|()| ExitCode::SUCCESS),
        Hidden::LabNode => node::run().map(|()| ExitCode::SUCCESS),
        Hidden::Container(args) => Ok(container::run(&args)),
        Hidden::Myapp(args) => myapp::run(args).trying(|| "serve the web app").map(|()| ExitCode::SUCCESS),
    }
}

fn up(args: UpArgs) -> Result<()> {
    let options = Options {
        name: args.lab.name,
        nodes: args.nodes,
        pod_cidr: args.pod_cidr,
        service_cidr: args.service_cidr,
        upstream_dns: args.upstream_dns,
        backend: args.backend,
        subnets: args.subnets,
        dual_stack: args.dual_stack,
        node_local_dns: args.node_local_dns,
        mtu: args.mtu,
    };
    let started = Instant::now();
    launch::up(&options, |step| println!("✓ {:>5.2} s  {step}", started.elapsed().as_secs_f64()))?;
    let name = name_flag(&options.name);
    println!("Lab {} is up in {:.2} s. Next:", options.name, started.elapsed().as_secs_f64());
    println!("  export KUBECONFIG=$(podwire lab kubeconfig{name})");
    println!("  kubectl get nodes -o wide");
    Ok(())
}

fn exec(args: &ExecArgs) -> Result<u8> {
    match args.machine.strip_prefix("pod/") {
        Some(pod) => enter_pod::exec(&args.lab.name, pod, &args.command),
        None => enter::exec(&args.lab.name, &args.machine, &args.command),
    }
}

fn down(name: &str) -> Result<()> {
    let started = Instant::now();
    if launch::down(name)? {
        println!("Lab {name} is down in {:.2} s; nothing of it is left.", started.elapsed().as_secs_f64());
    } else {
        println!("There is no lab {name}; nothing to do.");
    }
    Ok(())
}

fn list() -> Result<()> {
    for (name, directory) in Directory::all()? {
        let state = if directory.is_running()? == Some(true) { "running" } else { "ended, remains to be taken down" };
        println!("{name}\t{state}");
    }
    Ok(())
}

fn show_status(args: &StatusArgs) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().trying(|| "ask the lab's API server")?;
    let status = runtime.block_on(status::status(&args.lab.name))?;
    if args.json {
        let text =
            serde_json::to_string_pretty(&status).map_err(io::Error::from).trying(|| "write the lab's status")?;
        println!("{text}");
    } else {
        print!("{}", render(&status));
    }
    Ok(())
}

fn render(status: &Status) -> String {
    let mut text = format!(
        "Lab {}: up for {}, API server {}\n\n{:<10} {:<14} {:<10} PODS\n",
        status.name,
        duration(Duration::from_secs(status.uptime_seconds)),
        status.api_url,
        "MACHINE",
        "ADDRESS",
        "CONDITION"
    );
    for machine in &status.machines {
        let pods = if machine.name == topology::CLIENT_NAME { String::new() } else { machine.pods.to_string() };
        let line = format!("{:<10} {:<14} {:<10} {pods}", machine.name, machine.address, machine.condition);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str(&format!("\n{:>10} {:>10}  {:<10} PROCESS\n", "RSS MiB", "PSS MiB", "MACHINE"));
    let mib = |kib: u64| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
    for process in &status.processes {
        let machine = if process.machine.is_empty() { "-" } else { &process.machine };
        text.push_str(&format!(
            "{:>10.1} {:>10.1}  {machine:<10} {}\n",
            mib(process.rss_kb),
            mib(process.pss_kb),
            process.name
        ));
    }
    text
}

fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

fn name_flag(name: &str) -> String {
    let default = env::var("PODWIRE_LAB").unwrap_or_else(|_| DEFAULT_NAME.to_owned());
    if name == default { String::new() } else { format!(" --name {name}") }
}
