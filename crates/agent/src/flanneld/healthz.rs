//! `/healthz` and `/readyz`, for the probes of flannel's DaemonSet, and `/metrics`.

use std::net::SocketAddr;

use anyhow::Context;
use hyper::StatusCode;
use tokio::{net::TcpListener, sync::watch};

use super::metrics::Metrics;
use crate::http::{self, Page};

/// Answers from now on, in the background. `ready` says whether pods can be attached.
///
/// # Errors
/// The address cannot be listened on.
pub(super) async fn serve(
    address: SocketAddr,
    ready: watch::Receiver<bool>,
    metrics: Metrics,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address} for probes"))?;
    let bound = listener.local_addr()?;
    tokio::spawn(http::serve(listener, move |path| answer(path, *ready.borrow(), &metrics)));
    Ok(bound)
}

/// flannel's own answers.
fn answer(path: &str, ready: bool, metrics: &Metrics) -> Page {
    let (status, text) = match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "flanneld is running"),
        ("/readyz", true) => (StatusCode::OK, "flanneld is ready"),
        ("/metrics", _) => return metrics.registry.page(),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
        _ => (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics"),
    };
    http::text(status, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::get;

    #[tokio::test(flavor = "multi_thread")]
    async fn probes_learn_when_pods_can_be_attached() {
        let (tell, ready) = watch::channel(false);
        let address = serve(([127, 0, 0, 1], 0).into(), ready, Metrics::new()).await.unwrap();
        assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 503"));
        tell.send_replace(true);
        assert!(get(address, "/readyz").ends_with("flanneld is ready"));
        assert!(get(address, "/metrics").contains("podwire_overlay_operations_total 0"));
        assert!(get(address, "/elsewhere").starts_with("HTTP/1.1 404"));
    }
}
