//! One node with a pod, an outside client, the API, and kube-proxy as it is started on a node.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use podwire_agent::kube_proxy;
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::events::v1::Event,
    kube::{
        Api,
        api::{DynamicObject, ListParams, Patch, PatchParams},
        core::{ApiResource, GroupVersionKind},
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    common::{Cluster, Net, able},
    relay::Relay,
};

/// Where the proxy reaches the API, and where it is.
const API: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 25, 2, 254), 6443);
const BEHIND: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 25, 2, 254), 6444);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: kube_proxy::Args,
}

/// The machine room: everything but the proxy.
pub struct Site {
    pub cluster: Cluster,
    pub api: Relay,
    folder: PathBuf,
    stop: Notify,
}

/// Runs a test with a site; what a site runs ends with it.
pub fn on_a_site(name: &str, test: impl FnOnce(&Site) + Send) {
    if !able() {
        return;
    }
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("podwire-kube-proxy-{name}-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let cluster = Cluster::new(1);
    let api = cluster.underlay.inside(|| Relay::new(API.into(), BEHIND.into()));
    let site = Site { cluster, api, folder, stop: Notify::new() };
    thread::scope(|scope| {
        let _end = End(&site);
        scope.spawn(|| site.serve_api());
        site.eventually("the API is up", || site.folder.join("kubeconfig").exists());
        site.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" } }));
        let addresses = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": NODE.to_string() }] } });
        site.patch_status("Node", "node1", addresses);
        test(&site);
    });
}

/// Stops the API and removes the folder, also when an assertion fails: the scope waits for the API's thread.
struct End<'a>(&'a Site);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.notify_one();
        let _ = fs::remove_dir_all(&self.0.folder);
    }
}

impl Site {
    pub fn node(&self) -> &Net {
        &self.cluster.nodes[0].net
    }

    pub fn pod(&self) -> &Net {
        &self.cluster.nodes[0].pod
    }

    fn serve_api(&self) {
        self.cluster.underlay.inside(|| {
            runtime().block_on(async {
                let server = Server::builder().address(API.0.into()).build().unwrap();
                server.serve(TcpListener::bind(BEHIND).unwrap()).unwrap();
                let temporary = self.folder.join("kubeconfig.new");
                fs::write(&temporary, server.kubeconfig(API.into())).unwrap();
                fs::rename(temporary, self.folder.join("kubeconfig")).unwrap();
                self.stop.notified().await;
            });
        });
    }

    /// Waits until `done`.
    pub fn eventually(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does something with the API, from the underlay and past the relay.
    fn ask<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce(Client) -> F + Send) -> T {
        let config = self.folder.join("kubeconfig");
        let server = format!("https://{}:{}", BEHIND.0, BEHIND.1);
        self.cluster.underlay.inside(|| {
            runtime().block_on(async { f(Client::connect(Some(&config), Some(&server)).await.unwrap()).await })
        })
    }

    pub fn create(&self, object: Value) {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        self.ask(|client| async move { api(&client, &object).create(&Default::default(), &object).await.unwrap() });
    }

