//! `podwire lab exec pod/NAME`: a command in a pod's container, without the API server's help.
//!
//! For a `kubectl` older than 1.30, whose `exec` speaks SPDY only. It asks the node's kubelet directly, as the API server does.

use std::io::{self, Read, Write};

use bytes::Bytes;
use podwire_apiserver::remote::{ExecOutput, ExecRequest, ExecSession, NodeProxy};
use podwire_k8s::{Client, k8s_openapi::api::core::v1::Pod, kube::Api};
use tokio::{runtime, sync::mpsc};

use crate::{
    error::{Context, Error, Result},
    kubelet::remote::Nodes,
    state::Directory,
};

/// The namespace of a pod that is named without one.
const DEFAULT_NAMESPACE: &str = "default";

/// Runs `command` in the first container of `pod`, `NAME` or `NAMESPACE/NAME`, with the caller's standard streams; returns
/// its exit code.
///
/// # Errors
/// [`Error::Invalid`] when the lab does not run or has no such pod, and what the pod's node reports.
pub fn exec(lab: &str, pod: &str, command: &[String]) -> Result<u8> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().trying(|| format!("reach {pod}"))?;
    let code = runtime.block_on(run(lab, pod, command));
    // Standard input may never end: its thread is left behind.
    runtime.shutdown_background();
    code
}

async fn run(lab: &str, pod: &str, command: &[String]) -> Result<u8> {
    let directory = Directory::of(lab)?;
    directory.read_running(lab)?;
    let (namespace, name) = pod.split_once('/').unwrap_or((DEFAULT_NAMESPACE, pod));
    let failed = |reason: String| Error::Api { tried: format!("run a command in pod {namespace}/{name}"), reason };
    let client = Client::from_kubeconfig(Some(&directory.kubeconfig())).await.map_err(|e| failed(e.to_string()))?;
    let pods = Api::<Pod>::namespaced(client.kube(), namespace);
    let Some(found) = pods.get_opt(name).await.map_err(|e| failed(e.to_string()))? else {
        return Err(Error::Invalid(format!("lab {lab} has no pod {namespace}/{name}")));
    };
    let spec = found.spec.unwrap_or_default();
    let node = spec.node_name.ok_or_else(|| failed("it is on no node yet".to_owned()))?;
    let request = ExecRequest {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        container: spec.containers.first().map(|container| container.name.clone()).unwrap_or_default(),
        command: command.to_vec(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let session = Nodes::new(directory.path()).exec(&node, request).await.map_err(|e| failed(e.to_string()))?;
    let ExecSession { stdin, mut output, resize: _ } = session;
    std::thread::spawn(move || pass_input(&stdin));
    loop {
        let written = match output.recv().await {
            Some(ExecOutput::Stdout(bytes)) => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
            Some(ExecOutput::Stderr(bytes)) => io::stderr().write_all(&bytes),
            Some(ExecOutput::Exit(code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Some(ExecOutput::Error(why)) => return Err(failed(why)),
            None => return Err(failed(format!("node {node} was lost"))),
        };
        written.trying(|| "write what the command printed")?;
    }
}

/// Hands standard input on until it ends or the command does.
fn pass_input(stdin: &mpsc::Sender<Bytes>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length) = io::stdin().read(&mut buffer) {
        if length == 0 || stdin.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
            return;
        }
    }
}
