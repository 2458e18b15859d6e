//! Nodes with flanneld on them, and the API server that they share.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Parser;
use podwire_agent::flanneld;
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1 as core,
    kube::{self, Api},
};
use serde_json::json;
use tokio::sync::Notify;

use super::common::{Cluster, Node};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: flanneld::Args,
}

/// Waits until `done`; fails after a minute, of which flanneld itself lets ten seconds pass before it lets go of a backend.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Something that runs on a thread of its own until it is dropped.
pub struct Task {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Task {
    fn start(run: impl FnOnce(&Notify) + Send + 'static) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        Self { stop, thread: Some(thread::spawn(move || run(&stopped))) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.notify_one();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "a task failed");
    }
}

/// Nodes, their API server and the files of each.
pub struct World {
    _server: Task,
    pub cluster: Arc<Cluster>,
    folder: PathBuf,
}

impl World {
    /// Nodes with pod ranges, whose net-conf.json is `net_conf`; no flanneld yet.
    pub fn new(cluster: Cluster, net_conf: &str, pod_cidrs: impl Fn(&Node) -> Vec<String>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("podwire-flanneld-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let cluster = Arc::new(cluster);
        let server = {
            let (cluster, folder) = (cluster.clone(), folder.clone());
            Task::start(move |stop| serve(&cluster, &folder, stop))
        };
        let world = Self { _server: server, cluster, folder };
        eventually("the API server is up", || world.folder.join("kubeconfig").exists());
        for node in &world.cluster.nodes {
            world.write_conf(node, net_conf);
            world.create(node, &pod_cidrs(node));
        }
        world
    }

    fn create(&self, node: &Node, cidrs: &[String]) {
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name(node) },
            "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
        });
        let object: core::Node = serde_json::from_value(object).unwrap();
        self.api(|client| async move { Api::all(client).create(&Default::default(), &object).await.unwrap() });
    }

    /// A file of a node.
    pub fn path(&self, node: &Node, file: &str) -> PathBuf {
        self.folder.join(name(node)).join(file)
    }

    /// Changes net-conf.json of a node as the kubelet changes a mounted ConfigMap: by a swap of links.
    pub fn write_conf(&self, node: &Node, text: &str) {
        static VERSION: AtomicUsize = AtomicUsize::new(0);
        let folder = self.path(node, "conf");
        let version = format!("..{}", VERSION.fetch_add(1, Ordering::Relaxed));
        fs::create_dir_all(folder.join(&version)).unwrap();
        fs::write(folder.join(&version).join("net-conf.json"), text).unwrap();
        symlink(&version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        let _ = symlink("..data/net-conf.json", folder.join("net-conf.json"));
    }

    /// Runs flanneld on a node until that is dropped, as a process that is killed: it has no say in it.
    pub fn start(&self, at: usize, more: &[&str]) -> Task {
        let node = &self.cluster.nodes[at];
        let file = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
        let flags = [
            "--ip-masq".to_owned(),
            "--kube-subnet-mgr".to_owned(),
            "--healthz-ip=127.0.0.1".to_owned(),
            "--healthz-port=8081".to_owned(),
            "--iptables-resync=1".to_owned(),
            format!("--node-name={}", name(node)),
            file("kubeconfig-file", self.folder.join("kubeconfig")),
            file("net-config-path", self.path(node, "conf/net-conf.json")),
            file("subnet-file", self.path(node, "subnet.env")),
        ];
        let line = ["flanneld".to_owned()].into_iter().chain(flags).chain(more.iter().map(ToString::to_string));
        let Cli { args } = Cli::parse_from(line);
        let cluster = self.cluster.clone();
        Task::start(move |stop| {
            cluster.nodes[at].net.inside(|| {
                runtime().block_on(async {
                    tokio::select! {
                        ended = flanneld::run(args) => panic!("flanneld ended: {ended:?}"),
                        () = stop.notified() => {}
                    }
                });
            });
        })
    }

    /// Does something with the API, from the underlay.
    pub fn api<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce(kube::Client) -> F + Send) -> T {
        self.cluster.underlay.inside(|| {
            runtime().block_on(async {
                f(Client::from_kubeconfig(Some(&self.folder.join("kubeconfig"))).await.unwrap().kube()).await
            })
        })
    }

    /// What the API has of a node.
    pub fn object(&self, node: &Node) -> core::Node {
        let name = name(node);
        self.api(|client| async move { Api::all(client).get(&name).await.unwrap() })
    }

    /// An annotation of a node, by the last part of its key.
    pub fn annotation(&self, node: &Node, key: &str) -> String {
        let all = self.object(node).metadata.annotations.unwrap_or_default();
        all.get(&format!("flannel.alpha.coreos.com/{key}")).cloned().unwrap_or_default()
    }

    /// The messages of all Events of this reason.
    pub fn events(&self, reason: &str) -> Vec<String> {
        use podwire_k8s::k8s_openapi::api::events::v1::Event;
        let all = self.api(|client| async move { Api::<Event>::all(client).list(&Default::default()).await.unwrap() });
        let is_it = |event: &Event| event.reason.as_deref() == Some(reason);
        all.items.into_iter().filter(is_it).filter_map(|event| event.note).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub fn name(node: &Node) -> String {
    format!("node{}", node.n)
}

/// A page of flanneld's.
pub fn page(node: &Node, path: &str) -> String {
    let get = || {
        let mut stream = TcpStream::connect("127.0.0.1:8081").ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    node.net.inside(get).unwrap_or_default()
}

/// Whether flanneld says that pods can be attached.
pub fn is_ready(node: &Node) -> bool {
    page(node, "/readyz").starts_with("HTTP/1.1 200")
}

/// The value of a metric, labels and all; -1 when there is none.
pub fn metric(node: &Node, name: &str) -> i64 {
    let text = page(node, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(-1)
}

/// The API server on the underlay, with a runtime of its own that goes on until `stop`.
fn serve(cluster: &Cluster, folder: &Path, stop: &Notify) {
    let address: SocketAddr = "172.25.2.254:6443".parse().unwrap();
    cluster.underlay.inside(|| {
        runtime().block_on(async {
            let server = Server::builder().address(address.ip()).build().unwrap();
            server.serve(TcpListener::bind(address).unwrap()).unwrap();
            let temporary = folder.join("kubeconfig.new");
            fs::write(&temporary, server.kubeconfig(address)).unwrap();
            fs::rename(temporary, folder.join("kubeconfig")).unwrap();
            stop.notified().await;
        });
    });
}

/// The pod range of a node of [`Cluster`].
pub fn pod_cidr(node: &Node) -> Vec<String> {
    vec![format!("10.244.{}.0/24", node.n - 1)]
}
