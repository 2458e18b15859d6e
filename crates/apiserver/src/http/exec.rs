//! `pods/NAME/exec`: a command in a container, over a WebSocket.
//!
//! Each binary message begins with the number of its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4
//! terminal sizes, and from `v5.channel.k8s.io` on 255, which closes the channel named by the next byte
//! (KEP-4006). `kubectl` before 1.30 speaks SPDY instead, which is refused with a clear message.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch::Receiver};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
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

/// Starts the command, then turns the connection into a WebSocket.
pub(super) async fn exec(
    context: Context,
    target: Target,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let (protocol, accept) = handshake(request.headers())?;
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
    let session = context.api.nodes.exec(&node, exec).await.map_err(|e| remote(&e))?;
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(connection) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, None).await;
                carry(socket, session, context.stopping).await;
            }
            Err(error) => tracing::debug!(%error, "exec connection was not upgraded"),
        }
    });
    let mut response = whole(StatusCode::SWITCHING_PROTOCOLS, "application/octet-stream", Bytes::new());
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The subprotocol to speak and the proof that the handshake was understood.
fn handshake(headers: &HeaderMap) -> Result<(&'static str, HeaderValue), Status> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if text(header::UPGRADE).to_ascii_lowercase().starts_with("spdy/") {
        return Err(Status::bad_request(
            "this API server speaks WebSocket for exec, not SPDY: use kubectl 1.30 or newer, or `podwire lab exec`",
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
        let last = message(STATUS, status.to_string().as_bytes());
        if sink.send(last).await.is_ok() {
            // 1000: without a code, kubectl takes the end for a failure. The client may be gone already; so be it.
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = sink.send(Message::Close(Some(normal))).await;
        }
    };
    tokio::select! {
        () = from_client => {}
        () = to_client => {}
        () = stopped(&mut stopping) => {}
    }
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
