//! The pages that probes, load balancers and Prometheus read, as kube-proxy's.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use hyper::StatusCode;
use podwire_k8s::k8s_openapi::jiff::Timestamp;
use tokio::net::TcpListener;
use tracing::warn;

use super::Metrics;
use crate::http::{self, Page};

/// How long to wait before an address that is taken is tried again: the proxy that this one replaces may still have it.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// What the pages tell; cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    /// The metrics.
    pub metrics: Metrics,
    sync: Arc<Mutex<Sync>>,
    ineligible: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Sync {
    /// The mode at work.
    mode: &'static str,
    /// When the kernel was last brought up to date; `None` before the first time.
    updated: Option<Timestamp>,
    /// Since when it cannot be.
    behind: Option<Instant>,
    /// For how long it may be behind before this proxy counts as sick.
    patience: Duration,
}

impl State {
    /// Not in sync yet.
    pub fn new(mode: &'static str, metrics: Metrics, patience: Duration) -> Self {
        let sync = Sync { mode, updated: None, behind: None, patience };
        Self { metrics, sync: Arc::new(sync.into()), ineligible: Arc::default() }
    }

    /// The kernel does what the API says.
    pub fn in_sync(&self) {
        let mut sync = self.sync();
        (sync.updated, sync.behind) = (Some(Timestamp::now()), None);
    }

    /// The kernel could not be brought up to date.
    pub fn out_of_sync(&self) {
        self.sync().behind.get_or_insert_with(Instant::now);
    }

    /// For how long the kernel may be behind the API.
    pub fn set_patience(&self, patience: Duration) {
        self.sync().patience = patience;
    }

    /// Another mode is at work.
    pub fn set_mode(&self, mode: &'static str) {
        self.sync().mode = mode;
    }

    /// Whether this node is being deleted: load balancers should send nothing new here.
    pub fn node_is_deleting(&self, deleting: bool) {
        self.ineligible.store(deleting, Ordering::Relaxed);
    }

    /// Whether the kernel is, or soon will be, up to date.
    pub fn is_healthy(&self) -> bool {
        let sync = self.sync();
        sync.updated.is_some() && sync.is_in_time()
    }

    fn sync(&self) -> MutexGuard<'_, Sync> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sync {
    fn is_in_time(&self) -> bool {
        self.behind.is_none_or(|since| since.elapsed() < self.patience)
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

/// Serves until it is aborted. While the address is taken it is tried again, unless that is to be an error.
///
/// # Errors
/// The address cannot be listened on, and `hard_fail`.
pub async fn serve(address: SocketAddr, pages: Pages, state: State, hard_fail: bool) -> anyhow::Result<()> {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if hard_fail => bail!("cannot listen on {address} for {pages:?}: {error}"),
            Err(error) => warn!("cannot listen on {address} for {pages:?}, trying again: {error}"),
        }
        tokio::time::sleep(BIND_PAUSE).await;
    };
    http::serve(listener, move |path| answer(path, pages, &state)).await;
    Ok(())
}

fn answer(path: &str, pages: Pages, state: &State) -> Page {
    match (pages, path) {
        (Pages::Health, "/healthz") => health(state, true),
        (Pages::Health, "/livez") => health(state, false),
        (Pages::Metrics, "/healthz") => http::text(StatusCode::OK, "ok"),
        (Pages::Metrics, "/proxyMode") => http::text(StatusCode::OK, state.sync().mode),
        (Pages::Metrics, "/metrics") => state.metrics.registry.page(),
        _ => http::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// kube-proxy's body. `ready`: is it ready for new connections, rather than just alive? That takes a first complete
/// sync and a node that stays.
fn health(state: &State, ready: bool) -> Page {
    let now = Timestamp::now();
    let eligible = !state.ineligible.load(Ordering::Relaxed);
    let (healthy, updated) = {
        let sync = state.sync();
        (sync.is_in_time() && (!ready || (sync.updated.is_some() && eligible)), sync.updated)
    };
    // Readers expect a recent time while all is well, also when nothing changes.
    let updated = if healthy { updated.map(|_| now) } else { updated };
    let (updated, now) = (go_time(updated), go_time(Some(now)));
    let mut body = format!(r#"{{"lastUpdated": "{updated}","currentTime": "{now}""#);
    if ready {
        body.push_str(&format!(r#", "nodeEligible": {eligible}"#));
    }
    body.push('}');
    let (status, code) = if healthy { (StatusCode::OK, "200") } else { (StatusCode::SERVICE_UNAVAILABLE, "503") };
    let counters = if ready { &state.metrics.healthz } else { &state.metrics.livez };
    counters.get_or_create(&[("code", code)]).inc();
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

    const PATIENCE: Duration = Duration::from_secs(60);

    fn state() -> State {
        State::new("nftables", Metrics::new(), PATIENCE)
    }

    #[test]
    fn readiness_waits_for_the_first_sync_and_knows_a_node_that_goes() {
        let state = state();
        let status = |path| answer(path, Pages::Health, &state).status().as_u16();
        assert_eq!((status("/healthz"), status("/livez")), (503, 200));
        state.in_sync();
        assert_eq!((status("/healthz"), status("/livez"), status("/metrics")), (200, 200, 404));
        state.node_is_deleting(true);
        assert_eq!((status("/healthz"), status("/livez")), (503, 200));
        assert!(state.is_healthy(), "health checks of Services do not ask whether the node stays");
        let text = state.metrics.registry.text();
        assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 2"), "{text}");
    }

    #[test]
    fn a_kernel_that_refuses_is_forgiven_for_a_minute() {
        let state = state();
        let status = |path| answer(path, Pages::Health, &state).status().as_u16();
        state.out_of_sync();
        assert_eq!((status("/healthz"), status("/livez"), state.is_healthy()), (503, 200, false), "never in sync");
        state.in_sync();
        state.out_of_sync();
        assert_eq!((status("/healthz"), status("/livez"), state.is_healthy()), (200, 200, true));
        state.sync().behind = Instant::now().checked_sub(PATIENCE);
        state.out_of_sync();
        assert_eq!((status("/healthz"), status("/livez"), state.is_healthy()), (503, 503, false));
        state.set_patience(2 * PATIENCE);
        assert!(state.is_healthy());
        state.in_sync();
        assert_eq!(status("/healthz"), 200);
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
