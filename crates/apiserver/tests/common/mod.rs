//! A server in this process, `kubectl` against it, and raw requests.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use podwire_apiserver::{Builder, Server};
use podwire_k8s::{Client, kube::client::Body};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub server: Server,
    pub address: SocketAddr,
    pub client: Client,
    pub dir: PathBuf,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Lab {
    pub async fn start() -> Lab {
        Lab::start_with(Server::builder()).await
    }

    pub async fn start_with(builder: Builder) -> Lab {
        let server = builder.build().unwrap();
        let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("podwire-apiserver-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("kubeconfig");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, server.kubeconfig(address).as_bytes()).unwrap();
        let client = Client::from_kubeconfig(Some(&path)).await.unwrap();
        Lab { server, address, client, dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.dir.join("kubeconfig"));
        command.arg("--cache-dir").arg(self.dir.join("cache")).args(args);
        command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts `kubectl` and leaves it running.
    pub fn spawn(&self, args: &[&str]) -> tokio::process::Child {
        self.command(args).spawn().unwrap()
    }

    /// Runs `kubectl` to its end.
    pub async fn run(&self, args: &[&str], stdin: &str) -> Said {
        self.run_with(args, stdin, &[]).await
    }

    /// The same with environment variables.
    pub async fn run_with(&self, args: &[&str], stdin: &str, env: &[(&str, &str)]) -> Said {
        let mut child = self.command(args).envs(env.iter().copied()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // A command that does not read its input may end before it is written.
        let _ = input.write_all(stdin.as_bytes()).await;
        drop(input);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        Said {
            ok: output.status.success(),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `kubectl`, which must succeed; what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        let said = self.run(args, "").await;
        assert!(said.ok, "kubectl {args:?}: {}{}", said.out, said.err);
        said.out
    }

    /// Applies a manifest, which must succeed.
    pub async fn apply(&self, manifest: &str) -> String {
        let said = self.run(&["apply", "-f", "-"], manifest).await;
        assert!(said.ok, "{}{}", said.out, said.err);
        said.out
    }

    /// Sends a request; the code and the JSON of the answer.
    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> (u16, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(Body::from(body.as_bytes().to_vec()))
            .unwrap();
        let response = self.client.kube().send(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into_owned())))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (code, value) = self.send("GET", path, "", "").await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, "application/json", &body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("PUT", path, "application/json", &body.to_string()).await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("PATCH", path, "application/merge-patch+json", &body.to_string()).await
    }

    pub async fn delete(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("DELETE", path, "application/json", &body.to_string()).await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// `kubectl` is there; otherwise says so, and fails where tests must not be left out.
pub fn have_kubectl() -> bool {
    have_kubectl_since(0)
}

/// `kubectl` is there and at least version 1.`minor`, for what older ones cannot do.
pub fn have_kubectl_since(minor: u32) -> bool {
    let output = std::process::Command::new("kubectl").args(["version", "--client", "-o", "json"]).output();
    let version: Value = output.ok().and_then(|said| serde_json::from_slice(&said.stdout).ok()).unwrap_or_default();
    let found: Option<u32> =
        version["clientVersion"]["minor"].as_str().and_then(|m| m.trim_end_matches('+').parse().ok());
    let is_enough = found.is_some_and(|found| found >= minor);
    assert!(is_enough || std::env::var_os("CI").is_none(), "kubectl 1.{minor} or newer is needed");
    if !is_enough {
        eprintln!("left out: there is no kubectl 1.{minor} or newer");
    }
    is_enough
}

/// Text whose ages and random parts are replaced, so that it can be compared.
pub fn columns(text: &str) -> Vec<Vec<String>> {
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}
