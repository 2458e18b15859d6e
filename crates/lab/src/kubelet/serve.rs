//! The node's side of `kubectl logs` and `kubectl exec`: requests over the unix socket.

use std::{io, net::Shutdown, process::Stdio, sync::Arc, thread, time::Duration};

use bytes::{Bytes, BytesMut};
use podwire_apiserver::remote::{ExecRequest, LogRequest, RemoteError};
use podwire_kernel::process::{Pty, resize_terminal};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, ChildStdin},
    sync::mpsc,
};

use super::{
    frame::{Frame, Request},
    process::{self, CommandLine, DRAIN, Streams},
    registry::Registry,
};
use crate::container::Exec;

/// How many pieces of output may wait.
const QUEUE: usize = 16;

/// Answers requests until dropped.
pub async fn serve(listener: UnixListener, registry: Arc<Registry>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = registry.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &registry).await {
                        tracing::debug!(%error, "a request for logs or exec broke off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a request for logs or exec");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, registry: &Registry) -> io::Result<()> {
    let (mut source, mut sink) = stream.into_split();
    let refusal = match Frame::read(&mut source).await? {
        Some(Frame::Request(Request::Logs(request))) => match registry.log(&request) {
            Ok(log) => return logs(log, request, source, sink).await,
            Err(error) => error,
        },
        Some(Frame::Request(Request::Exec(request))) => match exec(registry, &request).await {
            Ok(session) => return session.run(source, sink).await,
            Err(error) => error,
        },
        _ => RemoteError::BadRequest("expected a request".to_owned()),
    };
    Frame::Refused(refusal).write(&mut sink).await
}

async fn logs(
    log: super::logs::Log,
    request: LogRequest,
    mut source: OwnedReadHalf,
    mut sink: OwnedWriteHalf,
) -> io::Result<()> {
    Frame::Accepted.write(&mut sink).await?;
    let (pieces, mut queue) = mpsc::channel(QUEUE);
    let read = log.read(&request, pieces);
    let carry = async {
        while let Some(bytes) = queue.recv().await {
            Frame::Stdout(bytes).write(&mut sink).await?;
        }
        io::Result::Ok(())
    };
    let mut nothing = [0];
    let outcome = tokio::select! {
        outcome = async { tokio::join!(read, carry) } => outcome,
        // Nothing is sent after the request: this is the other side hanging up.
        _ = source.read(&mut nothing) => return Ok(()),
    };
    match outcome {
        (Err(why), Ok(())) => Frame::Lost(why).write(&mut sink).await,
        (_, carried) => carried,
    }
}

/// A command that runs for a request.
struct Session {
    child: Child,
    stdin: Input,
    stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

enum Input {
    None,
    Pipe(ChildStdin),
    /// The way to the terminal, and the terminal itself, for its size.
    Terminal(OwnedWriteHalf, std::fs::File),
}

async fn exec(registry: &Registry, request: &ExecRequest) -> Result<Session, RemoteError> {
    if request.command.is_empty() {
        return Err(RemoteError::BadRequest("no command to run".to_owned()));
    }
    let run = registry.running(&request.namespace, &request.pod, &request.container)?;
    let spec = Exec { pid: run.pid, tty: request.tty, identity: run.identity };
    let mut line = CommandLine { argv: request.command.clone(), env: run.env };
    if request.tty {
        line.env.push(("TERM".to_owned(), "xterm".to_owned()));
        return exec_on_terminal(spec, &line).await.map_err(RemoteError::Unavailable);
    }
    let piped = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
    let streams = Streams { stdin: piped(request.stdin), stdout: piped(request.stdout), stderr: piped(request.stderr) };
    let mut child = process::exec(spec, &line, streams).await.map_err(RemoteError::Unavailable)?;
    Ok(Session {
        stdin: child.stdin.take().map_or(Input::None, Input::Pipe),
        stdout: child.stdout.take().map(|s| Box::new(s) as _),
        stderr: child.stderr.take().map(|s| Box::new(s) as _),
        child,
    })
}

async fn exec_on_terminal(spec: Exec, line: &CommandLine) -> Result<Session, String> {
    let failed = |e: io::Error| e.to_string();
    let Pty { controller, terminal } = Pty::open().map_err(|e| e.to_string())?;
    let stream = || terminal.try_clone().map(Stdio::from).map_err(failed);
    let streams = Streams { stdin: stream()?, stdout: stream()?, stderr: stream()? };
    drop(terminal);
    let driver = std::fs::File::from(controller);
    let (stdout, stdin) = drive(&driver).map_err(failed)?.into_split();
    let child = process::exec(spec, line, streams).await?;
    Ok(Session { child, stdin: Input::Terminal(stdin, driver), stdout: Some(Box::new(stdout)), stderr: None })
}

/// A stream that is the driving end of a terminal, which itself can only be used by threads that wait. They end when
/// nobody has the terminal open any more, or when the stream is closed.
fn drive(driver: &std::fs::File) -> io::Result<UnixStream> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let (mut from_terminal, mut to_stream) = (driver.try_clone()?, far.try_clone()?);
    let (mut from_stream, mut to_terminal) = (far, driver.try_clone()?);
    thread::Builder::new().name("terminal-output".into()).spawn(move || {
        // The end is an error (EIO): the last process has closed the terminal.
        let _ = io::copy(&mut from_terminal, &mut to_stream);
        let _ = to_stream.shutdown(Shutdown::Both);
    })?;
    thread::Builder::new().name("terminal-input".into()).spawn(move || {
        let _ = io::copy(&mut from_stream, &mut to_terminal);
    })?;
    near.set_nonblocking(true)?;
    UnixStream::from_std(near)
}

