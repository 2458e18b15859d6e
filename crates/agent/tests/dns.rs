//! `podwire dns` against the embedded API server: from objects to what `dig` shows, a changed Corefile, SIGTERM.
//! On the loopback only: the Corefile binds 127.0.0.1.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use podwire_agent::{dns, flags};
use podwire_apiserver::Server;
use podwire_k8s::{
    Client,
    k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice},
    kube::{
        Api,
        api::{DeleteParams, Patch, PatchParams, PostParams},
    },
};
use serde_json::{Value, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: dns::Args,
}

/// Files of the test, deleted at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("podwire-dns-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write_corefile(&self, port: u16, ttl: &str) {
        let kubeconfig = self.0.join("kubeconfig");
        let text = format!(
            ".:{port} {{
                bind 127.0.0.1
                errors
                health 127.0.0.1:0 {{
                    lameduck 300ms
                }}
                ready 127.0.0.1:0
                kubernetes cluster.local in-addr.arpa {{
                    pods verified
                    ttl {ttl}
                    kubeconfig {}
                }}
                reload
            }}\n",
            kubeconfig.display()
        );
        fs::write(self.0.join("Corefile"), text).unwrap();
    }
}

/// A port of 127.0.0.1 that was free for UDP and TCP a moment ago.
fn free_port() -> u16 {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
    udp.local_addr().unwrap().port()
}

async fn dig(port: u16, args: &str) -> String {
    let mut command = Command::new("dig");
    command.args(["+short", "+tries=1", "+time=2", "@127.0.0.1", "-p", &port.to_string()]).args(args.split(' '));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("dig is needed: Debian package bind9-dnsutils");
    let one_blank = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(one_blank).collect();
    lines.sort();
    lines.join(" ")
}

/// Asks until the answer is the wanted one; fails after five seconds.
async fn eventually(port: u16, args: &str, wanted: &str) {
    let start = Instant::now();
    loop {
        let found = dig(port, args).await;
        if found == wanted {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "dig {args}: {found:?}, wanted {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "myservice-1", "labels": { "kubernetes.io/service-name": "myservice" } },
        "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

#[tokio::test]
async fn names_follow_the_cluster_and_the_corefile() {
    let folder = Folder::new();
    let server = Server::builder().build().unwrap();
    let api: SocketAddr = server.serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    fs::write(folder.0.join("kubeconfig"), server.kubeconfig(api)).unwrap();
    let client = Client::from_kubeconfig(Some(&folder.0.join("kubeconfig"))).await.unwrap().kube();
    let services: Api<core::Service> = Api::namespaced(client.clone(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let create = PostParams::default();

    let port = free_port();
    folder.write_corefile(port, "7");
    let corefile = folder.0.join("Corefile").display().to_string();
    let flags = flags::with_double_dashes(["podwire", "dns", "-conf", &corefile].map(Into::into));
    let Cli { args } = Cli::parse_from(&flags[1..]);
    let agent = tokio::spawn(dns::run(args));
    eventually(port, "kubernetes.default.svc.cluster.local", "10.96.0.1").await;

    let headless = json!({ "metadata": { "name": "myservice" }, "spec": {
        "clusterIP": "None", "selector": { "app": "x" }, "ports": [{ "name": "http", "port": 80 }] } });
    services.create(&create, &object(headless)).await.unwrap();
    slices.create(&create, &object(slice(&["10.244.0.5", "10.244.1.5"]))).await.unwrap();
    let name = "myservice.default.svc.cluster.local";
    eventually(port, name, "10.244.0.5 10.244.1.5").await;
    let more = ["10.244.1.5", "10.244.1.6", "10.244.2.7"];
    slices.patch("myservice-1", &PatchParams::default(), &Patch::Merge(slice(&more))).await.unwrap();
    eventually(port, name, &more.join(" ")).await;
    eventually(port, "-x 10.244.2.7", "10-244-2-7.myservice.default.svc.cluster.local.").await;
    slices.delete("myservice-1", &DeleteParams::default()).await.unwrap();
    eventually(port, name, "").await;

    let alias =
        json!({ "metadata": { "name": "ext" }, "spec": { "type": "ExternalName", "externalName": "www.westos.org" } });
    services.create(&create, &object(alias)).await.unwrap();
    eventually(port, "ext.default.svc.cluster.local", "www.westos.org.").await;
    services.delete("ext", &DeleteParams::default()).await.unwrap();
    eventually(port, "ext.default.svc.cluster.local CNAME", "").await;

    // Pods by address, once they have one.
    let pods: Api<core::Pod> = Api::namespaced(client, "default");
    let pod =
        json!({ "metadata": { "name": "web" }, "spec": { "containers": [{ "name": "web", "image": "myapp:v1" }] } });
    pods.create(&create, &object(pod)).await.unwrap();
    let status = json!({ "status": { "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{ "ip": "10.244.0.9" }] } });
    pods.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    eventually(port, "10-244-0-9.default.pod.cluster.local", "10.244.0.9").await;

    let ttl = "kubernetes.default.svc.cluster.local +noshort +noall +answer";
    let with_ttl = |ttl: u32| format!("kubernetes.default.svc.cluster.local. {ttl} IN A 10.96.0.1");
    folder.write_corefile(port, "broken");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(dig(port, ttl).await, with_ttl(7), "a broken Corefile leaves the running one in force");
    folder.write_corefile(port, "8");
    eventually(port, ttl, &with_ttl(8)).await;

    let begin = Instant::now();
    assert!(Command::new("kill").arg(std::process::id().to_string()).status().unwrap().success());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(dig(port, ttl).await, with_ttl(8), "a lame duck still answers");
    agent.await.unwrap().unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("the agent has closed its sockets");
}
