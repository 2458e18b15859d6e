//! What flanneld counts. The original has no metrics; these are Podwire's own.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::metrics::{Counters, Gauges, Make, Registered};

/// The metrics; cheap to clone, all clones count together.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    /// All of them.
    pub(super) registry: Registered,
    /// The backend at work is 1, by `backend`.
    pub(super) backend: Gauges,
    /// Peers that are part of the plan, by `family`.
    pub(super) peers: Gauges,
    /// Peers that are left out since their lease cannot be used, by `family`.
    pub(super) refused_peers: Gauges,
    /// Peers that still run the backend from before a switch, by `family`.
    pub(super) trailing_peers: Gauges,
    /// What was written to the kernel.
    pub(super) operations: Counter,
    /// What the kernel refused, or could not tell.
    pub(super) errors: Counter,
    /// What somebody else removed or changed and was put right, by `what`: rules, or the
    /// kind of the overlay's entry.
    pub(super) repairs: Counters,
    /// Changes of net-conf.json that were refused.
    pub(super) config_errors: Counter,
    /// Times that another backend, or the same with other settings, took over.
    pub(super) switches: Counter,
    /// Changes of the uplink that were followed.
    pub(super) uplink_changes: Counter,
    /// MTU of pods, in bytes.
    pub(super) mtu: Gauge,
    /// Peers to which the path carries less than the backend needs.
    pub(super) narrow_paths: Gauge,
    /// 1 while the vxlan device makes checksums itself, since those left to hardware get lost.
    pub(super) checksum_workaround: Gauge,
}

impl Metrics {
    /// All at zero.
    pub(super) fn new() -> Self {
        let mut make = Make::default();
        let name = |name: &str| format!("podwire_overlay_{name}");
        let mut metrics = Self {
            backend: make.put(&name("backend"), "The backend at work is 1", Gauges::default()),
            peers: make.put(&name("peers"), "Nodes that pods are reached on", Gauges::default()),
            refused_peers: make.put(&name("refused_peers"), "Nodes whose lease cannot be used", Gauges::default()),
            trailing_peers: make.put(
                &name("trailing_peers"),
                "Nodes that still run the backend from before a switch, or run the next one already",
                Gauges::default(),
            ),
            operations: make.counter(&name("operations"), "What was written to the kernel"),
            errors: make.counter(&name("errors"), "What the kernel refused, or could not tell"),
            repairs: make.put(
                &name("repairs"),
                "What others removed or changed and was put right",
                Counters::default(),
            ),
            config_errors: make.counter(&name("config_errors"), "Changes of net-conf.json that were refused"),
            switches: make.counter(&name("switches"), "Times that another backend or other settings took over"),
            uplink_changes: make.counter(&name("uplink_changes"), "Changes of the uplink that were followed"),
            mtu: make.gauge(&name("mtu_bytes"), "MTU of pods"),
            narrow_paths: make
                .gauge(&name("narrow_paths"), "Nodes to which the path carries less than the backend needs"),
            checksum_workaround: make.gauge(
                &name("checksum_workaround"),
                "1 while the vxlan device makes checksums itself since those left to hardware get lost",
            ),
            registry: Registered::default(),
        };
        for what in ["device", "address", "neighbour", "fdb", "route", "rules"] {
            drop(metrics.repairs.get_or_create(&[("what", what)]));
        }
        metrics.registry = make.done();
        metrics
    }

    /// `backend` is at work, and no other.
    pub(super) fn set_backend(&self, backend: &'static str) {
        self.backend.clear();
        self.backend.get_or_create(&[("backend", backend)]).set(1);
    }

    /// Something was put right.
    pub(super) fn repaired(&self, what: &'static str, count: u64) {
        self.repairs.get_or_create(&[("what", what)]).inc_by(count);
    }
}

/// A gauge holds an `i64`.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_name() {
        let metrics = Metrics::new();
        metrics.set_backend("vxlan");
        metrics.set_backend("host-gw");
        metrics.repaired("route", 3);
        metrics.peers.get_or_create(&[("family", "ipv4")]).set(7);
        let text = metrics.registry.text();
        for line in [
            "podwire_overlay_backend{backend=\"host-gw\"} 1",
            "podwire_overlay_peers{family=\"ipv4\"} 7",
            "podwire_overlay_repairs_total{what=\"route\"} 3",
            "podwire_overlay_repairs_total{what=\"rules\"} 0",
            "podwire_overlay_operations_total 0",
            "podwire_overlay_errors_total 0",
            "podwire_overlay_config_errors_total 0",
            "podwire_overlay_switches_total 0",
            "podwire_overlay_uplink_changes_total 0",
            "podwire_overlay_mtu_bytes 0",
            "podwire_overlay_narrow_paths 0",
            "podwire_overlay_checksum_workaround 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("backend=\"vxlan\""), "{text}");
    }
}
