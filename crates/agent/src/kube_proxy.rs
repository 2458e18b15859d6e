//! `podwire kube-proxy`: this node's Service proxy, in place of kube-proxy.
//!
//! Watch events go into [`podwire_proxy::Tracker`] on a thread of its own (netlink is synchronous), the plans that come
//! out go into the configured mode. Metrics and probes are served under kube-proxy's names.

use std::{path::PathBuf, pin::pin, sync::mpsc};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use podwire_k8s::{
    Client, Event,
    convert::{self, Read},
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
    kube::{Api, runtime::watcher},
};
use podwire_kernel::sysctl::{ProcSys, Sysctl};
use podwire_model::{EndpointSlice, Node, Service};
use podwire_proxy::{
    Tracker,
    mode::{self, DetectLocal, MODES, Settings},
    plan::Me,
};
use tracing::{debug, info, warn};

use crate::{daemon::Stop, update::Update};

mod config;
mod metrics;
mod pages;
mod worker;

use config::Config;
use metrics::Metrics;
use pages::State;
use worker::Worker;

/// Flags of kube-proxy.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node's Node object [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Remove what every mode left in the kernel, and exit
    #[arg(long)]
    cleanup: bool,
}

/// Something that the worker must know.
enum Input {
    Services(Update<Service>),
    Slices(Update<EndpointSlice>),
    Node(Box<Node>),
}

/// Carries Services until SIGTERM or SIGINT. What is in the kernel stays: established and new connections go on until
/// the next start, which takes it over.
///
/// # Errors
/// The configuration is wrong or asks for what is not supported, or the API or the kernel cannot be used at all.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.cleanup {
        return cleanup();
    }
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let node = node_name(&args, &config)?;
    let description = mode::find(config.mode())?;
    let settings = Settings {
        detect_local: DetectLocal::Ranges(config.pod_ranges()?),
        masquerade_mark: config.masquerade_mark(),
        drop_invalid: !config.tcp_be_liberal(),
        ..Settings::default()
    };
    if settings.detect_local == DetectLocal::Ranges(Vec::new()) {
        warn!(
            "clusterCIDR is not set: which sources are pods is not known, so nothing is masqueraded for being outside"
        );
    }
    let opened = (description.open)(&settings)?;
    pass_bridged_packets();
    let client = Client::from_kubeconfig_or_cluster(config.kubeconfig()).await?;
    let mut stop = Stop::new()?;
    let state = State::new(description.name, Metrics::new());
    for (address, pages) in
        [(config.healthz_address()?, pages::Pages::Health), (config.metrics_address()?, pages::Pages::Metrics)]
    {
        if let Some(address) = address {
            tokio::spawn(pages::serve(address, pages, state.clone()));
        }
    }
    let me = Me { node: node.as_str().into(), masquerade_all: config.masquerade_all(), ..Me::default() };
    let worker = Worker::new(Tracker::new(me), opened, state.clone())?;
    info!(node, mode = description.name, "carrying Services");
    let (inputs, received) = mpsc::channel();
    std::thread::Builder::new().name("proxy".into()).spawn(move || worker.run(&received)).context("cannot start")?;
    tokio::select! {
        done = feed(&client, &node, &inputs, &state) => done,
        () = stop.asked() => {
            info!("stopping; the rules stay");
            Ok(())
        }
    }
}

/// Hands watch events on until the worker is gone.
async fn feed(client: &Client, node: &str, inputs: &mpsc::Sender<Input>, state: &State) -> anyhow::Result<()> {
    let kube = client.kube();
    let all = watcher::Config::default;
    let mine = all().fields(&format!("metadata.name={node}"));
    let mut services = pin!(podwire_k8s::watch::<core::Service>(Api::all(kube.clone()), all()));
    let mut slices = pin!(podwire_k8s::watch::<discovery::EndpointSlice>(Api::all(kube.clone()), all()));
    let mut nodes = pin!(podwire_k8s::watch::<core::Node>(Api::all(kube), mine));
    loop {
        let input = tokio::select! {
            Some(event) = services.next() => Input::Services(Update::new(event, served_service)),
            Some(event) = slices.next() => Input::Slices(Update::new(event, convert::endpoint_slice)),
            Some(event) = nodes.next() => match this_node(event, node) {
                Some(found) => {
                    state.node_is_deleting(found.deleting);
                    Input::Node(Box::new(found))
                }
                None => continue,
            },
            else => bail!("the watches of the Kubernetes API ended"),
        };
        inputs.send(input).map_err(|_| anyhow::anyhow!("the proxy's thread ended; see its last message"))?;
    }
}

/// A Service as the proxy takes it; says which part of it is not carried.
fn served_service(object: &core::Service) -> Read<Service> {
    let read = convert::service(object);
    if let Some(service) = &read.value
        && !service.source_ranges.is_empty()
        && !service.load_balancer.is_empty()
    {
        warn!(
            "Service {}: spec.loadBalancerSourceRanges is not supported yet; its load-balancer addresses are not served, \
             unless a range allows all",
            service.name
        );
    }
    read
}

/// What an event says about this node.
fn this_node(event: Event<core::Node>, name: &str) -> Option<Node> {
    let objects = match event {
        Event::Snapshot(objects) => objects,
        Event::Applied(object) => vec![object],
        Event::Deleted(_) => Vec::new(),
    };
    let nodes = objects.iter().filter_map(|object| {
        let read = convert::node(object);
        read.problems.iter().for_each(|problem| warn!("{problem}"));
        read.value
    });
    nodes.into_iter().find(|node| &*node.name == name)
}

fn cleanup() -> anyhow::Result<()> {
    for mode in MODES {
        (mode.cleanup)().with_context(|| format!("cleaning up after {} mode", mode.name))?;
        info!(mode = mode.name, "nothing of it is left in the kernel");
    }
    Ok(())
}

/// The node's name: flag, then configuration, then the machine's own, in lower case as the kubelet registers it.
fn node_name(args: &Args, config: &Config) -> anyhow::Result<String> {
    let configured = args.hostname_override.clone().or_else(|| config.hostname_override());
    let name = match configured {
        Some(name) => name,
        None => ProcSys.read("kernel/hostname").context("finding this machine's name; set --hostname-override")?,
    };
    Ok(name.trim().to_lowercase())
}

/// Packets between pods on one bridge must pass the rules too, or answers of a Service come back untranslated.
fn pass_bridged_packets() {
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        match ProcSys.ensure(key, "1") {
            Ok(()) => debug!("{key} is 1"),
            Err(error) => warn!("pods may not reach Services with endpoints on their own node: {error}"),
        }
    }
}
