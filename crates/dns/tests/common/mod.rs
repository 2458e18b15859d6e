//! A small cluster, a server over it, `dig`, and an upstream server whose answers a test decides.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use podwire_dns::{
    message::{Arrival, Query, Reply, Transport},
    program::{Environment, Program},
    server::Server,
    view::View,
};
use podwire_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, ServiceType,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// `http/tcp/80`; an empty name for an unnamed port.
fn port_parts(text: &str) -> (&str, Protocol, u16) {
    let mut parts = text.split('/');
    let (name, protocol, port) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    (name, protocol.to_uppercase().parse().unwrap(), port.parse().unwrap())
}

pub fn service(full_name: &str, cluster_ips: &[&str], ports: &[&str]) -> Service {
    Service {
        name: name(full_name),
        kind: ServiceType::ClusterIp,
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: cluster_ips.is_empty(),
        ports: ports
            .iter()
            .map(|text| port_parts(text))
            .map(|(name, protocol, port)| ServicePort { name: name.into(), protocol, port, node_port: None })
            .collect(),
        external_ips: vec![],
        load_balancer: vec![],
        source_ranges: vec![],
        internal_policy: Default::default(),
        external_policy: Default::default(),
        client_ip_affinity: None,
        publish_not_ready: false,
        health_check_node_port: None,
        other_proxy: false,
    }
}

pub fn external(full_name: &str, target: &str) -> Service {
    Service { kind: ServiceType::ExternalName(target.into()), headless: false, ..service(full_name, &[], &[]) }
}

/// Endpoints are spelled `address`, `address=hostname`, and with a leading `!` when not ready.
pub fn slice(full_name: &str, of: &str, ports: &[&str], endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints
        .iter()
        .map(|text| {
            let ready = !text.starts_with('!');
            let (address, hostname) = match text.trim_start_matches('!').split_once('=') {
                Some((address, hostname)) => (address, Some(hostname.into())),
                None => (text.trim_start_matches('!'), None),
            };
            Endpoint { ready, serving: ready, hostname, ..Endpoint::ready(address.parse().unwrap()) }
        })
        .collect();
    EndpointSlice {
        name: name(full_name),
        service: of.into(),
        family: endpoints.first().map_or(Family::V4, |endpoint| Family::of(&endpoint.address)),
        headless: false,
        ports: ports
            .iter()
            .map(|text| port_parts(text))
            .map(|(name, protocol, port)| EndpointPort { name: name.into(), protocol, port })
            .collect(),
        endpoints,
    }
}

/// A folder of a test's own, gone with the value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("podwire-dns-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path as text.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The cluster that the golden records describe.
pub fn cluster() -> View {
    let mut view = View::new();
    view.replace_namespaces(["default".into(), "kube-system".into(), "bare".into()]);
    view.replace_services([
        service("default/web", &["10.96.0.20", "fd00:96::20"], &["http/tcp/80", "dns/udp/53"]),
        service("default/single", &["10.96.0.21"], &["/tcp/80"]),
        service("default/headless", &[], &["web/tcp/80"]),
        service("default/asleep", &[], &["web/tcp/80"]),
        Service { publish_not_ready: true, ..service("default/early", &[], &["web/tcp/80"]) },
        service("default/portless", &[], &[]),
        external("default/ext", "www.westos.org"),
        external("default/lost", "www.nowhere.test"),
        external("default/inner", "Web.default.svc.cluster.local."),
        external("default/selfie", "selfie.default.svc.cluster.local"),
        external("default/number", "10.0.0.1"),
        service("kube-system/kube-dns", &["10.96.0.10"], &["dns/udp/53", "dns-tcp/tcp/53"]),
    ]);
    let ports = ["web/tcp/8080", "metrics/tcp/9090"];
    view.replace_slices([
        slice("default/single-1", "single", &["/tcp/8080"], &["10.244.1.9"]),
        slice("default/headless-4", "headless", &ports, &["10.244.0.5", "10.244.0.6=Node-A", "!10.244.0.7"]),
        slice("default/headless-6", "headless", &ports, &["fd00:10::5", "fd00:10::6=Node-A"]),
        slice("default/asleep-1", "asleep", &ports, &["!10.244.0.8"]),
        slice("default/early-1", "early", &ports[..1], &["!10.244.0.9=early-0"]),
        slice("default/portless-1", "portless", &[], &["10.244.0.10"]),
        slice("default/orphan-1", "orphan", &ports, &["10.244.0.11"]),
    ]);
    view.replace_pods([(name("default/web-0"), vec!["10.244.0.5".parse().unwrap()])]);
    view
}

