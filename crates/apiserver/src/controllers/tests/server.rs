//! The controllers against the real API server, with the real `kubectl` as the user and a kubelet that only pretends.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::PathBuf,
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use http::Method;
use podwire_k8s::k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use podwire_k8s::{Client, Event, kube, watch};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, task::JoinSet};

use super::fixtures::{daemon_set, deployment, id, node, service};
use crate::{
    Server,
    controllers::{
        Config,
        apply::request,
        pods, run,
        world::{Kind, Object},
    },
};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with the controllers, pretended nodes, and a kubeconfig on disk.
struct Lab {
    client: kube::Client,
    kubeconfig: PathBuf,
    // Dropping these ends everything.
    _server: Server,
    _tasks: JoinSet<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

impl Lab {
    async fn start(nodes: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let server = Server::builder().build().unwrap();
        let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let name = format!("podwire-controllers-{}-{number}.kubeconfig", std::process::id());
        let kubeconfig = std::env::temp_dir().join(name);
        std::fs::write(&kubeconfig, server.kubeconfig(address)).unwrap();
        let client = Client::from_kubeconfig(Some(&kubeconfig)).await.unwrap();
        let mut tasks = JoinSet::new();
        let mut config = Config::new(["10.244.0.0/16".parse().unwrap()]);
        config.root_ca = Some(server.ca_pem().to_owned());
        tasks.spawn(run(client.clone(), config));
        let client = client.kube();
        tasks.spawn(kubelet(client.clone()));
        let lab = Self { client, kubeconfig, _server: server, _tasks: tasks };
        for number in 1..=nodes {
            lab.create(Kind::Node, node(&format!("node{number}"), "True")).await;
        }
        lab
    }

    async fn create(&self, kind: Kind, mut body: Value) -> Value {
        body["apiVersion"] = json!(kind.api_version());
        body["kind"] = json!(kind.name());
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let status = body["status"].clone();
        let path = kind.collection("default");
        request(&self.client, Method::POST, &path, Some(&body)).await.unwrap();
        if status.is_null() {
            return Value::Null;
        }
        let patch = json!({ "status": status });
        request(&self.client, Method::PATCH, &format!("{path}/{name}/status"), Some(&patch)).await.unwrap()
    }

    async fn list(&self, kind: Kind) -> Vec<Value> {
        let list = request(&self.client, Method::GET, &kind.collection("default"), None).await.unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until the objects of a kind are as wanted.
    async fn until(&self, kind: Kind, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let objects = self.list(kind).await;
            if wanted(&objects) {
                return objects;
            }
            assert!(start.elapsed() < PATIENCE, "still: {objects:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs `kubectl` with `stdin`; its output if it succeeds.
    async fn kubectl(&self, args: &[&str], stdin: Option<&Value>) -> String {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir=/dev/null").args(args).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let text = stdin.map(Value::to_string).unwrap_or_default();
        input.write_all(text.as_bytes()).await.unwrap();
        drop(input);
        let Output { status, stdout, stderr } =
            tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(status.success(), "kubectl {args:?}: {stdout}{stderr}");
        stdout
    }

    async fn apply(&self, kind: Kind, mut body: Value) {
        body["apiVersion"] = json!(kind.api_version());
        body["kind"] = json!(kind.name());
        self.kubectl(&["apply", "-f", "-"], Some(&body)).await;
    }
}

/// `kubectl` is there; otherwise says so, and fails where tests must not be left out.
fn have_kubectl() -> bool {
    let found = std::process::Command::new("kubectl").arg("version").arg("--client").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "kubectl is needed");
    if !found {
        eprintln!("left out: there is no kubectl");
    }
    found
}

/// Makes every assigned pod run and ready at once, and lets every deleted one go a little later.
async fn kubelet(client: kube::Client) {
    let mut next = 1;
    let mut events = std::pin::pin!(watch(kube::Api::<Pod>::all(client.clone()), Default::default()));
    let mut ending = JoinSet::new();
    while let Some(event) = events.next().await {
        let changed = match event {
            Event::Snapshot(pods) => pods,
            Event::Applied(pod) => vec![pod],
            Event::Deleted(_) => Vec::new(),
        };
        for pod in changed.into_iter().filter(|pod| pods::node(pod).is_some()) {
            let path = Object::from(pod.clone()).id().path();
            let client = client.clone();
            if pods::terminating(&pod) {
                ending.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let now = json!({"gracePeriodSeconds": 0});
                    let _ = request(&client, Method::DELETE, &path, Some(&now)).await;
                });
            } else if pods::phase(&pod) == "Pending" {
                let ip = format!("10.244.{}.{}", next / 250, next % 250 + 1);
                next += 1;
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now()}]);
                let status = json!({"status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready,
                }});
                let _ = request(&client, Method::PATCH, &format!("{path}/status"), Some(&status)).await;
            }
        }
    }
}

