//! TLS connections: accepting them, and speaking HTTP/1.1 or HTTP/2 on them.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch::Receiver,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::stopped;
use crate::registry::Api;

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A socket to serve on, and how.
pub(crate) struct Listener {
    pub socket: TcpListener,
    pub tls: TlsAcceptor,
}

/// Accepts connections until the server stops.
pub(crate) async fn serve(listener: Listener, api: Arc<Api>, mut stopping: Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            () = stopped(&mut stopping) => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (tls, api, stopping) = (listener.tls.clone(), api.clone(), stopping.clone());
                tokio::spawn(connection(socket, peer, tls, api, stopping));
            }
            Err(error) => {
                // Out of file descriptors, mostly: some may be free again soon.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    socket: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    api: Arc<Api>,
    mut stopping: Receiver<bool>,
) {
    // Watch events are small and must not wait for more.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let stream = match timeout(HANDSHAKE, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let service = {
        let stopping = stopping.clone();
        service_fn(move |request| {
            let answer = super::answer(api.clone(), stopping.clone(), request);
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).max_concurrent_streams(1000);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
