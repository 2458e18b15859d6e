//! The pages that probes, load balancers and Prometheus read, as kube-proxy's.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::StatusCode;
use podwire_k8s::k8s_openapi::jiff::Timestamp;
use tokio::net::TcpListener;
use tracing::warn;

use super::Metrics;
use crate::http::{self, Page};

/// How long to wait before an address that is taken is tried again: the proxy that this one replaces may still have it.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// For how long the kernel may be behind the API before this proxy counts as sick, as kube-proxy has it by default:
/// twice its syncPeriod.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the pages tell; cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    mode: &'static str,
    /// The metrics.
    pub metrics: Metrics,
    sync: Arc<Mutex<Sync>>,
    deleting: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Sync {
    /// When the kernel was last brought up to date; `None` before the first time.
    updated: Option<Timestamp>,
    /// Since when it cannot be.
    behind: Option<Instant>,
}

impl State {
    /// Not in sync yet.
    pub fn new(mode: &'static str, metrics: Metrics) -> Self {
        Self { mode, metrics, sync: Arc::default(), deleting: Arc::default() }
    }

    /// The kernel does what the API says.
    pub fn in_sync(&self) {
        *self.sync() = Sync { updated: Some(Timestamp::now()), behind: None };
    }

    /// The kernel could not be brought up to date.
    pub fn out_of_sync(&self) {
        self.sync().behind.get_or_insert_with(Instant::now);
    }

    /// Whether this node is being deleted: load balancers should send nothing new here.
    pub fn node_is_deleting(&self, deleting: bool) {
        self.deleting.store(deleting, Ordering::Relaxed);
    }

    fn sync(&self) -> MutexGuard<'_, Sync> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kernel is, or soon will be, up to date; and when it last was.
    fn health(&self, now: Timestamp) -> (bool, Option<Timestamp>) {
        let sync = self.sync();
        let alive = sync.updated.is_some() && sync.behind.is_none_or(|since| since.elapsed() < PATIENCE);
        // Readers expect a recent time while all is well, also when nothing changes.
        (alive, if alive { Some(now) } else { sync.updated })
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
    http::serve(listener, move |path| answer(path, pages, &state)).await;
}

fn answer(path: &str, pages: Pages, state: &State) -> Page {
    match (pages, path) {
        (Pages::Health, "/healthz") => health(state, true),
        (Pages::Health, "/livez") => health(state, false),
        (Pages::Metrics, "/healthz") => http::text(StatusCode::OK, "ok"),
        (Pages::Metrics, "/proxyMode") => http::text(StatusCode::OK, state.mode),
        (Pages::Metrics, "/metrics") => {
            let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            http::page(StatusCode::OK, openmetrics, state.metrics.text())
        }
        _ => http::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// kube-proxy's body. `eligibility`: also tell whether load balancers may send new connections to this node.
fn health(state: &State, eligibility: bool) -> Page {
    let now = Timestamp::now();
    let (alive, updated) = state.health(now);
    let eligible = !state.deleting.load(Ordering::Relaxed);
    let (updated, now) = (go_time(updated), go_time(Some(now)));
    let mut body = format!(r#"{{"lastUpdated": "{updated}","currentTime": "{now}""#);
    if eligibility {
        body.push_str(&format!(r#", "nodeEligible": {eligible}"#));
    }
    body.push('}');
    let healthy = alive && (eligible || !eligibility);
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    http::page(status, "application/json", body)
}

/// A time in the form in which kube-proxy prints it.
fn go_time(time: Option<Timestamp>) -> String {
    time.map_or_else(
        || "0001-01-01 00:00:00 +0000 UTC".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    fn state() -> State {
        State::new("nftables", Metrics::new())
    }

    #[test]
    fn health_waits_for_the_first_sync_and_knows_a_node_that_goes() {
        let state = state();
        let status = |path| answer(path, Pages::Health, &state).status().as_u16();
        assert_eq!((status("/healthz"), status("/livez")), (503, 503));
        state.in_sync();
        assert_eq!((status("/healthz"), status("/livez"), status("/metrics")), (200, 200, 404));
        state.node_is_deleting(true);
        assert_eq!((status("/healthz"), status("/livez")), (503, 200));
    }

    #[test]
    fn a_kernel_that_refuses_is_forgiven_for_a_minute() {
        let state = state();
        let status = || answer("/livez", Pages::Health, &state).status().as_u16();
        state.out_of_sync();
        assert_eq!(status(), 503, "never in sync");
        state.in_sync();
        state.out_of_sync();
        assert_eq!(status(), 200);
        state.sync().behind = Instant::now().checked_sub(PATIENCE);
        state.out_of_sync();
        assert_eq!(status(), 503);
        state.in_sync();
        assert_eq!(status(), 200);
    }

    #[tokio::test]
    async fn the_body_is_that_of_kube_proxy() {
        let state = state();
        let body = async |path| {
            let body = answer(path, Pages::Health, &state).into_body().collect().await.unwrap();
            serde_json::from_slice::<Value>(&body.to_bytes()).unwrap()
        };
        let before = body("/healthz").await;
        assert_eq!(before["lastUpdated"], "0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(before["nodeEligible"], true);
        state.in_sync();
        let after = body("/healthz").await;
        assert_eq!(after["lastUpdated"], after["currentTime"]);
        let livez = body("/livez").await;
        assert_eq!(livez.as_object().unwrap().keys().collect::<Vec<_>>(), ["currentTime", "lastUpdated"]);
        let time = Timestamp::from_nanosecond(1_800_000_000_250_000_000).unwrap();
        assert_eq!(go_time(Some(time)), "2027-01-15 08:00:00.25 +0000 UTC");
    }

    #[test]
    fn metrics_and_the_mode_are_on_the_other_port() {
        for path in ["/metrics", "/proxyMode", "/healthz"] {
            assert_eq!(answer(path, Pages::Metrics, &state()).status(), StatusCode::OK, "{path}");
        }
    }
}
