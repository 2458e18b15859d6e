//! kube-proxy's metrics, by kube-proxy's names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The metrics; cheap to clone, all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    syncs: Histogram,
    full_syncs: Histogram,
    partial_syncs: Histogram,
    last_sync: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// Changes of Services that were received.
    pub service_changes: Counter,
    /// Changes of EndpointSlices that were received.
    pub endpoint_changes: Counter,
    /// Transactions that the kernel refused.
    pub failures: Counter,
    /// Kinds of stale UDP flows that were deleted.
    pub flow_deletions: Counter,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        // kube-proxy's buckets: from 1 ms, doubling.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            syncs: histogram(),
            full_syncs: histogram(),
            partial_syncs: histogram(),
            last_sync: Gauge::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            failures: Counter::default(),
            flow_deletions: Counter::default(),
        }
    }

    /// The rules were brought up to date, which took `time`.
    pub fn synced(&self, full: bool, time: Duration) {
        let seconds = time.as_secs_f64();
        self.syncs.observe(seconds);
        if full { &self.full_syncs } else { &self.partial_syncs }.observe(seconds);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_sync.set(now.as_secs_f64());
    }

    /// All metrics as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("kubeproxy");
        let rules = "sync_proxy_rules";
        registry.register(
            format!("{rules}_duration_seconds"),
            "Time to bring the rules up to date",
            self.syncs.clone(),
        );
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "Time to compare and write all rules",
            self.full_syncs.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Time to write what changed",
            self.partial_syncs.clone(),
        );
        registry.register(
            format!("{rules}_last_timestamp_seconds"),
            "When the rules were last brought up to date",
            self.last_sync.clone(),
        );
        registry.register(format!("{rules}_service_changes"), "Service changes", self.service_changes.clone());
        registry.register(format!("{rules}_endpoint_changes"), "EndpointSlice changes", self.endpoint_changes.clone());
        registry.register(
            format!("{rules}_nftables_sync_failures"),
            "Transactions that the kernel refused",
            self.failures.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Requests to delete stale UDP flows",
            self.flow_deletions.clone(),
        );
        let mut text = String::new();
        // Writing to a String does not fail.
        encode(&mut text, &registry).unwrap_or_default();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_kube_proxy() {
        let metrics = Metrics::new();
        metrics.synced(true, Duration::from_millis(3));
        metrics.synced(false, Duration::from_micros(20));
        metrics.service_changes.inc();
        let text = metrics.text();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1"), "{text}");
    }
}
