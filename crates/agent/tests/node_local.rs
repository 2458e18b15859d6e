//! `podwire dns -localip` on a node with a pod and a Service proxy's rules: who answers, and what is tracked.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../overlay/tests/common/mod.rs"]
mod common;

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Parser;
use common::{Cluster, Net, able, command};
use podwire_agent::{dns, flags};
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::core::v1 as core,
    kube::{
        Api,
        api::{Patch, PatchParams, PostParams},
    },
};
use podwire_kernel::ns::Namespace;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// What [`server_process`] is told to run.
const ARGUMENTS: &str = "PODWIRE_TEST_DNS";
/// The Service of the API, as this node's server knows it.
const NAME: &str = "kubernetes.default.svc.cluster.local";
const HERE: &str = "10.96.0.1";
/// What the cluster's other server, to which the proxy leads, says about every name.
const ELSEWHERE: &str = "192.0.2.7";
const LOCAL: &str = "169.254.20.10,10.96.0.10,fd00:10:96::a";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: dns::Args,
}

/// No test of its own: the process that the other one starts, stops and kills.
#[test]
fn server_process() {
    let Ok(line) = env::var(ARGUMENTS) else { return };
    let line = flags::with_double_dashes(line.split(' ').map(Into::into));
    let Cli { args } = Cli::parse_from(&line[1..]);
    runtime().block_on(dns::run(args)).unwrap();
}

#[test]
fn a_node_answers_its_pods_past_connection_tracking_and_cleans_up() {
    if !able() {
        return;
    }
    let site = Site::new();
    let (pod, node) = (site.pod(), site.node());
    assert_eq!(dig(pod, "10.96.0.10", NAME), ELSEWHERE, "the proxy leads to the other server");
    assert!(site.tracked().contains("dport=53"), "and that is tracked");

    let server = site.start(LOCAL);
    eventually("this node answers", || dig(pod, "10.96.0.10", NAME) == HERE);
    site.forget_flows();
    for from in [pod, node] {
        for to in LOCAL.split(',') {
            for transport in ["+notcp", "+tcp"] {
                assert_eq!(dig(from, to, &format!("{transport} {NAME}")), HERE, "{to} {transport}");
            }
        }
    }
    assert_eq!(site.tracked(), "", "no query is tracked");
    let found = dig(pod, "169.254.20.10", "www.example.org.default.svc.cluster.local");
    assert_eq!(found, format!("www.example.org. {ELSEWHERE}"), "the search list is gone through for the pod");

    // Somebody else removes things.
    for line in ["nft delete table inet podwire-dns", &site.removes_address("10.96.0.10"), "nft flush ruleset"] {
        node.run(line);
        eventually("it is repaired", || site.has_rules() && site.holds("10.96.0.10"));
        assert_eq!(dig(pod, "10.96.0.10", NAME), HERE, "after {line}");
    }
    site.proxy();

    // Killed, it leaves all behind; the next one takes over what it wants and removes the rest.
    server.kill();
    assert!(site.has_rules() && site.holds("10.96.0.10"));
    let server = site.start("169.254.20.10");
    eventually("this node answers", || dig(pod, "169.254.20.10", NAME) == HERE);
    eventually("what is no longer wanted is gone", || !site.holds("10.96.0.10") && !site.holds("fd00:10:96::a"));
    assert_eq!(dig(pod, "10.96.0.10", NAME), ELSEWHERE, "the proxy's again");

    // Ended, it leaves nothing.
    server.end();
    assert!(!site.has_rules() && !site.holds("169.254.20.10"), "{}", node.run("ip addr"));
    assert_eq!(node.run("ip -o link").matches("nodelocaldns").count(), 0);

    // Told to leave everything, it does; and whatever was left is removed when asked for.
    let server = site.start(&format!("{LOCAL} -skipteardown"));
    eventually("this node answers", || dig(pod, "10.96.0.10", NAME) == HERE);
    server.end();
    assert!(site.has_rules() && site.holds("10.96.0.10"));
    site.spawn("-cleanup").succeeds();
    assert!(!site.has_rules() && LOCAL.split(',').all(|address| !site.holds(address)));
    site.spawn("-cleanup").succeeds();
}

/// A node with a pod, an API server on it, and the cluster's other DNS server outside.
struct Site {
    cluster: Cluster,
    folder: PathBuf,
    stop: Arc<Notify>,
    api: Option<JoinHandle<()>>,
}

