//! The pod runtime of a node: what the kubelet and a container runtime do together on a real one.
//!
//! A [`pod`] is one task: it prepares volumes and a network sandbox, supervises containers and removes everything
//! again. What it learns goes into one value, [`status::Known`], from which the status is computed; nothing depends on the
//! order of events. `README.md` beside this file says how to look at a running node.

mod backoff;
mod checks;
mod cni;
mod env;
mod events;
mod frame;
mod image;
mod logs;
pub mod node;
mod pod;
mod probe;
mod process;
mod registry;
pub mod remote;
mod report;
mod resolv;
mod sandbox;
mod serve;
mod status;
mod supervise;
mod volumes;

use std::{
    collections::{HashMap, HashSet},
    fs::OpenOptions,
    io::Write,
    os::unix::{fs::OpenOptionsExt, net::UnixListener},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::Engine;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::{Api, config::Kubeconfig, runtime::watcher};
use podwire_k8s::Event;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    error::{Context as _, Error, Result},
    node::NodeConfig,
};
use cni::{Cni, NetworkState};
use events::Recorder;
use pod::Desired;
use registry::Registry;

/// How long pods may take to be removed when the node goes down.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Where a node keeps its state.
#[derive(Debug, Clone)]
struct Dirs {
    /// Volumes, in a directory for each pod's uid.
    pods: PathBuf,
    /// Logs.
    logs: PathBuf,
    /// Names of network namespaces.
    netns: PathBuf,
    /// Where containers mount their root, each in its own mount namespace.
    root: PathBuf,
    /// The node's own kubeconfig.
    kubeconfig: PathBuf,
}

impl Dirs {
    fn below(root: &Path) -> Self {
        Self {
            pods: root.join("var/lib/kubelet/pods"),
            logs: root.join("var/log/pods"),
            netns: root.join(sandbox::NETNS_DIR.trim_start_matches('/')),
            root: root.join("run/podwire/root"),
            kubeconfig: root.join("var/lib/kubelet/kubeconfig"),
        }
    }
}

/// What the pods of a node share.
struct Node {
    config: NodeConfig,
    client: kube::Client,
    dirs: Dirs,
    /// The cluster's CA certificates, PEM.
    ca: Vec<u8>,
    events: Recorder,
    cni: Cni,
    network: watch::Receiver<NetworkState>,
    registry: Arc<Registry>,
    /// The node goes down: pods are removed from it, but not from the API.
    shutdown: watch::Receiver<bool>,
    /// Marked as changed whenever a ConfigMap or a Secret has changed.
    object_changes: watch::Receiver<()>,
    api_service: OnceLock<(String, u16)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.config.name).finish_non_exhaustive()
    }
}

