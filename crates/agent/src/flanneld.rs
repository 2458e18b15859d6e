//! `podwire flanneld`: this node's part of the overlay, in place of flanneld with `--kube-subnet-mgr`.
//!
//! Node events go into [`podwire_overlay::Overlay`], which programs the kernel; this node's own annotations and
//! condition go back to the API. `subnet.env` is written last: once it is there, the CNI plugin may attach pods.
//! A change of net-conf.json takes effect while pods talk; flanneld itself would have to be started again.

use std::{fs, pin::pin};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1 as core,
    kube::{Api, runtime::watcher},
};
use podwire_model::Name;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use crate::{
    daemon::{Stop, sleep},
    events::{self, Recorder},
    file_watch::FileWatch,
};

mod args;
mod checksum;
mod healthz;
mod key;
mod links;
mod metrics;
mod net_conf;
mod nodes;
mod publish;
mod ready;
mod rules;
mod stack;
mod survey;
mod uplink;
mod user_space;
mod worker;

pub use args::{Args, ENVIRONMENT};
use metrics::Metrics;
use net_conf::NetConf;
use nodes::Seen;
use worker::{Outputs, Worker};

/// Runs until SIGTERM or SIGINT. The data path stays as it is then: pods keep talking, and the next run takes it over.
///
/// # Errors
/// The flags, net-conf.json or the node's facts can never work: no retry would help. What may pass (the API server
/// away, the kernel refusing) is logged and tried again.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.version {
        println!("{}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    args.check()?;
    let mut file = FileWatch::new(&args.net_config_path);
    let path = file.path();
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let conf = NetConf::new(path, text)?;
    let client = Client::connect(args.kubeconfig_file.as_deref(), args.kube_api_url.as_deref()).await?;
    let name = match args.own.node_name.as_deref() {
        Some(name) => name.into(),
        None => node_name(&client).await?,
    };
    info!(node = %name, networks = ?conf.networks, backend = conf.backend()?.name(), "starting");

    let (recorder, reports) = Recorder::new(&name);
    tokio::spawn(events::send(client.clone(), "flannel", reports));
    let nodes = Api::<core::Node>::all(client.kube());
    let read = |object: core::Node| Seen::read(&object);
    let mut events = pin!(podwire_k8s::watch_as(nodes.clone(), watcher::Config::default(), read));
    let mut stop = Stop::new()?;
    let mut changes = links::changes()?;
    let mut tick = interval(args.resync());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outputs = Outputs { nodes, recorder, metrics: Metrics::new() };
    let mut worker = Worker::new(args, conf, name, outputs)?;
    worker.serve_pages().await?;
    loop {
        tokio::select! {
            () = stop.asked() => break,
            event = events.next() => match event {
                Some(event) => worker.observe(event),
                None => bail!("the watch of nodes ended"),
            },
            Some(change) = changes.recv() => if !worker.changed(change, &mut changes) { continue },
            text = file.changed() => worker.reconfigure(text).await,
            _ = tick.tick() => worker.tick(),
            () = sleep(worker.pause()) => {}
        }
        tokio::select! {
            () = stop.asked() => break,
            done = worker.work() => done?,
        }
    }
    worker.farewell().await;
    info!("stopping; what is in the kernel stays");
    Ok(())
}

/// This node's name: `NODE_NAME`, or the node of the Pod that `POD_NAME` and `POD_NAMESPACE` name.
async fn node_name(client: &Client) -> anyhow::Result<Name> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    if let Some(name) = variable("NODE_NAME") {
        return Ok(name.into());
    }
    let (Some(pod), Some(namespace)) = (variable("POD_NAME"), variable("POD_NAMESPACE")) else {
        bail!("set NODE_NAME, or POD_NAME and POD_NAMESPACE, so that this node's Node object can be found");
    };
    let found = Api::<core::Pod>::namespaced(client.kube(), &namespace).get(&pod).await;
    let found = found.with_context(|| format!("reading pod {namespace}/{pod} to learn the node's name"))?;
    let node = found.spec.and_then(|spec| spec.node_name).filter(|name| !name.is_empty());
    node.map(Name::from).with_context(|| format!("pod {namespace}/{pod} has no spec.nodeName"))
}
