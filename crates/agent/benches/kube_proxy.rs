//! `podwire kube-proxy` and kube-proxy itself at the same task: both watch one API server (Podwire's, in this process),
//! each in a network namespace of its own, one after the other. Prints one JSON object a line, for `cargo xtask bench
//! kube-proxy`. Sync times are by each program's own metric `kubeproxy_sync_proxy_rules_duration_seconds`.
//!
//! The environment variable `PODWIRE_KUBE_PROXY` names the program to compare with, without it there is no comparison;
//! `PODWIRE_KUBE_PROXY_VERSION` names its version where it does not know it itself. Arguments choose one size and one
//! mode: `1000x10 nftables`.

use std::{
    env, fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
    kube::{
        Api,
        api::{Patch, PatchParams, PostParams},
    },
};
use podwire_kernel::ns::Namespace;
use podwire_testkit::bench::{Measured, memory};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const PEER: &str = "PODWIRE_KUBE_PROXY";
const PEER_VERSION: &str = "PODWIRE_KUBE_PROXY_VERSION";
/// Services, and endpoints of each.
const SIZES: &[[u32; 2]] = &[[1000, 10], [5006, 50]];
/// The modes that both have.
const MODES: &[&str] = &["nftables", "iptables"];
/// A sync that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(75);
/// Changes of one endpoint each.
const CHANGES: u32 = 4;
/// Changes a second, and for how many seconds, of the cluster that does not rest.
const LOAD: [u32; 2] = [100, 10];
/// Where both serve their metrics, each in its namespace.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// How often and how long a program wrote rules.
const SYNCS: &str = "kubeproxy_sync_proxy_rules_duration_seconds";

/// This program in the part of `podwire kube-proxy`.
#[derive(Parser)]
struct Podwire {
    #[command(flatten)]
    args: podwire_agent::kube_proxy::Args,
}

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let arguments: Vec<String> = env::args().filter(|argument| argument != "--bench").collect();
    let runtime = Runtime::new()?;
    if arguments.get(1).is_some_and(|argument| argument.starts_with("--config")) {
        let args = Podwire::parse_from(&arguments).args;
        return runtime.block_on(podwire_agent::kube_proxy::run(args)).map(drop);
    }
    let asked = |text: &str| arguments.len() < 2 || arguments[1..].iter().any(|argument| argument == text);
    let peer =
        env::var_os(PEER).map(|peer| anyhow::Ok(Program { name: version(Path::new(&peer))?, path: peer.into() }));
    let peer = peer.transpose()?;
    if peer.is_none() {
        eprintln!("kube-proxy is left out: {PEER} names no program");
    }
    let own = Program { name: "podwire".into(), path: env::current_exe()? };
    for [services, each] in SIZES {
        let size = format!("{services}x{each}");
        if !asked(&size) {
            continue;
        }
        let served = runtime.block_on(Cluster { services: *services, each: *each }.serve())?;
        for mode in MODES.iter().filter(|mode| asked(mode)) {
            let theirs = peer.as_ref().map(|peer| anyhow::Ok((&*peer.name, measure(&runtime, &served, (peer, mode))?)));
            let theirs = theirs.transpose()?;
            let ours = measure(&runtime, &served, (&own, mode))?;
            report(&format!("{mode} {size}"), &ours, theirs.as_ref().map(|(name, theirs)| (*name, theirs)));
        }
    }
    Ok(())
}

struct Program {
    name: String,
    path: PathBuf,
}

/// Which kube-proxy that is.
fn version(path: &Path) -> Result<String> {
    let version = match env::var(PEER_VERSION) {
        Ok(version) => version,
        Err(_) => {
            let output = Command::new(path).arg("--version").output();
            let output = output.with_context(|| format!("cannot start {}", path.display()))?;
            String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("Kubernetes ").to_owned()
        }
    };
    Ok(format!("kube-proxy {version}"))
}

/// What one program needed: seconds, `None` where it was not waited for; and MB.
struct Needed {
    start: Option<f64>,
    first: Option<f64>,
    change: Option<f64>,
    resident: f64,
    most: f64,
    /// Part of one core under [`LOAD`].
    core: Option<f64>,
}

