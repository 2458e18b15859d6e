//! The pages that probes and Prometheus read.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use tracing::debug;

use super::Shared;
use crate::program::Page;

/// Connections at once.
const MAX_CONNECTIONS: usize = 100;
/// How long a client may take to ask.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last: probes open a new one each time.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long to rest after a connection could not be accepted.
const REST: Duration = Duration::from_millis(10);

/// Serves the pages that the program in force has under `named`, until it is aborted.
pub(super) async fn serve(listener: TcpListener, named: SocketAddr, shared: Arc<Shared>) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(permit) = limit.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("http accept: {error}");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let response = respond(request.uri().path(), named, &shared);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
            let connection = builder.serve_connection(TokioIo::new(stream), answer);
            if let Ok(Err(error)) = timeout(CONNECTION_TIME, connection).await {
                debug!("http: {error}");
            }
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
}

fn respond(path: &str, named: SocketAddr, shared: &Shared) -> Response<Full<Bytes>> {
    let program = shared.program.get();
    let pages = program.pages.get(&named);
    let page = pages.and_then(|pages| pages.iter().find(|page| page.path() == path.trim_end_matches('/')));
    let (status, kind, body) = match page {
        Some(Page::Health) => (StatusCode::OK, "text/plain", "OK".into()),
        Some(Page::Ready) if shared.is_ready() => (StatusCode::OK, "text/plain", "OK".into()),
        Some(Page::Ready) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready".into()),
        Some(Page::Metrics) => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", shared.metrics.encode())
        }
        None => (StatusCode::NOT_FOUND, "text/plain", "not found".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
