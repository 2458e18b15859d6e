//! What the cache counts, under CoreDNS's names.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Which cache: one a server block.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CacheLabels {
    pub(super) server: Arc<str>,
    /// Separated by commas.
    pub(super) zones: Arc<str>,
    /// Always empty: there are no views.
    pub(super) view: &'static str,
}

/// Which shelf of which cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ShelfLabels {
    pub(super) server: Arc<str>,
    /// `success` or `denial`.
    pub(super) r#type: &'static str,
    pub(super) zones: Arc<str>,
    pub(super) view: &'static str,
}

/// The counters of all caches.
#[derive(Default)]
pub(crate) struct CacheMetrics {
    pub(super) entries: Family<ShelfLabels, Gauge>,
    pub(super) hits: Family<ShelfLabels, Counter>,
    pub(super) evictions: Family<ShelfLabels, Counter>,
    pub(super) requests: Family<CacheLabels, Counter>,
    pub(super) misses: Family<CacheLabels, Counter>,
    pub(super) prefetches: Family<CacheLabels, Counter>,
    drops: Family<CacheLabels, Counter>,
    pub(super) served_stale: Family<CacheLabels, Counter>,
}

impl CacheMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("cache_entries", "Entries in the cache", metrics.entries.clone());
        registry.register("cache_hits", "Answers taken from the cache", metrics.hits.clone());
        registry.register("cache_evictions", "Entries that had to give way to others", metrics.evictions.clone());
        registry.register("cache_requests", "Questions that could be in the cache", metrics.requests.clone());
        registry.register("cache_misses", "Questions that were not in the cache", metrics.misses.clone());
        registry.register(
            "cache_prefetch",
            "Entries fetched again before a client had to wait",
            metrics.prefetches.clone(),
        );
        registry.register("cache_drops", "Answers to another question than was asked", metrics.drops.clone());
        registry.register(
            "cache_served_stale",
            "Answers given although they had expired",
            metrics.served_stale.clone(),
        );
        metrics
    }

    /// The counters of one cache.
    pub(super) fn of(&self, labels: &CacheLabels) -> Counters {
        // Never counted, since such answers are not even read; there for who looks for it.
        drop(self.drops.get_or_create(labels));
        Counters {
            requests: self.requests.get_or_create_owned(labels),
            misses: self.misses.get_or_create_owned(labels),
            prefetches: self.prefetches.get_or_create_owned(labels),
            served_stale: self.served_stale.get_or_create_owned(labels),
        }
    }
}

/// The counters of one cache.
pub(super) struct Counters {
    pub(super) requests: Counter,
    pub(super) misses: Counter,
    pub(super) prefetches: Counter,
    pub(super) served_stale: Counter,
}