fn report(case: &str, ours: &Needed, theirs: Option<(&str, &Needed)>) {
    let line = |metric: &str, unit: &str, value: f64, peer: Option<(&str, f64)>| {
        println!("{}", Measured { bench: "kube-proxy", case, metric, value, unit, peer });
    };
    let unfinished = theirs.map(|(name, _)| format!("{name} (ended unfinished)"));
    let time = |metric: &str, part: fn(&Needed) -> Option<f64>| {
        let Some(value) = part(ours) else { return };
        let peer = theirs.map(|(name, theirs)| match part(theirs) {
            Some(value) => (name, value * 1000.0),
            None => (unfinished.as_deref().unwrap_or(name), PATIENCE.as_secs_f64() * 1000.0),
        });
        line(metric, "ms", value * 1000.0, peer);
    };
    time("from its start until in sync", |needed| needed.start);
    time("first sync", |needed| needed.first);
    if theirs.is_none_or(|(_, theirs)| theirs.first.is_some()) {
        time("sync after one endpoint was replaced", |needed| needed.change);
    }
    let [often, seconds] = LOAD;
    if let Some(core) = ours.core {
        let peer = theirs.and_then(|(name, theirs)| Some((name, theirs.core? * 100.0)));
        line(&format!("one core, {often} changes/s for {seconds} s"), "%", core * 100.0, peer);
    }
    line("resident memory", "MB", ours.resident, theirs.map(|(name, theirs)| (name, theirs.resident)));
    line("most memory", "MB", ours.most, theirs.map(|(name, theirs)| (name, theirs.most)));
}

/// A proxy that ends with its owner.
struct Running {
    child: Child,
    dir: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn measure(runtime: &Runtime, served: &Served, (program, mode): (&Program, &str)) -> Result<Needed> {
    let namespace = Namespace::new_net()?;
    let listener = namespace.run(|| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        up.and_then(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 6443)))
            .map_err(|error| podwire_kernel::Error::io("prepare a namespace", error))
    })?;
    let address = runtime.block_on(async { served.server.serve(listener) })?;
    let begin = Instant::now();
    let running = start(&namespace, &served.server.kubeconfig(address), (program, mode))?;
    let synced = syncs(&namespace, 0)?;
    let time = begin.elapsed().as_secs_f64();
    let mut changes = Vec::new();
    let mut last = synced;
    for number in 0..CHANGES {
        let Some((count, sum)) = last else { break };
        runtime.block_on(served.change(number))?;
        last = syncs(&namespace, count)?;
        changes.extend(last.map(|(now, total)| (total - sum) / (now - count) as f64));
    }
    changes.sort_by(f64::total_cmp);
    let pid = running.child.id();
    // Who is not in sync by now does not get to these changes.
    let core = last.map(|_| runtime.block_on(load(served, pid))).transpose()?;
    Ok(Needed {
        start: synced.map(|_| time),
        first: synced.map(|(count, sum)| sum / count as f64),
        change: changes.get(changes.len() / 2).copied(),
        resident: memory(pid, "VmRSS")?,
        most: memory(pid, "VmHWM")?,
        core,
    })
}

/// How much of one core the process used while endpoints were replaced.
async fn load(served: &Served, pid: u32) -> Result<f64> {
    let [often, seconds] = LOAD;
    let (begin, before) = (Instant::now(), processor_time(pid)?);
    for number in 0..often * seconds {
        served.change(CHANGES + number % (served.cluster.services - CHANGES)).await?;
        let due = begin + Duration::from_secs(1) * (number + 1) / often;
        tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
    }
    Ok((processor_time(pid)? - before).as_secs_f64() / begin.elapsed().as_secs_f64())
}

/// The processor time that a process used so far (`utime` and `stime` of proc_pid_stat(5), in hundredths of a second).
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn start(namespace: &Namespace, kubeconfig: &str, (program, mode): (&Program, &str)) -> Result<Running> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = env::temp_dir().join(format!("podwire-bench-kube-proxy-{}-{number}", id()));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("kubeconfig"), kubeconfig)?;
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clientConnection": { "kubeconfig": dir.join("kubeconfig") },
        "clusterCIDR": "10.128.0.0/9",
        "hostnameOverride": "node-0",
        // Neither shall change the machine.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "oomScoreAdj": 0,
    });
    if mode == "nftables" && program.name != "podwire" {
        // It was not on by default at first.
        config["featureGates"] = json!({ "NFTablesProxyMode": true });
    }
    fs::write(dir.join("config"), config.to_string())?;
    let log = fs::File::create(dir.join("log"))?;
    let mut command = Command::new(&program.path);
    command.arg(format!("--config={}", dir.join("config").display()));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = namespace.run(|| command.spawn().map_err(|error| podwire_kernel::Error::io("start a proxy", error)))?;
    Ok(Running { child, dir })
}