impl Session {
    /// Carries input and output until the command has ended; hanging up kills it.
    async fn run(mut self, source: OwnedReadHalf, mut sink: OwnedWriteHalf) -> io::Result<()> {
        Frame::Accepted.write(&mut sink).await?;
        let (frames, mut queue) = mpsc::channel(QUEUE);
        let stdout = tokio::spawn(carry(self.stdout.take(), frames.clone(), Frame::Stdout));
        let stderr = tokio::spawn(carry(self.stderr.take(), frames.clone(), Frame::Stderr));
        let input = input(source, self.stdin);
        let end = async {
            let status = self.child.wait().await;
            let drained = async { tokio::join!(stdout, stderr) };
            let _ = tokio::time::timeout(DRAIN, drained).await;
            let last = match status {
                Ok(status) => Frame::Exit(process::exit_code(status)),
                Err(error) => Frame::Lost(format!("lost the command: {error}")),
            };
            let _ = frames.send(last).await;
        };
        let output = async {
            while let Some(frame) = queue.recv().await {
                frame.write(&mut sink).await?;
                if matches!(frame, Frame::Exit(_) | Frame::Lost(_)) {
                    return Ok(());
                }
            }
            io::Result::Ok(())
        };
        tokio::select! {
            ((), sent) = async { tokio::join!(end, output) } => sent,
            // The other side hung up; dropping the child kills it.
            () = input => Ok(()),
        }
    }
}

/// Passes input on until the other side hangs up.
async fn input(mut source: OwnedReadHalf, mut stdin: Input) {
    while let Ok(Some(frame)) = Frame::read(&mut source).await {
        // A command that does not read its input, or has ended, is no reason to stop listening for the end.
        match (frame, &mut stdin) {
            (Frame::Stdin(bytes), Input::Pipe(pipe)) => drop(pipe.write_all(&bytes).await),
            (Frame::Stdin(bytes), Input::Terminal(terminal, _)) => drop(terminal.write_all(&bytes).await),
            (Frame::StdinEnd, Input::Pipe(_)) => stdin = Input::None,
            // ^D, as a person at the terminal would say it.
            (Frame::StdinEnd, Input::Terminal(terminal, _)) => drop(terminal.write_all(&[4]).await),
            (Frame::Resize(columns, rows), Input::Terminal(_, terminal)) => {
                let _ = resize_terminal(terminal, columns, rows);
            }
            _ => {}
        }
    }
}

async fn carry(
    source: Option<Box<dyn AsyncRead + Send + Unpin>>,
    sink: mpsc::Sender<Frame>,
    frame: impl Fn(Bytes) -> Frame,
) {
    let Some(mut source) = source else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(8192);
        match source.read_buf(&mut buffer).await {
            Ok(1..) if sink.send(frame(buffer.split().freeze())).await.is_ok() => {}
            _ => return,
        }
    }
}
