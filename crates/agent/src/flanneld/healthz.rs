//! `/healthz` and `/readyz`, for the probes of flannel's DaemonSet.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Context;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};
use tracing::{debug, warn};

/// Answers from now on, in the background. `ready` says whether pods can be attached.
///
/// # Errors
/// The address cannot be listened on.
pub(super) async fn serve(address: SocketAddr, ready: watch::Receiver<bool>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address} for probes"))?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => TokioIo::new(stream),
                Err(error) => {
                    warn!(%error, "a probe could not connect");
                    continue;
                }
            };
            let ready = ready.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let (status, text) = answer(request.uri().path(), *ready.borrow());
                let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                *response.status_mut() = status;
                async { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(async move {
                if let Err(error) = http1::Builder::new().serve_connection(stream, answer).await {
                    debug!(%error, "a probe broke off");
                }
            });
        }
    });
    Ok(bound)
}

/// flannel's own answers.
fn answer(path: &str, ready: bool) -> (StatusCode, &'static str) {
    match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "flanneld is running"),
        ("/readyz", true) => (StatusCode::OK, "flanneld is ready"),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
        _ => (StatusCode::NOT_FOUND, "there are /healthz and /readyz"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn probes_learn_when_pods_can_be_attached() {
        let (tell, ready) = watch::channel(false);
        let address = serve(([127, 0, 0, 1], 0).into(), ready).await.unwrap();
        assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 503"));
        tell.send_replace(true);
        assert!(get(address, "/readyz").ends_with("flanneld is ready"));
        assert!(get(address, "/elsewhere").starts_with("HTTP/1.1 404"));
    }
}
