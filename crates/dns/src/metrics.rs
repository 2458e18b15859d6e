//! Counters under CoreDNS's names.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use crate::plugin::{
    CacheMetrics, ForwardMetrics, acl::AclMetrics, hosts::HostsMetrics, local::LocalMetrics, template::TemplateMetrics,
};

/// Labels of `coredns_dns_requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) server: Arc<str>,
    pub(crate) zone: Arc<str>,
    pub(crate) proto: &'static str,
    pub(crate) family: &'static str,
    pub(crate) r#type: &'static str,
}

/// Labels of `coredns_dns_responses_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResponseLabels {
    pub(crate) server: Arc<str>,
    pub(crate) zone: Arc<str>,
    pub(crate) rcode: &'static str,
    pub(crate) plugin: &'static str,
}

/// Labels of the request durations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServerLabels {
    pub(crate) server: Arc<str>,
    pub(crate) zone: Arc<str>,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) responses: Family<ResponseLabels, Counter>,
    pub(crate) durations: Family<ServerLabels, Histogram>,
    pub(crate) panics: Counter,
    pub(crate) cache: CacheMetrics,
    pub(crate) forward: ForwardMetrics,
    pub(crate) reloads_failed: Counter,
    pub(crate) autopath_successes: Counter,
    pub(crate) watch_restarts: Counter,
    pub(crate) hosts: HostsMetrics,
    pub(crate) template: TemplateMetrics,
    pub(crate) local: LocalMetrics,
    pub(crate) acl: AclMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations: Family<ServerLabels, Histogram> = Family::new_with_constructor(duration_histogram);
        let mut registry = Registry::with_prefix("coredns");
        let mut metrics = Self {
            cache: CacheMetrics::register(&mut registry),
            forward: ForwardMetrics::register(&mut registry),
            registry,
            requests: Family::default(),
            responses: Family::default(),
            durations,
            panics: Counter::default(),
            reloads_failed: Counter::default(),
            autopath_successes: Counter::default(),
            watch_restarts: Counter::default(),
            hosts: HostsMetrics::default(),
            template: TemplateMetrics::default(),
            local: LocalMetrics::default(),
            acl: AclMetrics::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("dns_requests", "DNS requests made", metrics.requests.clone());
        registry.register("dns_responses", "DNS responses by response code", metrics.responses.clone());
        registry.register("dns_request_duration_seconds", "Time from query to answer", metrics.durations.clone());
        registry.register(
            "panics",
            "Questions that the server failed on by a mistake of its own",
            metrics.panics.clone(),
        );
        registry.register("reload_failed", "Changed Corefiles that were refused", metrics.reloads_failed.clone());
        registry.register("autopath_success", "Searches done for clients", metrics.autopath_successes.clone());
        registry.register("kubernetes_watch_restarts", "Watches that went quiet", metrics.watch_restarts.clone());
        metrics.hosts.register(registry);
        metrics.template.register(registry);
        metrics.local.register(registry);
        metrics.acl.register(registry);
        metrics
    }
}

impl Metrics {
    /// The counters in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// Counts a changed Corefile that was refused.
    pub fn count_failed_reload(&self) {
        self.reloads_failed.inc();
    }

    /// Counts a watch of the Kubernetes API that went quiet and was started anew.
    pub fn count_watch_restart(&self) {
        self.watch_restarts.inc();
    }

    pub(crate) fn observe(&self, server: ServerLabels, duration: Duration) {
        self.durations.get_or_create(&server).observe(duration.as_secs_f64());
    }
}

/// The buckets of CoreDNS: 250 µs doubled fifteen times.
pub(crate) fn duration_histogram() -> Histogram {
    Histogram::new((0..16).map(|power| 0.000_25 * f64::from(1 << power)))
}
