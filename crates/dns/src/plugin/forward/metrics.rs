//! What forwarding counts, under CoreDNS's names.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::NAME;
use crate::metrics::duration_histogram;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProxyLabels {
    proxy_name: &'static str,
    to: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    proxy_name: &'static str,
    to: Arc<str>,
    rcode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    proxy_name: &'static str,
    to: Arc<str>,
    /// `tcp` or `tcp-tls`.
    proto: &'static str,
}

/// The counters of all upstreams.
pub(crate) struct ForwardMetrics {
    pub(super) broken: Counter,
    pub(super) rejects: Counter,
    durations: Family<CodeLabels, Histogram>,
    failed_checks: Family<ProxyLabels, Counter>,
    reused: Family<ConnectionLabels, Counter>,
    opened: Family<ConnectionLabels, Counter>,
}

impl ForwardMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let durations: Family<CodeLabels, Histogram> = Family::new_with_constructor(duration_histogram);
        let metrics = Self {
            broken: Counter::default(),
            rejects: Counter::default(),
            durations,
            failed_checks: Family::default(),
            reused: Family::default(),
            opened: Family::default(),
        };
        let broken = "Queries that found every upstream unhealthy";
        registry.register("forward_healthcheck_broken", broken, metrics.broken.clone());
        let rejects = "Queries refused because too many were under way";
        registry.register("forward_max_concurrent_rejects", rejects, metrics.rejects.clone());
        let durations = "Time that an upstream took to answer";
        registry.register("proxy_request_duration_seconds", durations, metrics.durations.clone());
        registry.register("proxy_healthcheck_failures", "Failed health checks", metrics.failed_checks.clone());
        registry.register("proxy_conn_cache_hits", "Queries over a connection used before", metrics.reused.clone());
        registry.register("proxy_conn_cache_misses", "Queries over a new connection", metrics.opened.clone());
        metrics
    }

    /// The counters of one upstream.
    pub(super) fn of(&self, to: &str, proto: &'static str) -> Counters {
        let to: Arc<str> = to.into();
        let connection = ConnectionLabels { proxy_name: NAME, to: to.clone(), proto };
        Counters {
            failed_checks: self.failed_checks.get_or_create_owned(&ProxyLabels { proxy_name: NAME, to: to.clone() }),
            reused: self.reused.get_or_create_owned(&connection),
            opened: self.opened.get_or_create_owned(&connection),
            durations: self.durations.clone(),
            to,
        }
    }
}

/// The counters of one upstream.
pub(super) struct Counters {
    pub(super) failed_checks: Counter,
    pub(super) reused: Counter,
    pub(super) opened: Counter,
    durations: Family<CodeLabels, Histogram>,
    to: Arc<str>,
}

impl Counters {
    pub(super) fn answered(&self, rcode: &'static str, seconds: f64) {
        let labels = CodeLabels { proxy_name: NAME, to: self.to.clone(), rcode };
        self.durations.get_or_create(&labels).observe(seconds);
    }
}
