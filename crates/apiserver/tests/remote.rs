//! `kubectl logs` and `kubectl exec` through a node that is made up.

#![allow(clippy::unwrap_used, reason = "a failure in a test's own helpers is a failed test")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{Lab, have_kubectl, have_kubectl_since};
use futures_util::{StreamExt, stream};
use podwire_apiserver::{
    Server,
    remote::{BoxFuture, ExecOutput, ExecRequest, ExecSession, LogRequest, LogStream, NodeProxy, RemoteError},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc,
};

/// Logs say what was asked; commands are `cat`, `exit N`, `both`, `sleep`.
struct Node;

impl NodeProxy for Node {
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, RemoteError>> {
        Box::pin(async move {
            if request.previous {
                return Err(RemoteError::BadRequest("previous terminated container not found".into()));
            }
            let text = format!("{node} {} {} {:?}\n", request.pod, request.container, request.tail_lines);
            let first = stream::iter([Ok(Bytes::from(text))]);
            let more = stream::pending::<Result<Bytes, RemoteError>>();
            let lines: LogStream = if request.follow { Box::pin(first.chain(more)) } else { Box::pin(first) };
            Ok(lines)
        })
    }

    fn exec<'a>(&'a self, _: &'a str, request: ExecRequest) -> BoxFuture<'a, Result<ExecSession, RemoteError>> {
        Box::pin(async move {
            let (stdin, mut input) = mpsc::channel(8);
            let (resize, _) = mpsc::channel(8);
            let (sender, output) = mpsc::channel(8);
            let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["cat"] => {
                    tokio::spawn(async move {
                        while let Some(bytes) = input.recv().await {
                            let _ = sender.send(ExecOutput::Stdout(bytes)).await;
                        }
                        let _ = sender.send(ExecOutput::Exit(0)).await;
                    });
                }
                ["exit", code] => drop(sender.try_send(ExecOutput::Exit(code.parse().unwrap()))),
                ["both"] => {
                    let _ = sender.try_send(ExecOutput::Stdout(Bytes::from_static(b"out\n")));
                    let _ = sender.try_send(ExecOutput::Stderr(Bytes::from_static(b"err\n")));
                    let _ = sender.try_send(ExecOutput::Exit(0));
                }
                ["lost"] => {}
                other => return Err(RemoteError::NotFound(format!("no such command: {other:?}"))),
            }
            Ok(ExecSession { stdin, resize, output })
        })
    }
}

async fn lab_with_pod() -> Lab {
    let lab = Lab::start_with(Server::builder().nodes(Arc::new(Node))).await;
    let pod = json!({"metadata": {"name": "one"}, "spec": {"nodeName": "node1", "containers": [
        {"name": "web", "image": "myapp:v1"}]}});
    assert_eq!(lab.post("/api/v1/namespaces/default/pods", &pod).await.0, 201);
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(lab.merge("/api/v1/namespaces/default/pods/one/status", &status).await.0, 200);
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_node() {
    if !have_kubectl() {
        return;
    }
    let lab = lab_with_pod().await;
    assert_eq!(lab.kubectl(&["logs", "one", "--tail=5"]).await, "node1 one web Some(5)\n");
    let mut follow = lab.spawn(&["logs", "-f", "one", "-c", "web"]);
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "node1 one web None");
    assert!(tokio::time::timeout(Duration::from_millis(200), lines.next_line()).await.is_err(), "still open");
    lab.server.stop();
    assert_eq!(lines.next_line().await.unwrap(), None, "a server that stops ends it");
    follow.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_logs_cannot_do_is_said() {
    if !have_kubectl() {
        return;
    }
    let lab = lab_with_pod().await;
    for (args, told) in [
        (&["logs", "one", "--previous"][..], "previous terminated container not found"),
        (&["logs", "one", "-c", "db"], "container db is not valid for pod one"),
        (&["logs", "two"], "pods \"two\" not found"),
    ] {
        let said = lab.run(args, "").await;
        assert!(!said.ok && said.err.contains(told), "{said:?}");
    }
    lab.kubectl(&["run", "two", "--image=myapp:v1"]).await;
    let said = lab.run(&["logs", "two"], "").await;
    assert!(said.err.contains("pod two does not have a host assigned"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_on_the_node() {
    if !have_kubectl_since(30) {
        return;
    }
    let lab = lab_with_pod().await;
    let said = lab.run(&["exec", "one", "--", "both"], "").await;
    assert_eq!((said.out.as_str(), said.err.as_str(), said.code), ("out\n", "err\n", Some(0)));
    let said = lab.run(&["exec", "one", "--", "exit", "7"], "").await;
    assert_eq!(said.code, Some(7), "{said:?}");
    let text = "a line\n".repeat(50_000);
    let said = lab.run(&["exec", "-i", "one", "--", "cat"], &text).await;
    assert!(said.ok && said.out == text, "{} bytes came back, {}", said.out.len(), said.err);
    let said = lab.run(&["exec", "one", "--", "nonsense"], "").await;
    assert!(!said.ok && said.err.contains("no such command"), "{said:?}");
    let said = lab.run(&["exec", "one", "--", "lost"], "").await;
    assert!(!said.ok && said.err.contains("the node was lost"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_talks_is_heard_at_once() {
    if !have_kubectl_since(30) {
        return;
    }
    let lab = lab_with_pod().await;
    let mut exec = lab.spawn(&["exec", "-i", "one", "--", "cat"]);
    let mut input = exec.stdin.take().unwrap();
    let mut lines = BufReader::new(exec.stdout.take().unwrap()).lines();
    for line in ["one", "two"] {
        input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), line);
    }
    drop(input);
    assert!(exec.wait().await.unwrap().success());
}
