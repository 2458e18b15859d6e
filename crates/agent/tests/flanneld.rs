//! flanneld on two nodes against the embedded API server, over a real underlay: from Node objects to pods that talk.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../overlay/tests/common/mod.rs"]
mod common;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use common::{Cluster, NET_CONF, Node, able};
use podwire_agent::flanneld;
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1 as core,
    kube::{
        Api,
        api::{Patch, PatchParams},
    },
};
use serde_json::json;
use tokio::sync::Notify;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: flanneld::Args,
}

/// Files of one test, deleted at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podwire-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("net-conf.json"), NET_CONF).unwrap();
        Self(path)
    }

    fn subnet_env(&self, node: &Node) -> PathBuf {
        self.0.join(format!("node{}/subnet.env", node.n))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until `done`; fails after five seconds.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within five seconds: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs flanneld in the node's namespace until `stop`.
fn run(node: &Node, folder: &Path, subnet_env: &Path, stop: &Notify) {
    let flags = [
        "--ip-masq",
        "--kube-subnet-mgr",
        &format!("--node-name=node{}", node.n),
        &format!("--kubeconfig-file={}", folder.join("kubeconfig").display()),
        &format!("--net-config-path={}", folder.join("net-conf.json").display()),
        &format!("--subnet-file={}", subnet_env.display()),
    ];
    let Cli { args } = Cli::parse_from(["flanneld"].into_iter().chain(flags));
    node.net.inside(|| {
        runtime().block_on(async {
            tokio::select! {
                ended = flanneld::run(args) => panic!("flanneld ended: {ended:?}"),
                () = stop.notified() => {}
            }
        });
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
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

/// Does something with the nodes' API, from the underlay.
fn api<T: Send, F: Future<Output = T>>(
    cluster: &Cluster,
    folder: &Path,
    f: impl FnOnce(Api<core::Node>) -> F + Send,
) -> T {
    cluster.underlay.inside(|| {
        runtime().block_on(async {
            let client = Client::from_kubeconfig(Some(&folder.join("kubeconfig"))).await.unwrap();
            f(Api::all(client.kube())).await
        })
    })
}

fn create(cluster: &Cluster, folder: &Path, name: &str, pod_cidr: Option<&str>) {
    let cidrs: Vec<_> = pod_cidr.into_iter().collect();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": pod_cidr, "podCIDRs": cidrs },
    });
    let node: core::Node = serde_json::from_value(node).unwrap();
    api(cluster, folder, |nodes| async move { nodes.create(&Default::default(), &node).await.unwrap() });
}

#[test]
fn two_nodes_join_lose_their_device_restart_and_part() {
    if !able() {
        return;
    }
    let cluster = Cluster::new(2);
    let folder = Folder::new("flanneld");
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let (first_env, second_env) = (folder.subnet_env(first), folder.subnet_env(second));
    let stops: [Notify; 4] = Default::default();
    let [stop_api, stop_first, stop_second, stop_again] = &stops;
    let (cluster, folder) = (&cluster, folder.0.as_path());
    thread::scope(|scope| {
        let _stop_all = StopAll(&stops);
        scope.spawn(|| serve(cluster, folder, stop_api));
        eventually("the API server is up", || folder.join("kubeconfig").exists());
        create(cluster, folder, "node1", Some("10.244.0.0/24"));
        create(cluster, folder, "node2", None);
        let flanneld = scope.spawn(|| run(first, folder, &first_env, stop_first));
        scope.spawn(|| run(second, folder, &second_env, stop_second));
        eventually("node1 is ready", || first_env.exists());
        let expected =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(fs::read_to_string(&first_env).unwrap(), expected);
        assert!(!second_env.exists(), "node2 has no pod range yet");

        api(cluster, folder, |nodes| async move {
            let patch = json!({ "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] } });
            nodes.patch("node2", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        });
        eventually("node2 is ready", || second_env.exists());
        let routed = || first.net.run("ip route").contains("10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink");
        eventually("node1 knows node2", routed);
        assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());
        assert_eq!(first.pod.source_seen_by(&cluster.client, [172, 25, 2, 250].into()), first.address());
        published(&api(cluster, folder, |nodes| async move { nodes.get("node1").await.unwrap() }), first);

        first.net.run("ip link del flannel.1");
        eventually("the device and its routes are back", routed);
        first.net.run("ip route del 10.244.1.0/24");
        eventually("the route is back", routed);
        assert_eq!(first.pod.source_seen_by(&second.pod, second.pod_address()), first.pod_address());

        let device = || first.net.run("ip -o link show flannel.1");
        let before = device();
        stop_first.notify_one();
        flanneld.join().unwrap();
        assert!(routed(), "the data path outlives the daemon");
        fs::remove_file(&first_env).unwrap();
        scope.spawn(|| run(first, folder, &first_env, stop_again));
        eventually("node1 is ready again", || first_env.exists());
        assert_eq!(device(), before, "the same device, the same MAC");

        api(cluster, folder, |nodes| async move { nodes.delete("node2", &Default::default()).await.unwrap() });
        eventually("node1 forgets node2", || !first.net.run("ip route").contains("10.244.1.0/24"));
    });
}

/// The annotations and the condition, as flannel's.
fn published(object: &core::Node, node: &Node) {
    let annotation = |name: &str| {
        let key = format!("flannel.alpha.coreos.com/{name}");
        object.metadata.annotations.as_ref().and_then(|all| all.get(&key)).cloned().unwrap_or_default()
    };
    let link = node.net.run("ip -o link show flannel.1");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(annotation("backend-data"), format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#));
    assert_eq!(annotation("backend-type"), "vxlan");
    assert_eq!(annotation("kube-subnet-manager"), "true");
    assert_eq!(annotation("public-ip"), node.address().to_string());
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref()).unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("FlannelIsUp")));
}

/// Stops every thread, also when an assertion fails: the scope waits for them.
struct StopAll<'a>(&'a [Notify]);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|stop| stop.notify_one());
    }
}
