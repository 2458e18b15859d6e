//! The pages that probes and Prometheus read.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::Metrics;

/// How long to wait before an address that is taken is tried again: the proxy that this one replaces may still have it.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// How long a client may take to ask.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// What the pages tell; cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    mode: &'static str,
    /// The metrics.
    pub metrics: Metrics,
    synced: Arc<AtomicBool>,
    deleting: Arc<AtomicBool>,
}

impl State {
    /// Not in sync yet.
    pub fn new(mode: &'static str, metrics: Metrics) -> Self {
        Self { mode, metrics, synced: Arc::default(), deleting: Arc::default() }
    }

    /// Whether the kernel does what the API says.
    pub fn is_synced(&self, synced: bool) {
        self.synced.store(synced, Ordering::Relaxed);
    }

    /// Whether this node is being deleted: load balancers should send nothing new here.
    pub fn node_is_deleting(&self, deleting: bool) {
        self.deleting.store(deleting, Ordering::Relaxed);
    }

    fn alive(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    fn eligible(&self) -> bool {
        !self.deleting.load(Ordering::Relaxed)
    }
}

/// Which pages a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// `/healthz` and `/livez`.
    Health,
    /// `/metrics`, `/proxyMode` and `/healthz`.
    Metrics,
}

/// Serves until it is aborted.
pub async fn serve(address: SocketAddr, pages: Pages, state: State) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => warn!("cannot listen on {address} for {pages:?}, trying again: {error}"),
        }
        tokio::time::sleep(BIND_PAUSE).await;
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => TokioIo::new(stream),
            Err(error) => {
                debug!("http accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let state = state.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let response = respond(request.uri().path(), pages, &state);
            async { Ok::<_, Infallible>(response) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
        let connection = builder.serve_connection(stream, answer);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("http: {error}");
            }
        });
    }
}

fn respond(path: &str, pages: Pages, state: &State) -> Response<Full<Bytes>> {
    let health = |healthy: bool| {
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = format!(r#"{{"healthy":{healthy},"synced":{},"nodeEligible":{}}}"#, state.alive(), state.eligible());
        (status, "application/json", body)
    };
    let (status, kind, body) = match (pages, path) {
        (Pages::Health, "/healthz") => health(state.alive() && state.eligible()),
        (Pages::Health, "/livez") => health(state.alive()),
        (Pages::Metrics, "/healthz") => (StatusCode::OK, "text/plain", "ok".to_owned()),
        (Pages::Metrics, "/proxyMode") => (StatusCode::OK, "text/plain", state.mode.to_owned()),
        (Pages::Metrics, "/metrics") => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", state.metrics.text())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "not found".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_waits_for_the_first_sync_and_knows_a_node_that_goes() {
        let state = State::new("nftables", Metrics::new());
        let status = |path| respond(path, Pages::Health, &state).status().as_u16();
        assert_eq!((status("/healthz"), status("/livez")), (503, 503));
        state.is_synced(true);
        assert_eq!((status("/healthz"), status("/livez"), status("/metrics")), (200, 200, 404));
        state.node_is_deleting(true);
        assert_eq!((status("/healthz"), status("/livez")), (503, 200));
    }

    #[test]
    fn metrics_and_the_mode_are_on_the_other_port() {
        let state = State::new("nftables", Metrics::new());
        for path in ["/metrics", "/proxyMode", "/healthz"] {
            assert_eq!(respond(path, Pages::Metrics, &state).status(), StatusCode::OK, "{path}");
        }
    }
}
