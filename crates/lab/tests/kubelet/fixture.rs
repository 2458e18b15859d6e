//! One node and its API server.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use podwire_apiserver::{
    Server,
    remote::{ExecOutput, ExecRequest, ExecSession, LogRequest, NodeProxy},
};
use podwire_kernel::{
    ns::{self, Kind, Namespace},
    process::{Signal, kill},
};
use podwire_lab::{
    kubelet::remote::{Nodes, socket_path},
    node::{Executables, Kubelet, MachineSpec, NodeConfig},
};
use serde_json::{Value, json};

/// The image of the web app.
pub const MYAPP: &str = "ikubernetes/myapp:v2";
/// The node's address; nothing else is on its network.
pub const NODE_ADDRESS: &str = "172.25.2.1";

const NODE: &str = "node1";
const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "test", "plugins": [{
    "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}}]}"#;

/// A node under test; dropping it ends everything.
pub struct Fixture {
    directory: PathBuf,
    net: Namespace,
    node: Child,
    server: Server,
    client: kube::Client,
    nodes: Nodes,
}

/// Asks again until there is an answer; fails after ten seconds.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    for _ in 0..2000 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited ten seconds in vain until {what}");
}

/// The status of a pod's only container.
pub fn container(pod: &Pod) -> Option<ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first().cloned()
}

/// Whether the pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

impl Fixture {
    /// Brings a node up; `None`, with the reason printed, on a machine without the means.
    pub async fn start(name: &str) -> Option<Self> {
        if let Err(error) = Namespace::new_net().and_then(|net| net.run(|| ns::unshare(&[Kind::Mount]))) {
            assert!(std::env::var_os("CI").is_none(), "namespaces are needed: {error}");
            eprintln!("skipped: {error}");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("podwire-kubelet-{name}-{}", std::process::id()));
        fs::create_dir_all(directory.join("root")).unwrap();
        let net = Namespace::new_net().unwrap();
        let address = format!("{NODE_ADDRESS}/24");
        for command in [
            ["link", "set", "lo", "up"].as_slice(),
            // A veth pair with nothing at its other end stands in for the uplink.
            &["link", "add", "eth0", "type", "veth", "peer", "name", "outside"],
            &["addr", "add", &address, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["link", "set", "outside", "up"],
        ] {
            let done = inside(&net, || Command::new("ip").args(command).status().unwrap());
            assert!(done.success(), "ip {command:?}");
        }
        let inner = inside(&net, || TcpListener::bind("127.0.0.1:0").unwrap());
        let inner_address = inner.local_addr().unwrap();
        let nodes = Nodes::new(&directory);
        let server = Server::builder()
            .address("127.0.0.1".parse().unwrap())
            .advertise(inner_address)
            .nodes(Arc::new(nodes.clone()))
            .build()
            .unwrap();
        server.serve(inner).unwrap();
        let outer = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let kubeconfig = directory.join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig(outer)).unwrap();
        let client = podwire_k8s::Client::from_kubeconfig(Some(&kubeconfig)).await.unwrap().kube();
        let node = start_node(&directory, &net, server.kubeconfig(inner_address), inner_address.port());
        let fixture = Self { directory, net, node, server, client, nodes };
        fixture.network_comes_up().await;
        Some(fixture)
    }

