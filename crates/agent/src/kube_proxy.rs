//! `podwire kube-proxy`: this node's Service proxy, in place of kube-proxy.
//!
//! Watch events go into [`podwire_proxy::Tracker`] on a thread of its own (netlink is synchronous), the plans that come
//! out go into the configured mode. Metrics and probes are served under kube-proxy's names. A change of the
//! configuration file takes effect while traffic flows; kube-proxy itself would end.

use std::sync::mpsc;

use anyhow::Context;
use futures_util::future::try_join_all;
use podwire_k8s::Client;
use podwire_kernel::sysctl::{ProcSys, Sysctl};
use podwire_proxy::mode::MODES;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    daemon::Stop,
    events::{self, Recorder},
};

mod args;
mod config;
mod duration;
mod feed;
mod health_checks;
mod metrics;
mod pages;
mod reload;
mod schema;
mod settings;
mod switch;
mod system;
mod worker;

pub use args::Args;
use args::Values;
use config::{Config, DetectLocal, Source};
use metrics::Metrics;
use pages::{Pages, State};
use switch::{IN_FLIGHT, Switch};
use worker::{Outputs, Worker};

/// Carries Services until SIGTERM or SIGINT. What is in the kernel stays: established and new connections go on until
/// the next start, which takes it over.
///
/// # Errors
/// The configuration is wrong, or the API or the kernel cannot be used at all.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let source = match &args.config {
        Some(path) => Source::File(path.clone()),
        None => Source::Flags(Box::new(args.values.clone())),
    };
    if args.config.is_some() && args.values != Values::default() {
        warn!("flags that the configuration file could replace have no effect beside --config");
    }
    if let Some(path) = &args.write_config_to {
        std::fs::write(path, source.schema()?.to_yaml()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        info!(file = %path.display(), "wrote the configuration");
        return Ok(());
    }
    if args.cleanup {
        return cleanup();
    }
    let config = source.read()?;
    let node = node_name(&args, &config)?;
    let (recorder, reports) = Recorder::new(&node);
    worker::set_up_conntrack(&config, &recorder);
    system::pass_bridged_packets(&mut ProcSys);
    if args.init_only {
        info!("the kernel's parameters are set");
        return Ok(());
    }
    system::set_oom_score_adj(config.fixed.oom_score_adj);
    let client = Client::connect(config.fixed.kubeconfig.as_deref(), args.master.as_deref()).await?;
    tokio::spawn(events::send(client.clone(), "kube-proxy", reports));
    serve(&source, config, &node, (&client, recorder)).await
}

async fn serve(
    source: &Source,
    config: Config,
    node: &str,
    (client, recorder): (&Client, Recorder),
) -> anyhow::Result<()> {
    if config.detect_local == DetectLocal::ClusterCidr(Vec::new()) {
        warn!(
            "clusterCIDR is not set: which sources are pods is not known, so nothing is masqueraded for being outside"
        );
    }
    Switch::check(MODES, &config.mode)?;
    let mut stop = Stop::new()?;
    let state = State::new("", Metrics::new(), config.patience);
    let hard_fail = config.fixed.bind_hard_fail;
    let pages = [(config.fixed.healthz, Pages::Health), (config.fixed.metrics, Pages::Metrics)];
    let serve = |(address, pages)| Some(pages::serve(address?, pages, state.clone(), hard_fail));
    let pages = try_join_all(pages.into_iter().filter_map(serve));
    let (checks, wanted_checks) = watch::channel(health_checks::Wanted::default());
    tokio::spawn(health_checks::serve(wanted_checks, state.clone(), recorder.clone()));
    let (inputs, received) = mpsc::channel();
    if let Source::File(path) = source {
        let news = (state.clone(), recorder.clone());
        tokio::spawn(reload::watch(path.clone(), config.clone(), inputs.clone(), news));
    }
    info!(node, mode = config.mode, "carrying Services");
    let switch = Switch::new(MODES, state.clone(), recorder.clone(), IN_FLIGHT);
    let worker = Worker::new(node, config, switch, Outputs { state: state.clone(), recorder, checks })?;
    std::thread::Builder::new().name("proxy".into()).spawn(move || worker.run(&received)).context("cannot start")?;
    tokio::select! {
        done = feed::feed(client, node, &inputs, &state) => done,
        Err(error) = pages => Err(error),
        () = stop.asked() => {
            info!("stopping; the rules stay");
            Ok(())
        }
    }
}

fn cleanup() -> anyhow::Result<()> {
    let mut failed = None;
    for mode in MODES {
        match (mode.cleanup)() {
            Ok(()) => info!(mode = mode.name, "nothing of it is left in the kernel"),
            Err(error) => {
                failed = Some(anyhow::Error::new(error).context(format!("cleaning up after {} mode", mode.name)))
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The node's name: flag, then configuration, then the machine's own, in lower case as the kubelet registers it.
fn node_name(args: &Args, config: &Config) -> anyhow::Result<String> {
    let configured = args.hostname_override.clone().or_else(|| config.fixed.hostname_override.clone());
    let name = match configured {
        Some(name) => name,
        None => ProcSys.read("kernel/hostname").context("finding this machine's name; set --hostname-override")?,
    };
    Ok(name.trim().to_lowercase())
}
