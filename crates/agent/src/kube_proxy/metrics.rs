//! kube-proxy's metrics by kube-proxy's names, and a few of our own. Both address families are brought up to date in
//! one go, so there is no label `ip_family`.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::metrics::{Counters, Gauges, Make, Registered};

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics; cheap to clone, all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// All of them.
    pub registry: Registered,
    syncs: Histogram,
    full_syncs: Histogram,
    partial_syncs: Histogram,
    last_sync: Seconds,
    last_queued: Seconds,
    /// From an endpoint's change, as the control plane dates it, to the kernel.
    pub network_programming: Histogram,
    /// Changes of Services that were received.
    pub service_changes: Counter,
    /// Those not in the kernel yet.
    pub service_changes_pending: Gauge,
    /// Changes of EndpointSlices that were received.
    pub endpoint_changes: Counter,
    /// Those not in the kernel yet.
    pub endpoint_changes_pending: Gauge,
    /// Services with a Local policy (`traffic_policy` internal or external) and no endpoint for it here.
    pub no_local_endpoints: Gauges,
    /// Syncs that the kernel refused in nftables mode.
    pub nftables_failures: Counter,
    /// Syncs that failed in modes with iptables rules.
    pub iptables_failures: Counter,
    /// Removals of another mode's leftovers that failed.
    pub cleanup_failures: Counter,
    /// Answers at `/healthz`, by status.
    pub healthz: Counters,
    /// Answers at `/livez`, by status.
    pub livez: Counters,
    /// Time to delete stale UDP flows.
    pub conntrack_syncs: Histogram,
    /// Kinds of stale UDP flows that were deleted.
    pub flow_deletions: Counter,
    /// Times that somebody else changed what the mode made.
    pub disturbances: Counter,
    /// Objects and fields of them that cannot be served as written, now.
    pub problems: Gauge,
    /// Changes of the configuration that were refused.
    pub config_errors: Counter,
    /// Times that another mode, or the same with other settings, took over.
    pub switches: Counter,
    /// 1 while another mode than the configured one is at work.
    pub fallback: Gauge,
    /// Watches that went quiet and were started anew.
    pub watch_restarts: Counter,
    /// Ports for health checks that cannot be listened on, now.
    pub health_check_failures: Gauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut make = Make::default();
        let rules = |name: &str| format!("kubeproxy_sync_proxy_rules_{name}");
        let mut metrics = Self {
            registry: Registered::default(),
            syncs: make.seconds(&rules("duration_seconds"), "Time to bring the rules up to date"),
            full_syncs: make
                .seconds("kubeproxy_sync_full_proxy_rules_duration_seconds", "Time to compare and write all rules"),
            partial_syncs: make
                .seconds("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Time to write what changed"),
            last_sync: make.put(
                &rules("last_timestamp_seconds"),
                "When the rules were last brought up to date",
                Seconds::default(),
            ),
            last_queued: make.put(
                &rules("last_queued_timestamp_seconds"),
                "When a change last came in",
                Seconds::default(),
            ),
            network_programming: make.put(
                "kubeproxy_network_programming_duration_seconds",
                "From an endpoint's change to the kernel",
                Histogram::new(programming_buckets()),
            ),
            service_changes: make.counter(&rules("service_changes"), "Service changes"),
            service_changes_pending: make.gauge(&rules("service_changes_pending"), "Service changes under way"),
            endpoint_changes: make.counter(&rules("endpoint_changes"), "EndpointSlice changes"),
            endpoint_changes_pending: make.gauge(&rules("endpoint_changes_pending"), "EndpointSlice changes under way"),
            no_local_endpoints: make.put(
                &rules("no_local_endpoints_total"),
                "Services with a Local policy and no endpoint for it on this node",
                Gauges::default(),
            ),
            nftables_failures: make.counter(&rules("nftables_sync_failures"), "Syncs that the kernel refused"),
            iptables_failures: make.counter(&rules("iptables_restore_failures"), "Syncs that iptables refused"),
            cleanup_failures: make
                .counter(&rules("nftables_cleanup_failures"), "Failures to remove what another mode left"),
            healthz: make.put("kubeproxy_proxy_healthz", "Answers at /healthz", Counters::default()),
            livez: make.put("kubeproxy_proxy_livez", "Answers at /livez", Counters::default()),
            conntrack_syncs: make
                .seconds("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Time to delete stale UDP flows"),
            flow_deletions: make
                .counter("kubeproxy_conntrack_reconciler_deleted_entries", "Requests to delete stale UDP flows"),
            disturbances: make.counter("podwire_proxy_disturbances", "Times that somebody else changed the rules"),
            problems: make.gauge("podwire_proxy_problems", "What cannot be served as written, now"),
            config_errors: make
                .counter("podwire_proxy_config_errors", "Changes of the configuration that were refused"),
            switches: make.counter("podwire_proxy_mode_switches", "Times that a mode took over from another"),
            fallback: make
                .gauge("podwire_proxy_mode_fallback", "1 while another mode than the configured one is at work"),
            watch_restarts: make
                .counter("podwire_proxy_watch_restarts", "Watches that went quiet and were started anew"),
            health_check_failures: make
                .gauge("podwire_proxy_health_check_failures", "Health check ports that cannot be listened on, now"),
        };
        for code in ["200", "503"] {
            drop((metrics.healthz.get_or_create(&[("code", code)]), metrics.livez.get_or_create(&[("code", code)])));
        }
        metrics.registry = make.done();
        metrics
    }

    /// A change came in.
    pub fn queued(&self) {
        self.last_queued.set(now());
    }

    /// The rules were brought up to date, which took `time`.
    pub fn synced(&self, full: bool, time: Duration) {
        let seconds = time.as_secs_f64();
        self.syncs.observe(seconds);
        if full { &self.full_syncs } else { &self.partial_syncs }.observe(seconds);
        self.last_sync.set(now());
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// kube-proxy's: a quarter and a half second, each second of the first minute, each five of the second, then half
/// minutes.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let steps = |from: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(from + n * step));
    [0.25, 0.5].into_iter().chain(steps(1, 1, 59)).chain(steps(60, 5, 12)).chain(steps(120, 30, 7))
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
        metrics.healthz.get_or_create(&[("code", "503")]).inc();
        metrics.no_local_endpoints.get_or_create(&[("traffic_policy", "external")]).set(2);
        let text = metrics.registry.text();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_count 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 2",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 0",
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total 0",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 0",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 0",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total 0",
            "podwire_proxy_disturbances_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1"), "{text}");
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 0"), "{text}");
    }
}