    pub fn patch_status(&self, kind: &str, name: &str, patch: Value) {
        let object = DynamicObject::new(name, &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind)));
        self.ask(|client| async move {
            let api = api(&client, &object);
            api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
        });
    }

    /// Merges into an object, with the type and name that the patch itself has.
    pub fn patch(&self, patch: Value) {
        let object: DynamicObject = serde_json::from_value(patch.clone()).unwrap();
        self.ask(|client| async move {
            let name = object.metadata.name.clone().unwrap();
            api(&client, &object).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
        });
    }

    /// Every Event: about what, the reason and the message.
    pub fn events(&self) -> Vec<(String, String, String)> {
        let events = self.ask(|client| async move {
            Api::<Event>::all(client.kube()).list(&ListParams::default()).await.unwrap().items
        });
        let text = |event: Event| {
            let about = event.regarding.unwrap_or_default();
            let about = format!("{} {}", about.kind.unwrap_or_default(), about.name.unwrap_or_default());
            (about, event.reason.unwrap_or_default(), event.note.unwrap_or_default())
        };
        events.into_iter().map(text).collect()
    }

    /// A Service at `address`, port 80, whose endpoints listen at 8080 on `endpoints`.
    pub fn create_service(&self, name: &str, address: &str, endpoints: &[&str]) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
            "spec": { "clusterIP": address, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }));
        let endpoints: Vec<_> =
            endpoints.iter().map(|address| json!({ "addresses": [address], "nodeName": "node1" })).collect();
        self.create(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints,
        }));
    }

    /// Answers connections to port 8080 of the pod with `text`, until the process ends.
    pub fn answer(&self, text: &'static str) {
        let listener = self.pod().inside(|| TcpListener::bind("0.0.0.0:8080")).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    // A line is answered; a connection may have many.
                    let mut byte = [0];
                    while stream.read(&mut byte).is_ok_and(|count| count > 0) {
                        if byte[0] == b'\n' && stream.write_all(text.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    /// What a connection from `from` to `to` is answered.
    pub fn ask_service(&self, from: &Net, to: SocketAddr) -> std::io::Result<String> {
        from.inside(|| connect(to))
    }

    pub fn serves(&self, to: &str) -> bool {
        self.ask_service(self.node(), to.parse().unwrap()).is_ok()
    }

    pub fn write_config(&self, body: &str) -> PathBuf {
        let path = self.folder.join("config.conf");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             clientConnection: {{kubeconfig: {}}}\nclusterCIDR: 10.244.0.0/16\n{body}\n",
            self.folder.join("kubeconfig").display()
        );
        fs::write(self.folder.join("config.new"), text).unwrap();
        fs::rename(self.folder.join("config.new"), &path).unwrap();
        path
    }

    /// Runs kube-proxy to its end.
    pub fn run(&self, flags: &[&str]) -> anyhow::Result<()> {
        let Cli { args } = Cli::parse_from(["kube-proxy"].iter().chain(flags));
        self.node().inside(|| runtime().block_on(kube_proxy::run(args)))
    }

    /// Runs kube-proxy while `test` goes on; then it ends as by a signal.
    pub fn with_proxy<T>(&self, config: &Path, test: impl FnOnce() -> T) -> T {
        let stop = Notify::new();
        let config = format!("--config={}", config.display());
        let Cli { args } = Cli::parse_from(["kube-proxy", &config, "--hostname-override=node1"]);
        thread::scope(|scope| {
            let _stop = StopProxy(&stop);
            scope.spawn(|| {
                self.node().inside(|| {
                    runtime().block_on(async {
                        tokio::select! {
                            ended = kube_proxy::run(args) => panic!("kube-proxy ended: {ended:?}"),
                            () = stop.notified() => {}
                        }
                    });
                });
            });
            test()
        })
    }

    /// What the proxy answers at `address` on the node: status and body.
    pub fn page(&self, address: SocketAddr, path: &str) -> Option<(u16, String)> {
        self.node().inside(|| {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let (head, body) = text.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        })
    }

    pub fn status(&self, path: &str) -> Option<u16> {
        self.page(([127, 0, 0, 1], 10256).into(), path).map(|(status, _)| status)
    }

    pub fn mode(&self) -> Option<String> {
        self.page(([127, 0, 0, 1], 10249).into(), "/proxyMode").map(|(_, body)| body)
    }

    /// The value of a metric, by the whole name with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.page(([127, 0, 0, 1], 10249).into(), "/metrics").map(|(_, body)| body).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
    }
}

struct StopProxy<'a>(&'a Notify);

impl Drop for StopProxy<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Connects and has one line answered.
pub fn connect(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    exchange(&mut stream)
}

/// One line, and what comes back.
pub fn exchange(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"\n")?;
    let mut buffer = [0; 64];
    let count = stream.read(&mut buffer)?;
    if count == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

fn api(client: &Client, object: &DynamicObject) -> Api<DynamicObject> {
    let types = object.types.clone().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).unwrap());
    match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.kube(), namespace, &resource),
        None => Api::all_with(client.kube(), &resource),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The node's own address.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 25, 2, 1));