fn ready_endpoints(slices: &[Value]) -> BTreeSet<String> {
    let of_web = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    let endpoints = of_web.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    ready.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_rolls_a_deployment_out_scales_updates_and_deletes_it() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start(3).await;
    lab.apply(Kind::Service, service("web")).await;
    lab.apply(Kind::Deployment, deployment("web", 3, "myapp:v2")).await;
    let out = lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=15s"], None).await;
    assert!(out.contains("successfully rolled out"), "{out}");
    lab.until(Kind::EndpointSlice, |slices| ready_endpoints(slices).len() == 3).await;

    lab.kubectl(&["scale", "deployment/web", "--replicas=6"], None).await;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=15s"], None).await;
    let old = ready_endpoints(&lab.until(Kind::EndpointSlice, |slices| ready_endpoints(slices).len() == 6).await);

    lab.kubectl(&["set", "image", "deployment/web", "web=myapp:v1"], None).await;
    let rollout = lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=15s"], None);
    let mut rollout = std::pin::pin!(rollout);
    loop {
        tokio::select! {
            out = &mut rollout => {
                assert!(out.contains("successfully rolled out"), "{out}");
                break;
            }
            slices = lab.list(Kind::EndpointSlice) => {
                let ready = ready_endpoints(&slices).len();
                assert!(ready >= 5, "25% of 6 may be missing, rounded down: {ready} are ready");
            }
        }
    }
    let new = ready_endpoints(&lab.until(Kind::EndpointSlice, |slices| ready_endpoints(slices).len() == 6).await);
    assert!(old.is_disjoint(&new), "the old pods' addresses are gone");

    for verb in ["undo", "restart"] {
        lab.kubectl(&["rollout", verb, "deployment/web"], None).await;
        lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=15s"], None).await;
    }
    lab.kubectl(&["wait", "--for=condition=Available", "deployment/web", "--timeout=15s"], None).await;
    let sets = lab.list(Kind::ReplicaSet).await;
    assert_eq!(sets.len(), 3, "v2 again is v2's ReplicaSet, the restart makes a third");

    let described = lab.kubectl(&["describe", "deployment/web"], None).await;
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let events = lab.kubectl(&["get", "events"], None).await;
    for reason in ["SuccessfulCreate", "SuccessfulDelete", "Scheduled", "ScalingReplicaSet"] {
        assert!(events.contains(reason), "{reason} is not in\n{events}");
    }
    let history = lab.kubectl(&["rollout", "history", "deployment/web"], None).await;
    assert!(history.contains('2'), "{history}");

    lab.kubectl(&["delete", "deployment/web", "service/web", "--timeout=15s"], None).await;
    lab.until(Kind::ReplicaSet, <[_]>::is_empty).await;
    lab.until(Kind::Pod, <[_]>::is_empty).await;
    lab.until(Kind::EndpointSlice, |slices| slices.iter().all(|slice| slice["metadata"]["name"] == "kubernetes")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_deployment_spread_and_nodes_have_blocks() {
    let lab = Lab::start(3).await;
    lab.create(Kind::Deployment, deployment("web", 6, "myapp:v2")).await;
    let ready = |pods: &[Value]| pods.len() == 6 && pods.iter().all(|pod| pod["status"]["phase"] == "Running");
    let pods = lab.until(Kind::Pod, ready).await;
    for number in 1..=3 {
        let name = format!("node{number}");
        assert_eq!(pods.iter().filter(|pod| pod["spec"]["nodeName"] == name.as_str()).count(), 2, "{name}");
    }
    let nodes = lab.until(Kind::Node, |nodes| nodes.iter().all(|node| node["spec"]["podCIDR"].is_string())).await;
    let blocks: Vec<&str> = nodes.iter().map(|node| node["spec"]["podCIDR"].as_str().unwrap()).collect();
    assert_eq!(blocks, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_rolls_out_and_a_namespace_goes_with_all_it_has() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start(3).await;
    lab.apply(Kind::Namespace, json!({"metadata": {"name": "team"}})).await;
    for (kind, mut object) in
        [(Kind::DaemonSet, daemon_set("agent", "myapp:v1")), (Kind::Deployment, deployment("web", 2, "myapp:v1"))]
    {
        object["metadata"]["namespace"] = json!("team");
        lab.apply(kind, object).await;
    }
    lab.kubectl(&["-n", "team", "rollout", "status", "daemonset/agent", "--timeout=15s"], None).await;
    lab.kubectl(&["-n", "team", "rollout", "status", "deployment/web", "--timeout=15s"], None).await;
    lab.kubectl(&["-n", "team", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"], None).await;
    lab.kubectl(&["-n", "team", "set", "image", "daemonset/agent", "web=myapp:v2"], None).await;
    lab.kubectl(&["-n", "team", "rollout", "status", "daemonset/agent", "--timeout=15s"], None).await;
    lab.kubectl(&["delete", "namespace", "team", "--timeout=15s"], None).await;
    let left = lab.kubectl(&["get", "all", "-A", "-o", "name"], None).await;
    assert!(!left.contains("agent") && !left.contains("web"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cascades_as_kubectl_asks() {
    if !have_kubectl() {
        return;
    }
    let lab = Lab::start(1).await;
    for name in ["first", "second"] {
        lab.apply(Kind::Deployment, deployment(name, 1, "myapp:v1")).await;
        lab.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=15s"], None).await;
    }
    lab.kubectl(&["delete", "deployment/first", "--cascade=foreground", "--timeout=15s"], None).await;
    assert_eq!(lab.list(Kind::Pod).await.len(), 1, "its pods were gone before it was");
    lab.kubectl(&["delete", "deployment/second", "--cascade=orphan", "--timeout=15s"], None).await;
    let sets =
        lab.until(Kind::ReplicaSet, |sets| sets.iter().all(|s| s["metadata"]["ownerReferences"].is_null())).await;
    assert_eq!((sets.len(), lab.list(Kind::Pod).await.len()), (1, 1));
    let path = id(Kind::Deployment, "second").path();
    assert!(request(&lab.client, Method::GET, &path, None).await.is_err(), "the owner is gone");
}
