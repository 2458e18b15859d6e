//! `podwire`: one program, each of its commands a drop-in for what it is named after.

mod lint;

use std::{
    ffi::OsString,
    future::Future,
    io::IsTerminal,
    process::{ExitCode, Termination},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use podwire_agent::{cni_install, dns, flags, flanneld, kube_proxy};
use podwire_lab::cli as lab;
use tracing_subscriber::EnvFilter;

/// The whole Kubernetes cluster network in one program
#[derive(Debug, Parser)]
#[command(name = "podwire", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A multi-node cluster network on this machine, behind a Kubernetes API for kubectl
    #[command(subcommand)]
    Lab(lab::Command),
    /// Carry Services: takes kube-proxy's configuration
    KubeProxy(Box<kube_proxy::Args>),
    /// Join the nodes' pod ranges: takes flanneld's flags and net-conf.json
    Flanneld(Box<flanneld::Args>),
    /// Answer for cluster names: takes CoreDNS's Corefile
    Dns(dns::Args),
    /// Install the CNI plugins and the network configuration on a node
    #[command(subcommand)]
    Cni(Cni),
    /// Check manifests for YAML mistakes: line, column and field of each
    Lint(lint::Args),
    #[command(flatten)]
    Own(lab::Hidden),
}

#[derive(Debug, Subcommand)]
enum Cni {
    /// Copy the plugins and the network configuration to where the container runtime looks; pods may start meanwhile
    Install(cni_install::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments());
    log(match &cli.command {
        Command::KubeProxy(args) => args.v.unwrap_or_default(),
        Command::Flanneld(args) => args.v.unwrap_or_default(),
        _ => 0,
    });
    let done = match cli.command {
        // The lab's commands enter and make namespaces, which takes a process of one thread: no runtime here.
        Command::Lab(command) => lab::run(command).map_err(Into::into),
        Command::Own(command) => lab::run_hidden(command).map_err(Into::into),
        Command::KubeProxy(args) => agent(kube_proxy::run(*args)),
        Command::Flanneld(args) => agent(flanneld::run(*args)),
        Command::Dns(args) => agent(dns::run(args)),
        Command::Cni(Cni::Install(args)) => agent(cni_install::run(args)),
        Command::Lint(args) => lint::run(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("podwire: {error:#}");
        ExitCode::FAILURE.report()
    })
}

/// The command line; for flanneld with what the environment says in place of flags.
fn arguments() -> Vec<OsString> {
    let args = flags::with_double_dashes(std::env::args_os());
    match args.get(1) {
        Some(command) if command == "flanneld" => {
            flags::with_environment::<flanneld::Args>(args, flanneld::ENVIRONMENT, |name| std::env::var_os(name))
        }
        _ => args,
    }
}

/// Runs an agent to its end on a runtime of its own.
fn agent(run: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(run).map(|()| ExitCode::SUCCESS)
}

/// Logs to standard error: `info` and above of ours (from verbosity 4 on also `debug`), warnings of others; or as
/// `RUST_LOG` says.
fn log(verbosity: u8) {
    let level = if verbosity >= 4 { "debug" } else { "info" };
    let default = || {
        let ours = ["podwire", "podwire_agent", "podwire_lab", "podwire_dns", "podwire_proxy", "podwire_overlay"];
        EnvFilter::new(ours.map(|name| format!("{name}={level}")).join(",") + ",warn")
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
