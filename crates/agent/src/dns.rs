//! `podwire dns`: the cluster's DNS server, as `coredns -conf Corefile`.

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow};
use futures_util::{Stream, StreamExt};
use podwire_dns::{
    cluster::Cluster,
    corefile::{Corefile, CorefileError, System},
    program::{ClusterNeeds, Environment, Program},
    server::Server,
    view::View,
};
use podwire_k8s::{
    Client,
    convert::{self, Read},
    k8s_openapi::api::core::v1::{Namespace, Pod},
    kube::{Api, runtime::watcher::Config},
};
use podwire_kernel::route::{Route, RouteSocket};
use podwire_model::{self as model, Name, ObjectName, Problem};
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::{
    daemon::{Stop, sleep},
    update::{Update, logged, updates},
};

/// Flags of `podwire dns`, as CoreDNS spells them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Corefile to serve.
    #[arg(long, value_name = "FILE", default_value = "Corefile")]
    conf: PathBuf,
}

/// A Corefile with all that it imports, or what is wrong with it.
type Parsed = Result<Corefile, CorefileError>;

/// Serves DNS until SIGTERM or SIGINT, then for the Corefile's lame duck time.
///
/// # Errors
/// The Corefile is missing or wrong, the Kubernetes API cannot be used, or an address cannot be opened.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let environment = Environment {
        loader: Arc::new(System::beside(&args.conf)),
        interfaces: Arc::new(interface_addresses),
        ..Environment::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    };
    let text = fs::read_to_string(&args.conf)
        .with_context(|| format!("cannot read {}, name the Corefile with -conf", args.conf.display()))?;
    let mut corefile = Corefile::parse(&text, &*environment.loader);
    let program = build(&args.conf, &corefile, &environment)?;
    let mut feed = Feed::start(program.cluster.clone(), &environment.cluster).await?;
    let mut server = Server::start(program, environment.clone()).await?;
    loop {
        let interval = server.program().reload;
        tokio::select! {
            () = stop.asked() => break,
            () = sleep(interval) => {
                if let Err(error) = reload(&args.conf, &mut corefile, &environment, &mut server, &mut feed).await {
                    environment.metrics.count_failed_reload();
                    error!("the changed Corefile is refused, the running one stays in force: {error:#}");
                }
            }
        }
    }
    info!("stopping, after {:?} as lame duck", server.program().lameduck);
    tokio::select! {
        () = server.drain() => {}
        () = stop.asked() => {}
    }
    Ok(())
}

fn build(path: &Path, corefile: &Parsed, environment: &Environment) -> anyhow::Result<Program> {
    let program = corefile.as_ref().map_err(Clone::clone).and_then(|corefile| Program::of(corefile, environment));
    program.map_err(|error| anyhow!("{}:{error}", path.display()))
}

/// The addresses of a network interface, for directive `bind`.
fn interface_addresses(name: &str) -> io::Result<Option<Vec<IpAddr>>> {
    let mut socket = RouteSocket::open().map_err(io::Error::other)?;
    let Some(link) = socket.link(name).map_err(io::Error::other)? else { return Ok(None) };
    let addresses = socket.addresses(Some(link.index)).map_err(io::Error::other)?;
    Ok(Some(addresses.iter().map(|address| address.net.addr()).collect()))
}

/// Takes the Corefile over if it, or a file that it imports, differs from `known`. A refused one is not tried again.
async fn reload(
    path: &Path,
    known: &mut Parsed,
    environment: &Environment,
    server: &mut Server,
    feed: &mut Feed,
) -> anyhow::Result<()> {
    // While the kubelet swaps a ConfigMap the file may be missing for a moment.
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let corefile = Corefile::parse(&text, &*environment.loader);
    if corefile == *known {
        return Ok(());
    }
    *known = corefile;
    let program = build(path, known, environment)?;
    let needs = program.cluster.clone();
    let new_feed = match needs == feed.needs {
        true => None,
        false => Some(Feed::start(needs, &environment.cluster).await?),
    };
    server.replace(program).await?;
    if let Some(new_feed) = new_feed {
        *feed = new_feed;
    }
    info!("took over the changed Corefile {}", path.display());
    Ok(())
}