impl Site {
    fn new() -> Self {
        let folder = env::temp_dir().join(format!("podwire-node-local-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let stop = Arc::new(Notify::new());
        let mut site = Self { cluster: Cluster::new(1), folder, stop, api: None };
        site.api = Some(site.serve_api());
        eventually("the API is up", || site.folder.join("kubeconfig").exists());
        let corefile = format!(
            ".:53 {{\n errors\n autopath @kubernetes\n kubernetes cluster.local {{\n  kubeconfig {}\n }}\n \
             forward . 172.25.2.250\n}}\n",
            site.folder.join("kubeconfig").display()
        );
        fs::write(site.folder.join("Corefile"), corefile).unwrap();
        let elsewhere = site.cluster.client.inside(|| UdpSocket::bind("172.25.2.250:53")).unwrap();
        thread::spawn(move || answer_all(&elsewhere));
        site.proxy();
        site
    }

    fn node(&self) -> &Net {
        &self.cluster.nodes[0].net
    }

    fn pod(&self) -> &Net {
        &self.cluster.nodes[0].pod
    }

    /// The API with a Pod of this node, until the site ends.
    fn serve_api(&self) -> JoinHandle<()> {
        let (folder, stop) = (self.folder.clone(), self.stop.clone());
        let net = Net(Namespace::from(self.node().0.as_fd().try_clone_to_owned().unwrap()));
        let serve = async move || {
            let server = Server::builder().build().unwrap();
            let address: SocketAddr = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
            let temporary = folder.join("kubeconfig.new");
            fs::write(&temporary, server.kubeconfig(address)).unwrap();
            let pods: Api<core::Pod> =
                Api::namespaced(Client::from_kubeconfig(Some(&temporary)).await.unwrap().kube(), "default");
            let pod = json!({ "metadata": { "name": "web" }, "spec": { "nodeName": "node1", "containers": [{ "name": "web", "image": "x" }] } });
            pods.create(&PostParams::default(), &object(pod)).await.unwrap();
            let ip = "10.244.0.2";
            let status = json!({ "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] } });
            pods.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
            fs::rename(temporary, folder.join("kubeconfig")).unwrap();
            stop.notified().await;
        };

        thread::spawn(move || net.inside(|| runtime().block_on(serve())))
    }

    /// What a Service proxy makes of the cluster DNS Service.
    fn proxy(&self) {
        let chain = |name: &str, rest: &str| format!("chain {name} {{ type nat hook {name} priority {rest} }}\n");
        let dnat = "-100; ip daddr 10.96.0.10 meta l4proto { tcp, udp } th dport 53 dnat to 172.25.2.250;";
        let masquerade = chain("postrouting", "100; ip daddr 172.25.2.250 masquerade;");
        let table =
            format!("table ip proxy {{\n{}{}{masquerade}}}\n", chain("prerouting", dnat), chain("output", dnat));
        fs::write(self.folder.join("proxy.nft"), table).unwrap();
        self.node().run(&format!("nft -f {}", self.folder.join("proxy.nft").display()));
    }

    fn start(&self, localip: &str) -> Process {
        self.spawn(&format!("-localip {localip} -hostname-override node1 -conf {}/Corefile", self.folder.display()))
    }

    fn spawn(&self, arguments: &str) -> Process {
        let mut server = Command::new(env::current_exe().unwrap());
        server.args(["--exact", "server_process", "--nocapture"]).stdout(Stdio::null());
        server.env(ARGUMENTS, format!("podwire dns {arguments}"));
        Process(self.node().inside(|| server.spawn().unwrap()))
    }

    /// The tracked flows of DNS.
    fn tracked(&self) -> String {
        self.node().run("conntrack -L").lines().filter(|line| line.contains("dport=53 ")).collect()
    }

    fn forget_flows(&self) {
        self.node().run("conntrack -F");
    }

    fn has_rules(&self) -> bool {
        self.node().run("nft list ruleset").contains("table inet podwire-dns")
    }

    fn holds(&self, address: &str) -> bool {
        self.node().run("ip -o addr").contains(&format!(" {address}/"))
    }

    /// The command that removes one of the addresses.
    fn removes_address(&self, address: &str) -> String {
        let listed = self.node().run("ip -o addr");
        let line = listed.lines().find(|line| line.contains(&format!(" {address}/32"))).unwrap();
        format!("ip addr del {address}/32 dev {}", line.split_whitespace().nth(1).unwrap())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.notify_one();
        let ended = self.api.take().map(JoinHandle::join);
        let _ = fs::remove_dir_all(&self.folder);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the API server failed");
    }
}

/// A server, killed with its owner.
struct Process(Child);

impl Process {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGTERM.
    fn end(self) {
        assert!(command(&format!("kill {}", self.0.id())).status().unwrap().success());
        self.succeeds();
    }

    fn succeeds(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `server` says about `question`, with the names of aliases.
fn dig(from: &Net, server: &str, question: &str) -> String {
    let line = format!("dig +short +tries=1 +time=1 @{server} {question}");
    let output = from.inside(|| command(&line).output().unwrap());
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Answers every question with 192.0.2.7, until the process ends.
fn answer_all(socket: &UdpSocket) {
    let mut message = [0; 512];
    while let Ok((length, asker)) = socket.recv_from(&mut message) {
        let name = message[12..length].iter().position(|byte| *byte == 0).unwrap();
        let mut answer = message[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend(&message[12..12 + name + 5]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        let _ = socket.send_to(&answer, asker);
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
