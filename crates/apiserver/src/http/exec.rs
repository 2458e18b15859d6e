//! `pods/NAME/exec`: a command in a container, over a WebSocket.
//!
//! Each binary message begins with the number of its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4
//! terminal sizes, and from `v5.channel.k8s.io` on 255, which closes the channel named by the next byte
//! (KEP-4006). `kubectl` before 1.30 speaks SPDY instead, which is refused with a clear message.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch::Receiver},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::{
    Context,
    body::{Body, whole},
    logs::remote,
    path::Target,
    stopped, subresource,
};
use crate::{
    object::number,
    remote::{ExecOutput, ExecRequest, ExecSession},
    status::Status,
};

/// The subprotocols spoken, best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Starts the command and turns the connection into a WebSocket. Once the handshake is understood, a failure is told
/// inside the WebSocket: `kubectl` takes any other answer for a server without WebSockets.
pub(super) async fn exec(
    context: Context,
    target: Target,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let (protocol, accept) = handshake(request.headers())?;
    let session = start(&context, &target).await;
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, None).await;
                match session {
                    Ok(session) => carry(socket, session, context.stopping).await,
                    Err(status) => refuse(socket, &status).await,
                }
            }
            Err(error) => tracing::debug!(%error, "exec connection was not upgraded"),
        }
    });
    let mut response = whole(StatusCode::SWITCHING_PROTOCOLS, "", Bytes::new());
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

async fn start(context: &Context, target: &Target) -> Result<ExecSession, Status> {
    let key = target.key();
    let pod = context.api.get(target.kind, &key)?;
    let query = &context.query;
    let exec = ExecRequest {
        container: subresource::container(target.kind, pod.value(), query.text("container"))?,
        namespace: key.namespace,
        pod: key.name,
        command: query.all("command").map(str::to_owned).collect(),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if exec.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    let node = subresource::node(pod.value())?;
    context.api.nodes.exec(&node, exec).await.map_err(|e| remote(&e))
}

/// Says on the status channel why nothing was started.
async fn refuse(mut socket: WebSocketStream<TokioIo<Upgraded>>, status: &Status) {
    for message in last_words(&status.to_value()) {
        if socket.send(message).await.is_err() {
            return;
        }
    }
    farewell(async { while let Some(Ok(_)) = socket.next().await {} }).await;
}

/// The subprotocol to speak and the proof that the handshake was understood.
fn handshake(headers: &HeaderMap) -> Result<(&'static str, HeaderValue), Status> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if text(header::UPGRADE).to_ascii_lowercase().starts_with("spdy/") {
        return Err(Status::bad_request(
            "this API server speaks WebSocket for exec, not SPDY: use kubectl 1.30 or newer, or `podwire lab exec pod/NAME`",
        ));
    }
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err(Status::bad_request("exec needs a WebSocket: the request asks for no upgrade"));
    }
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    let Some(protocol) = PROTOCOLS.into_iter().find(|p| offered.contains(p)) else {
        return Err(Status::bad_request(format!("unable to upgrade: none of {offered:?} is one of {PROTOCOLS:?}")));
    };
    let key = text(header::SEC_WEBSOCKET_KEY);
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    match accept {
        Ok(accept) if !key.is_empty() => Ok((protocol, accept)),
        _ => Err(Status::bad_request("the WebSocket handshake has no Sec-WebSocket-Key")),
    }
}

/// Carries bytes between the client and the command until the command ends, the client leaves, or the server stops.
async fn carry(socket: WebSocketStream<TokioIo<Upgraded>>, session: ExecSession, mut stopping: Receiver<bool>) {
    let ExecSession { stdin, resize, mut output } = session;
    let (mut sink, mut source) = socket.split();
    let from_client = async {
        let mut stdin = Some(stdin);
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => receive(bytes, &mut stdin, &resize).await,
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    let to_client = async {
        let status = loop {
            let (channel, bytes) = match output.recv().await {
                Some(ExecOutput::Stdout(bytes)) => (STDOUT, bytes),
                Some(ExecOutput::Stderr(bytes)) => (STDERR, bytes),
                Some(ExecOutput::Exit(code)) => break exit_status(code),
                Some(ExecOutput::Error(why)) => break Status::internal(why).to_value(),
                None => break Status::internal("the node was lost while the command ran").to_value(),
            };
            if sink.send(message(channel, &bytes)).await.is_err() {
                return;
            }
        };
        for message in last_words(&status) {
            if sink.send(message).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(from_client);
    tokio::select! {
        () = &mut from_client => {}
        () = to_client => farewell(from_client).await,
        () = stopped(&mut stopping) => {}
    }
}

/// The Status, and that nothing comes after it: without the close code the client takes the end for an accident.
fn last_words(status: &Value) -> [Message; 2] {
    let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
    [message(STATUS, status.to_string().as_bytes()), Message::Close(Some(normal))]
}

/// Reads on until the client has closed its side: closing a connection on which bytes wait would take back what was
/// sent last.
async fn farewell(reading: impl Future<Output = ()>) {
    // A client that does not close has lost its right to the last bytes.
    let _ = timeout(Duration::from_secs(2), reading).await;
}

/// Passes on one message of the client.
async fn receive(mut bytes: Bytes, stdin: &mut Option<mpsc::Sender<Bytes>>, resize: &mpsc::Sender<(u16, u16)>) {
    if bytes.is_empty() {
        return;
    }
    let channel = bytes.split_to(1)[0];
    match channel {
        STDIN if !bytes.is_empty() => {
            if let Some(sender) = stdin
                && sender.send(bytes).await.is_err()
            {
                *stdin = None;
            }
        }
        CLOSE if bytes.first() == Some(&STDIN) => *stdin = None,
        RESIZE => {
            let size = serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
            let part = |field| number(&size, field).and_then(|n| u16::try_from(n).ok());
            if let (Some(width), Some(height)) = (part("/Width"), part("/Height")) {
                // Only the newest size matters: when the node is behind, this one may be lost.
                let _ = resize.try_send((width, height));
            }
        }
        _ => {}
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel);
    framed.put_slice(bytes);
    Message::Binary(framed.freeze())
}

/// The Status that ends an exec, as `kubectl` reads the exit code from it.
fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn the_best_common_protocol_is_spoken() {
        let offer = headers(&[
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "v4.channel.k8s.io, v5.channel.k8s.io"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        let (protocol, accept) = handshake(&offer).unwrap();
        assert_eq!(protocol, "v5.channel.k8s.io");
        // The example of RFC 6455, 1.3.
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn spdy_is_told_what_to_do() {
        let status = handshake(&headers(&[("upgrade", "SPDY/3.1")])).unwrap_err();
        assert!(status.message.contains("kubectl 1.30"), "{status}");
        assert!(handshake(&HeaderMap::new()).is_err());
    }

    #[tokio::test]
    async fn closing_standard_input_is_its_end() {
        let (sender, mut receiver) = mpsc::channel(4);
        let (resize, mut sizes) = mpsc::channel(4);
        let mut stdin = Some(sender);
        receive(Bytes::from_static(b"\0abc"), &mut stdin, &resize).await;
        receive(Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}"), &mut stdin, &resize).await;
        receive(Bytes::from_static(b"\xff\0"), &mut stdin, &resize).await;
        assert_eq!(receiver.recv().await.unwrap(), "abc");
        assert_eq!(receiver.recv().await, None);
        assert_eq!(sizes.recv().await, Some((80, 24)));
    }
}