/// The watches that keep the view of the cluster; dropping it ends them.
struct Feed {
    needs: Option<ClusterNeeds>,
    _tasks: JoinSet<()>,
}

impl Feed {
    async fn start(needs: Option<ClusterNeeds>, cluster: &Arc<Cluster>) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let Some(wanted) = &needs else { return Ok(Self { needs, _tasks: tasks }) };
        let client = Client::from_kubeconfig_or_cluster(wanted.kubeconfig.clone()).await;
        let client = client.context("directive kubernetes (outside a pod it needs its option kubeconfig)")?.kube();
        let missing = Arc::new(AtomicUsize::new(if wanted.pods { 4 } else { 3 }));
        let sink = || Sink { cluster: cluster.clone(), missing: missing.clone() };
        let all = Config::default;
        tasks.spawn(sink().drain(updates(Api::all(client.clone()), all(), convert::service), apply_service));
        tasks.spawn(sink().drain(updates(Api::all(client.clone()), all(), convert::endpoint_slice), apply_slice));
        tasks.spawn(sink().drain(updates(Api::all(client.clone()), all(), namespace_name), apply_namespace));
        if wanted.pods {
            tasks.spawn(sink().drain(updates(Api::all(client), all(), pod_addresses), apply_pod));
        }
        Ok(Self { needs, _tasks: tasks })
    }
}

/// Where the events of one watch go.
struct Sink {
    cluster: Arc<Cluster>,
    /// How many watches have not delivered their first complete state.
    missing: Arc<AtomicUsize>,
}

impl Sink {
    async fn drain<V>(self, updates: impl Stream<Item = (Update<V>, Vec<Problem>)>, apply: fn(&mut View, Update<V>)) {
        let mut updates = std::pin::pin!(updates.map(logged));
        let mut first = true;
        while let Some(update) = updates.next().await {
            let complete = matches!(update, Update::All(_));
            self.cluster.update(unix_seconds(), |view| apply(view, update));
            if complete && std::mem::take(&mut first) && self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.cluster.set_synced();
                info!("the cluster's names are known");
            }
        }
    }
}

/// Seconds since 1970, for the SOA serial number; it wraps in 2106 as RFC 1982 foresees.
fn unix_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

fn apply_service(view: &mut View, update: Update<model::Service>) {
    match update {
        Update::All(services) => view.replace_services(services),
        Update::One(service) => view.apply_service(service),
        Update::Gone(name) => view.delete_service(&name),
    }
}

fn apply_slice(view: &mut View, update: Update<model::EndpointSlice>) {
    match update {
        Update::All(slices) => view.replace_slices(slices),
        Update::One(slice) => view.apply_slice(slice),
        Update::Gone(name) => view.delete_slice(&name),
    }
}

fn apply_namespace(view: &mut View, update: Update<Name>) {
    match update {
        Update::All(names) => view.replace_namespaces(names),
        Update::One(name) => view.apply_namespace(name),
        Update::Gone(name) => view.delete_namespace(&name.name),
    }
}

fn apply_pod(view: &mut View, update: Update<(ObjectName, Vec<IpAddr>)>) {
    match update {
        Update::All(pods) => view.replace_pods(pods),
        Update::One((name, addresses)) => view.apply_pod(name, addresses),
        Update::Gone(name) => view.delete_pod(&name),
    }
}

/// A Pod's addresses; none once it has ended, since they may be another's by then.
fn pod_addresses(object: &Pod) -> Read<(ObjectName, Vec<IpAddr>)> {
    let status =
        object.status.as_ref().filter(|status| !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    let ips = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten());
    let addresses = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
    Some((convert::object_name(&object.metadata), addresses)).into()
}

fn namespace_name(object: &Namespace) -> Read<Name> {
    object.metadata.name.as_deref().map(Name::from).into()
}