/// Waits until a program has synced more than `before` times: how often that was, and how many seconds it took in all.
fn syncs(namespace: &Namespace, before: u64) -> Result<Option<(u64, f64)>> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Some(text) = namespace.run(|| Ok::<_, podwire_kernel::Error>(metrics().ok()))? {
            let value = |suffix: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(&format!("{SYNCS}_{suffix} ")));
                line.and_then(|value| value.trim().parse::<f64>().ok())
            };
            if let (Some(count), Some(sum)) = (value("count"), value("sum"))
                && count as u64 > before
            {
                return Ok(Some((count as u64, sum)));
            }
        }
        sleep(Duration::from_millis(50));
    }
    Ok(None)
}

fn metrics() -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&METRICS, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[derive(Clone, Copy)]
struct Cluster {
    services: u32,
    each: u32,
}

/// An API server with a cluster in it.
struct Served {
    server: Server,
    client: Client,
    cluster: Cluster,
    /// How many endpoints were replaced.
    replaced: AtomicU32,
}

impl Cluster {
    async fn serve(self) -> Result<Served> {
        let server = Server::builder().build()?;
        let address = server.serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
        let file = env::temp_dir().join(format!("podwire-bench-kube-proxy-{}-{}", id(), self.services));
        fs::write(&file, server.kubeconfig(address))?;
        let client = Client::from_kubeconfig(Some(&file)).await;
        fs::remove_file(&file)?;
        let client = client?;
        let node: core::Node = serde_json::from_value(json!({
            "metadata": { "name": "node-0" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }] },
        }))?;
        Api::all(client.kube()).create(&PostParams::default(), &node).await.context("make the node")?;
        let services = Api::<core::Service>::namespaced(client.kube(), "default");
        let slices = Api::<discovery::EndpointSlice>::namespaced(client.kube(), "default");
        let made = stream::iter(0..self.services).map(|number| {
            let (services, slices) = (&services, &slices);
            async move {
                services.create(&PostParams::default(), &service(number)?).await?;
                slices.create(&PostParams::default(), &self.slice(number)?).await?;
                anyhow::Ok(())
            }
        });
        made.buffer_unordered(16).try_collect::<()>().await.context("make Services")?;
        Ok(Served { server, client, cluster: self, replaced: AtomicU32::new(0) })
    }

    fn slice(self, number: u32) -> Result<discovery::EndpointSlice> {
        Ok(serde_json::from_value(json!({
            "metadata": {
                "name": slice_name(number),
                "labels": { "kubernetes.io/service-name": format!("service-{number}") },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }],
            "endpoints": self.endpoints(number),
        }))?)
    }

    fn endpoints(self, number: u32) -> Vec<Value> {
        let endpoint = |pod: u32| {
            json!({
                "addresses": [address(pod)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("node-{}", pod % 500),
                "targetRef": { "kind": "Pod", "namespace": "default", "name": format!("service-{number}-{pod:05x}") },
            })
        };
        (number * self.each..(number + 1) * self.each).map(endpoint).collect()
    }
}

impl Served {
    /// Replaces the first endpoint of a Service.
    async fn change(&self, number: u32) -> Result<()> {
        let slices = Api::<discovery::EndpointSlice>::namespaced(self.client.kube(), "default");
        let mut endpoints = self.cluster.endpoints(number);
        let fresh = 0x40_0000 + self.replaced.fetch_add(1, Ordering::Relaxed);
        endpoints[0]["addresses"] = json!([address(fresh)]);
        let patch = Patch::Merge(json!({ "endpoints": endpoints }));
        slices.patch(&slice_name(number), &PatchParams::default(), &patch).await.context("replace an endpoint")?;
        Ok(())
    }
}

fn slice_name(number: u32) -> String {
    format!("service-{number}-1")
}

/// The address of a pod.
fn address(pod: u32) -> String {
    Ipv4Addr::from_bits(0x0a80_0000 + pod).to_string()
}

fn service(number: u32) -> Result<core::Service> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": format!("service-{number}") },
        "spec": {
            "clusterIP": Ipv4Addr::from_bits(0x0a60_0000 + number + 100).to_string(),
            "ports": [{ "protocol": "TCP", "port": 80, "targetPort": 8080 }],
        },
    }))?)
}