impl Node {
    /// Address and port of the Service `default/kubernetes`, which pods are told; the API server's own until it exists.
    async fn api_service(&self) -> (String, u16) {
        let lookup = async {
            let api: Api<Service> = Api::namespaced(self.client.clone(), "default");
            let spec = api.get("kubernetes").await.ok()?.spec?;
            let port = u16::try_from(spec.ports?.first()?.port).ok()?;
            Some((spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None")?, port))
        };
        if let Some(known) = self.api_service.get() {
            return known.clone();
        }
        match lookup.await {
            Some(found) => self.api_service.get_or_init(|| found).clone(),
            None => (self.config.api_server.0.to_string(), self.config.api_server.1),
        }
    }
}

/// Runs a node until SIGTERM or SIGINT, then removes its pods. Answers `logs` and `exec` on `listener`.
///
/// To be called in the node's network, mount and UTS namespaces.
///
/// # Errors
/// The kubeconfig cannot be used. An API server that does not answer is waited for.
pub async fn run(config: NodeConfig, listener: UnixListener) -> Result<()> {
    run_below(Path::new("/"), config, listener).await
}

/// As [`run`], with the node's state in directories below `root`.
async fn run_below(root: &Path, config: NodeConfig, listener: UnixListener) -> Result<()> {
    let (shut_down, shutdown) = watch::channel(false);
    let dirs = Dirs::below(root);
    let ca = certificate_authority(&config.kubeconfig)?;
    let client = connect(&dirs.kubeconfig, &config.kubeconfig).await?;
    listener.set_nonblocking(true).trying(|| "listen for logs and exec")?;
    let listener = tokio::net::UnixListener::from_std(listener).trying(|| "listen for logs and exec")?;
    let mut terminate = signal(SignalKind::terminate()).trying(|| "handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).trying(|| "handle SIGINT")?;

    let cni = Cni::new(&config.cni_conf_dir, &config.cni_bin_dir);
    let (network_state, network) = watch::channel(cni.state().await);
    let (events, send_events) = Recorder::new(client.clone(), config.name.clone());
    let (object_changed, object_changes) = watch::channel(());
    let registry = Arc::new(Registry::default());
    let node = Arc::new(Node {
        client: client.clone(),
        dirs,
        ca,
        events: events.clone(),
        cni: cni.clone(),
        network: network.clone(),
        registry: registry.clone(),
        shutdown,
        object_changes,
        api_service: OnceLock::new(),
        config,
    });
    let config = node.config.clone();
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(node = config.name, "going down");
        shut_down.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = pods(node) => {}
        () = end => {}
        () = serve::serve(listener, registry) => {}
        () = watch_objects(client.clone(), &object_changed) => {}
        () = node::keep_status(client.clone(), &config, network, &events) => {}
        () = node::keep_lease(client, &config.name) => {}
        () = cni::watch_state(&cni, network_state) => {}
        () = send_events => {}
    }
    Ok(())
}

/// Tells when any ConfigMap or Secret changes, for ever. Pods read those that they refer to themselves.
async fn watch_objects(client: kube::Client, changed: &watch::Sender<()>) {
    let maps = podwire_k8s::watch::<ConfigMap>(Api::all(client.clone()), watcher::Config::default());
    let secrets = podwire_k8s::watch::<Secret>(Api::all(client), watcher::Config::default());
    let mut changes = pin!(stream::select(maps.map(drop), secrets.map(drop)));
    while changes.next().await.is_some() {
        changed.send_replace(());
    }
}

/// Runs the node's pods until it is to go down and they are gone.
async fn pods(node: Arc<Node>) {
    let mut shutdown = node.shutdown.clone();
    let mut pods = Pods { node: node.clone(), workers: HashMap::new(), tasks: JoinSet::new(), done: HashSet::new() };
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", node.config.name));
    let mut events = Box::pin(podwire_k8s::watch::<Pod>(Api::all(node.client.clone()), mine));
    loop {
        tokio::select! {
            Some(event) = events.next() => pods.take(event),
            Some(ended) = pods.tasks.join_next() => pods.ended(ended),
            _ = shutdown.wait_for(|down| *down) => break,
        }
    }
    let _ = tokio::time::timeout(SHUTDOWN, async { while pods.tasks.join_next().await.is_some() {} }).await;
}

/// One task for each pod of the node.
struct Pods {
    node: Arc<Node>,
    workers: HashMap<String, watch::Sender<Desired>>,
    tasks: JoinSet<String>,
    /// Pods that were removed, but whose deletion has not been seen yet.
    done: HashSet<String>,
}

impl Pods {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Snapshot(pods) => {
                let there: HashSet<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
                self.done.retain(|uid| there.contains(uid));
                for (_, worker) in self.workers.iter().filter(|(uid, _)| !there.contains(*uid)) {
                    worker.send_modify(|desired| desired.gone = true);
                }
                pods.into_iter().for_each(|pod| self.apply(pod));
            }
            Event::Applied(pod) => self.apply(pod),
            Event::Deleted(pod) => {
                let uid = pod.metadata.uid.unwrap_or_default();
                self.done.remove(&uid);
                if let Some(worker) = self.workers.get(&uid) {
                    worker.send_modify(|desired| desired.gone = true);
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_modify(|desired| desired.pod = pod);
        } else if !self.done.contains(&uid) {
            let (worker, desired) = watch::channel(Desired { pod, gone: false });
            self.workers.insert(uid.clone(), worker);
            let node = self.node.clone();
            self.tasks.spawn(async move {
                pod::run(node, desired).await;
                uid
            });
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                let gone = self.workers.remove(&uid).is_none_or(|worker| worker.borrow().gone);
                if !gone {
                    self.done.insert(uid);
                }
            }
            Err(error) => tracing::error!(%error, "a pod's task failed"),
        }
    }
}

async fn connect(path: &Path, kubeconfig: &str) -> Result<kube::Client> {
    let tried = || format!("write {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).trying(tried)?;
    }
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(kubeconfig.as_bytes())).trying(tried)?;
    match podwire_k8s::Client::from_kubeconfig(Some(path)).await {
        Ok(client) => Ok(client.kube()),
        Err(error) => Err(Error::Api { tried: "use the node's kubeconfig".to_owned(), reason: error.to_string() }),
    }
}

/// The CA certificates that a kubeconfig trusts, PEM; empty where it names none.
fn certificate_authority(kubeconfig: &str) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Api { tried: "read the node's kubeconfig".to_owned(), reason };
    let config = Kubeconfig::from_yaml(kubeconfig).map_err(|e| failed(e.to_string()))?;
    let data = config.clusters.first().and_then(|c| c.cluster.as_ref()?.certificate_authority_data.clone());
    base64::engine::general_purpose::STANDARD.decode(data.unwrap_or_default()).map_err(|e| failed(e.to_string()))
}

/// 64 hexadecimal digits that no other container has.
fn random_id() -> String {
    let mut bytes = [0_u8; 32];
    if let Err(error) =
        std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
    {
        tracing::warn!(%error, "cannot read /dev/urandom");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