    async fn network_comes_up(&self) {
        let api: Api<Node> = Api::all(self.client.clone());
        let ready = || async {
            let conditions = api.get_opt(NODE).await.unwrap()?.status?.conditions?;
            conditions.into_iter().find(|c| c.type_ == "Ready")
        };
        let condition = until("the node registers", ready).await;
        assert_eq!(condition.reason.as_deref(), Some("KubeletNotReady"));
        assert!(condition.message.unwrap().ends_with("cni plugin not initialized"));
        let conf_dir = PathBuf::from(format!("/proc/{}/root/etc/cni/net.d", self.node.id()));
        fs::create_dir_all(&conf_dir).unwrap();
        fs::write(conf_dir.join("10-test.tmp"), CONFLIST).unwrap();
        fs::rename(conf_dir.join("10-test.tmp"), conf_dir.join("10-test.conflist")).unwrap();
        until("the node is ready", || async { ready().await.filter(|c| c.status == "True") }).await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod on the node.
    pub async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// The pod as it is now.
    pub async fn pod(&self, name: &str) -> Option<Pod> {
        self.pods().get_opt(name).await.unwrap()
    }

    /// Waits until the pod is ready.
    pub async fn ready(&self, pod: &Pod) -> Pod {
        let name = pod.metadata.name.as_deref().unwrap();
        until("the pod is ready", || async { self.pod(name).await.filter(is_ready) }).await
    }

    /// Asks for the pod's deletion.
    pub async fn delete(&self, name: &str, grace: Option<u32>) {
        let params = DeleteParams { grace_period_seconds: grace, ..Default::default() };
        self.pods().delete(name, &params).await.unwrap();
    }

    /// The reasons of the events about a pod.
    pub async fn events(&self, pod: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = api.list(&ListParams::default()).await.unwrap();
        let about = events.items.into_iter().filter(|e| e.involved_object.name.as_deref() == Some(pod));
        about.filter_map(|e| e.reason).collect()
    }

    /// What a node answers to an HTTP request, head and body.
    pub async fn get(&self, address: &str, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        inside(&self.net, || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// A request for all of a container's log.
    pub fn log_of(&self, pod: &str, container: &str) -> LogRequest {
        let (namespace, pod, container) = ("default".into(), pod.into(), container.into());
        LogRequest { namespace, pod, container, ..Default::default() }
    }

    /// The log asked for.
    pub async fn logs(&self, request: LogRequest) -> String {
        let mut stream = self.nodes.logs(NODE, request).await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = stream.next().await {
            text.extend_from_slice(&bytes.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    /// A request for a command with all streams.
    pub fn exec_of(&self, pod: &str, container: &str, command: &[&str]) -> ExecRequest {
        ExecRequest {
            namespace: "default".into(),
            pod: pod.into(),
            container: container.into(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        }
    }

    /// Starts a command.
    pub async fn session(&self, request: ExecRequest) -> ExecSession {
        self.nodes.exec(NODE, request).await.unwrap()
    }

    /// Runs a command to its end: output, errors, exit code.
    pub async fn exec(&self, pod: &str, container: &str, command: &[&str], stdin: &[u8]) -> (String, String, i32) {
        let session = self.session(self.exec_of(pod, container, command)).await;
        if !stdin.is_empty() {
            session.stdin.send(stdin.to_vec().into()).await.unwrap();
        }
        drop(session.stdin);
        let (mut stdout, mut stderr, mut output) = (String::new(), String::new(), session.output);
        while let Some(piece) = output.recv().await {
            match piece {
                ExecOutput::Stdout(bytes) => stdout.push_str(&String::from_utf8_lossy(&bytes)),
                ExecOutput::Stderr(bytes) => stderr.push_str(&String::from_utf8_lossy(&bytes)),
                ExecOutput::Exit(code) => return (stdout, stderr, code),
                ExecOutput::Error(error) => panic!("{error}"),
            }
        }
        panic!("the node hung up");
    }

    /// Creates or changes a ConfigMap with one key.
    pub async fn put_config_map(&self, name: &str, key: &str, value: &str) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), "default");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}, "data": {key: value}})).unwrap();
        match api.replace(name, &PostParams::default(), &map).await {
            Err(kube::Error::Api(error)) if error.code == 404 => {
                api.create(&PostParams::default(), &map).await.unwrap();
            }
            replaced => drop(replaced.unwrap()),
        }
    }

    /// The first processes of the node's containers.
    pub fn processes(&self) -> Vec<u32> {
        let pid = self.node.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|child| child.parse().unwrap()).collect()
    }

    /// Takes the node down as the lab does.
    pub fn stop_node(&mut self) -> ExitStatus {
        kill(self.node.id(), Signal::TERM).unwrap();
        self.node.wait().unwrap()
    }

    /// What pods could leave on the node: processes, mounts, links, files.
    pub fn leftovers(&self) -> (usize, usize, Vec<String>) {
        let node = PathBuf::from(format!("/proc/{}", self.node.id()));
        let mounts = fs::read_to_string(node.join("mounts")).unwrap();
        let mut files = Vec::new();
        for dir in ["run/netns", "var/lib/kubelet/pods", "var/log/pods", "var/lib/cni/results"] {
            let entries = fs::read_dir(node.join("root").join(dir)).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        let links =
            inside(&self.net, || Command::new("ip").args(["-br", "link", "show", "type", "veth"]).output().unwrap());
        files.extend(
            String::from_utf8_lossy(&links.stdout)
                .lines()
                .map(|line| line.split('@').next().unwrap_or(line).to_owned()),
        );
        (self.processes().len(), mounts.lines().count(), files)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.stop();
        if let Ok(None) = self.node.try_wait() {
            let _ = kill(self.node.id(), Signal::TERM);
            let _ = self.node.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn inside<T: Send>(net: &Namespace, f: impl FnOnce() -> T + Send) -> T {
    net.run(|| Ok::<_, podwire_kernel::Error>(f())).unwrap()
}

fn start_node(directory: &Path, net: &Namespace, kubeconfig: String, api_port: u16) -> Child {
    // target/<triple>/debug/deps/<test> → target/<triple>/debug/examples/lab-process
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/lab-process");
    assert!(program.exists(), "{} is missing: cargo build -p podwire-lab --examples", program.display());
    let config = NodeConfig {
        name: NODE.into(),
        addresses: vec![NODE_ADDRESS.parse().unwrap()],
        kubeconfig: kubeconfig.clone(),
        api_server: ("127.0.0.1".parse().unwrap(), api_port),
        cluster_dns: "10.96.0.10".parse().unwrap(),
        cluster_domain: "cluster.local".into(),
        cni_conf_dir: "/etc/cni/net.d".into(),
        cni_bin_dir: "/opt/cni/bin".into(),
    };
    let spec = MachineSpec {
        name: NODE.into(),
        network: format!("/proc/{}/fd/{}", std::process::id(), net.as_fd().as_raw_fd()).into(),
        root_base: directory.join("root"),
        executables: Executables { podwire: program.clone(), cni: program.clone() },
        hosts: "127.0.0.1 localhost\n".into(),
        resolv_conf: String::new(),
        kubeconfig,
        kubelet: Some(Kubelet { config, socket: socket_path(directory, NODE) }),
    };
    let mut node = Command::new(&program).arg("lab-node").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    node.stdin.take().unwrap().write_all(&serde_json::to_vec(&spec).unwrap()).unwrap();
    let mut line = String::new();
    BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    node
}