/// The Corefile of a kubeadm cluster (1.34), with the ports left to the system and the upstream replaced.
pub fn stock_corefile(upstream: &str) -> String {
    STOCK_COREFILE
        .replace(".:53 {", ".:0 {")
        .replace("health {", "health 127.0.0.1:0 {")
        .replace("ready\n", "ready 127.0.0.1:0\n")
        .replace("prometheus :9153", "prometheus 127.0.0.1:0")
        .replace("/etc/resolv.conf", upstream)
        .replace("lameduck 5s", "lameduck 50ms")
}

pub const STOCK_COREFILE: &str = ".:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
";

/// An environment whose cluster is `view`, fully known, with 42 as SOA serial number.
pub fn environment(view: View) -> Environment {
    let environment = Environment::new(LOCALHOST);
    environment.cluster.update(42, |current| *current = view);
    environment.cluster.set_synced();
    environment
}

pub async fn start(corefile: &str, environment: &Environment) -> (Server, SocketAddr) {
    let program = Program::new(corefile, environment).unwrap();
    let server = Server::start(program, environment.clone()).await.unwrap();
    let address = server.addresses().next().unwrap();
    (server, address)
}

pub fn arrival(transport: Transport) -> Arrival {
    Arrival { client: (LOCALHOST, 1234).into(), transport, now: Instant::now(), random: 7 }
}

/// Runs `dig` against a server. It gets one try of two seconds, and a single answer is judged.
pub async fn dig(server: SocketAddr, args: &[&str]) -> String {
    let mut command = Command::new("dig");
    command.args(["+tries=1", "+time=6", "+noall", "+comments", "+answer", "+authority", "+additional", "-p"]);
    command.arg(server.port().to_string()).arg(format!("@{}", server.ip())).args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("dig is needed: Debian package bind9-dnsutils");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks over UDP and TCP, which must say the same. The record's words, without code and flags where there are records.
pub async fn ask(address: SocketAddr, question: &str) -> String {
    let args: Vec<&str> = question.split(' ').collect();
    let udp = digest(&dig(address, &args).await);
    let tcp = digest(&dig(address, &[&args[..], &["+tcp"]].concat()).await);
    assert_eq!(udp, tcp, "{question}");
    udp
}

/// Asks until the answer is as wanted; the last one, if it never is.
pub async fn ask_until(address: SocketAddr, question: &str, wanted: &str) -> String {
    let mut answer = String::new();
    for _ in 0..300 {
        answer = digest(&dig(address, &question.split(' ').collect::<Vec<_>>()).await);
        if answer == wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answer
}

pub async fn assert_answers(address: SocketAddr, table: &[(&str, &str)]) {
    for (question, wanted) in table {
        assert_eq!(ask(address, question).await, *wanted, "{question}");
    }
}

/// A page over HTTP, with its headers.
pub async fn get(address: SocketAddr, path: &'static str) -> String {
    let ask = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// What matters of dig's output: a line with code and flags, then the records section by section, sorted within each.
pub fn digest(output: &str) -> String {
    let mut status = "no answer";
    let mut flags = String::new();
    let mut section = "";
    let mut records: BTreeMap<(usize, String), ()> = BTreeMap::new();
    for line in output.lines() {
        if let Some((_, rest)) = line.split_once("status: ") {
            status = rest.split(',').next().unwrap();
        } else if let Some(rest) = line.strip_prefix(";; flags: qr") {
            let set = rest.split(';').next().unwrap().split_whitespace();
            flags = set.filter(|flag| *flag != "rd").map(|flag| format!(" {flag}")).collect();
        } else if let Some(rest) = line.strip_prefix(";; ") {
            section = rest.split(' ').next().unwrap();
        } else if !line.is_empty() && !line.starts_with(';') {
            let rank = ["ANSWER", "AUTHORITY", "ADDITIONAL"].iter().position(|known| *known == section).unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            records.insert((rank, words.join(" ")), ());
        }
    }
    let mut digest = format!("{status}{flags}\n");
    for (rank, record) in records.keys() {
        digest.push_str(["", "authority ", "additional "][*rank]);
        digest.push_str(record);
        digest.push('\n');
    }
    digest
}

/// A DNS server on the loopback whose answers are decided by a function: `None` keeps silent.
pub struct Upstream {
    pub address: SocketAddr,
    pub asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub async fn start(answer: impl Fn(&Query) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let tcp = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let answer = Arc::new(answer);
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (counter, udp_answer) = (asked.clone(), answer.clone());
        tasks.spawn(async move {
            let mut packet = [0; 4096];
            loop {
                let (length, client) = udp.recv_from(&mut packet).await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let query = Query::parse(&packet[..length], arrival(Transport::Udp)).unwrap();
                if let Some(reply) = udp_answer(&query) {
                    udp.send_to(&reply.encode(&query, Vec::new()), client).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut packet).await.unwrap();
                let query = Query::parse(&packet, arrival(Transport::Tcp)).unwrap();
                if let Some(reply) = answer(&query) {
                    let packet = reply.encode(&query, Vec::new());
                    stream.write_u16(packet.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&packet).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    pub fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
