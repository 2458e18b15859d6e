//! The API server's way to a node: [`NodeProxy`] over each node's unix socket.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use podwire_apiserver::remote::{
    BoxFuture, ExecOutput, ExecRequest, ExecSession, LogRequest, LogStream, NodeProxy, RemoteError,
};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::frame::{Frame, Request};

/// How many pieces of input or output may wait.
const QUEUE: usize = 16;
/// The longest piece of input in one frame.
const MAX_INPUT: usize = 64 << 10;

/// The nodes whose sockets are in one directory.
#[derive(Debug, Clone)]
pub struct Nodes {
    directory: PathBuf,
}

/// The socket of the node called `node`, in the directory of a lab's sockets.
pub fn socket_path(directory: &Path, node: &str) -> PathBuf {
    directory.join(format!("{node}.sock"))
}

impl Nodes {
    /// Nodes with their sockets at [`socket_path`] in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Sends a request and waits until the node accepts it.
    async fn open(&self, node: &str, request: Request) -> Result<(OwnedReadHalf, OwnedWriteHalf), RemoteError> {
        let lost = |e: std::io::Error| RemoteError::Unavailable(format!("cannot reach node {node:?}: {e}"));
        let stream = UnixStream::connect(socket_path(&self.directory, node)).await.map_err(lost)?;
        let (mut source, mut sink) = stream.into_split();
        Frame::Request(request).write(&mut sink).await.map_err(lost)?;
        match Frame::read(&mut source).await.map_err(lost)? {
            Some(Frame::Accepted) => Ok((source, sink)),
            Some(Frame::Refused(error)) => Err(error),
            _ => Err(RemoteError::Unavailable(format!("node {node:?} hung up"))),
        }
    }
}

impl NodeProxy for Nodes {
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, RemoteError>> {
        Box::pin(async move {
            // The write half is kept: closing it would end the request.
            let halves = self.open(node, Request::Logs(request)).await?;
            let log = stream::unfold(Some(halves), |halves| async move {
                let (mut source, sink) = halves?;
                match Frame::read(&mut source).await {
                    Ok(Some(Frame::Stdout(bytes))) => Some((Ok(bytes), Some((source, sink)))),
                    Ok(Some(Frame::Lost(why))) => Some((Err(RemoteError::Unavailable(why)), None)),
                    Ok(_) => None,
                    Err(error) => Some((Err(RemoteError::Unavailable(format!("lost the node: {error}"))), None)),
                }
            });
            Ok(Box::pin(log) as LogStream)
        })
    }

    fn exec<'a>(&'a self, node: &'a str, request: ExecRequest) -> BoxFuture<'a, Result<ExecSession, RemoteError>> {
        Box::pin(async move {
            let (source, sink) = self.open(node, Request::Exec(request)).await?;
            let (stdin, stdin_source) = mpsc::channel(QUEUE);
            let (resize, resize_source) = mpsc::channel(QUEUE);
            let (output_sink, output) = mpsc::channel(QUEUE);
            tokio::spawn(async move {
                // Input ends by itself only when the connection breaks; the output decides.
                tokio::select! {
                    () = carry_output(source, output_sink) => {}
                    () = carry_input(sink, stdin_source, resize_source) => {}
                }
            });
            Ok(ExecSession { stdin, resize, output })
        })
    }
}

async fn carry_output(mut source: OwnedReadHalf, sink: mpsc::Sender<ExecOutput>) {
    loop {
        let frame = tokio::select! {
            frame = Frame::read(&mut source) => frame,
            () = sink.closed() => return,
        };
        let output = match frame {
            Ok(Some(Frame::Stdout(bytes))) => ExecOutput::Stdout(bytes),
            Ok(Some(Frame::Stderr(bytes))) => ExecOutput::Stderr(bytes),
            Ok(Some(Frame::Exit(code))) => ExecOutput::Exit(code),
            Ok(Some(Frame::Lost(why))) => ExecOutput::Error(why),
            Ok(_) => return,
            Err(error) => ExecOutput::Error(format!("lost the node: {error}")),
        };
        let is_last = matches!(output, ExecOutput::Exit(_) | ExecOutput::Error(_));
        if sink.send(output).await.is_err() || is_last {
            return;
        }
    }
}

async fn carry_input(
    mut sink: OwnedWriteHalf,
    mut stdin: mpsc::Receiver<Bytes>,
    mut resize: mpsc::Receiver<(u16, u16)>,
) {
    let mut stdin_open = true;
    loop {
        let sent = tokio::select! {
            bytes = stdin.recv(), if stdin_open => match bytes {
                Some(bytes) => send_stdin(&mut sink, bytes).await,
                None => {
                    stdin_open = false;
                    Frame::StdinEnd.write(&mut sink).await
                }
            },
            Some((columns, rows)) = resize.recv() => Frame::Resize(columns, rows).write(&mut sink).await,
            else => std::future::pending().await,
        };
        if sent.is_err() {
            // The output side learns why.
            std::future::pending::<()>().await;
        }
    }
}

/// Sends input of any length in frames that the node accepts.
async fn send_stdin(sink: &mut OwnedWriteHalf, mut bytes: Bytes) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(MAX_INPUT));
        Frame::Stdin(piece).write(sink).await?;
    }
    Ok(())
}
