//! How the API server reaches a node for `kubectl logs` and `kubectl exec`.
//!
//! A real API server dials the kubelet's HTTPS port. Here the embedder hands in a [`NodeProxy`]; the lab's speaks to
//! each node over a unix socket. The API server only translates between it and what `kubectl` expects on the wire.

use std::{fmt, future::Future, pin::Pin};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

/// A boxed future, so that [`NodeProxy`] is object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The bytes of a log, in the order they were written. Ends after the last line, or, with `follow`, when the container ends.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Bytes, RemoteError>> + Send>>;

/// Reaches the pod runtime of a node.
pub trait NodeProxy: Send + Sync + 'static {
    /// Opens the log of one container. `node` is the name of the Node object the pod is bound to.
    ///
    /// Dropping the stream ends the request.
    ///
    /// # Errors
    /// [`RemoteError`] when the node cannot be reached or knows no such container.
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, RemoteError>>;

    /// Starts a command in a running container.
    ///
    /// Dropping the [`ExecSession`] kills the command.
    ///
    /// # Errors
    /// [`RemoteError`] when the node cannot be reached, knows no such container, or the command cannot be started.
    fn exec<'a>(&'a self, node: &'a str, request: ExecRequest) -> BoxFuture<'a, Result<ExecSession, RemoteError>>;
}

/// Which log to read: `PodLogOptions` with the pod's identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; never empty (the API server fills in a pod's only or default container).
    pub container: String,
    /// Keep the stream open and send new lines as they are written.
    pub follow: bool,
    /// The log of the terminated container before this one.
    pub previous: bool,
    /// Put an RFC 3339 timestamp and a space before each line.
    pub timestamps: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines written in the last so many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines written at or after this RFC 3339 time.
    pub since_time: Option<String>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// Which command to run where: `PodExecOptions` with the pod's identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container; never empty.
    pub container: String,
    /// The command and its arguments; never empty. Not run in a shell.
    pub command: Vec<String>,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error. With `tty` everything comes on standard output.
    pub stderr: bool,
    /// Allocate a terminal.
    pub tty: bool,
}

/// A running command.
#[derive(Debug)]
pub struct ExecSession {
    /// Bytes for standard input. Dropping the sender is end of file.
    pub stdin: mpsc::Sender<Bytes>,
    /// Sizes of the terminal, (columns, rows); meaningful with `tty` only.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// What the command says. The last item is [`ExecOutput::Exit`] or [`ExecOutput::Error`]; a channel that closes
    /// without either means that the node was lost.
    pub output: mpsc::Receiver<ExecOutput>,
}

/// One piece of output of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of standard output (or of the terminal).
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The command ended with this code; 128 + n when signal n killed it.
    Exit(i32),
    /// The command was lost: why.
    Error(String),
}

/// Why a node could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteError {
    /// The pod or the container is not (yet, or any more) on that node, or not running.
    NotFound(String),
    /// The request makes no sense to the node.
    BadRequest(String),
    /// The node cannot be reached, or failed.
    Unavailable(String),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteError::NotFound(why) | RemoteError::BadRequest(why) | RemoteError::Unavailable(why) => {
                f.write_str(why)
            }
        }
    }
}

impl std::error::Error for RemoteError {}

/// Reaches no node: every request fails, saying so. For servers without nodes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNodes;

impl NodeProxy for NoNodes {
    fn logs<'a>(&'a self, node: &'a str, _: LogRequest) -> BoxFuture<'a, Result<LogStream, RemoteError>> {
        Box::pin(async move {
            Err(RemoteError::Unavailable(format!("this API server cannot reach node {node:?} for logs")))
        })
    }

    fn exec<'a>(&'a self, node: &'a str, _: ExecRequest) -> BoxFuture<'a, Result<ExecSession, RemoteError>> {
        Box::pin(async move {
            Err(RemoteError::Unavailable(format!("this API server cannot reach node {node:?} for exec")))
        })
    }
}
