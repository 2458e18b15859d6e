//! Where answers are kept: by question, in parts that threads lock one by one.

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::iana::Rtype;
use lru::LruCache;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::metrics::{CacheLabels, CacheMetrics, ShelfLabels};
use crate::{
    message::{DnsName, Query, Reply},
    program::nearest,
};

/// The parts of a shelf: enough that few threads meet in one.
const SHARDS: usize = 16;

/// A question, as far as it decides the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::plugin) struct Key {
    /// Compared without regard to case.
    pub(super) name: DnsName,
    qtype: Rtype,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    pub(in crate::plugin) fn of(query: &Query) -> Self {
        Self {
            name: query.name.clone(),
            qtype: query.qtype,
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.checking_disabled,
        }
    }
}

/// One answer.
pub(super) struct Entry {
    reply: Reply,
    stored: Instant,
    /// How long it is fresh, seconds.
    ttl: u32,
    /// How often it was asked for without a longer gap.
    hits: AtomicU32,
    /// When it was last asked for: milliseconds since it was stored.
    last_hit: AtomicU64,
    renewal: Mutex<Renewal>,
}

#[derive(Default)]
struct Renewal {
    under_way: bool,
    /// After a failure.
    not_before: Option<Instant>,
}

impl Entry {
    /// `previous` is what it takes the place of: an answer stays as popular as it was.
    pub(super) fn new(reply: Reply, stored: Instant, ttl: u32, previous: Option<&Self>) -> Self {
        let hits = AtomicU32::new(previous.map_or(0, |entry| entry.hits.load(Ordering::Relaxed)));
        Self { reply, stored, ttl, hits, last_hit: AtomicU64::new(0), renewal: Mutex::default() }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    /// For how long it is fresh from `now` on, or `None`.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.lifetime().checked_sub(self.age(now)).filter(|left| !left.is_zero())
    }

    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.ttl.into())
    }

    /// The answer with its records aged.
    pub(super) fn aged(&self, query: &Query) -> Reply {
        let age = u32::try_from(self.age(query.arrival.now).as_secs()).unwrap_or(u32::MAX);
        self.reply.retold(query, |ttl| ttl.saturating_sub(age))
    }

    /// The answer with its records' TTLs as they came.
    pub(super) fn unaged(&self, query: &Query) -> Reply {
        self.reply.retold(query, |ttl| ttl)
    }

    /// The answer with `ttl` in all records, seconds.
    pub(super) fn with_ttl(&self, query: &Query, ttl: u32) -> Reply {
        self.reply.retold(query, |_| ttl)
    }

    /// Counts a query; gives how many there were without a gap longer than `gap` between them.
    pub(super) fn count(&self, now: Instant, gap: Duration) -> u32 {
        let at = u64::try_from(self.age(now).as_millis()).unwrap_or(u64::MAX);
        let before = self.last_hit.swap(at, Ordering::Relaxed);
        if u128::from(at.saturating_sub(before)) > gap.as_millis() {
            self.hits.store(1, Ordering::Relaxed);
            return 1;
        }
        self.hits.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to fetch it again now: not while someone else does, nor soon after that failed.
    pub(super) fn begin_renewal(&self, now: Instant) -> bool {
        let mut renewal = self.renewal();
        let begin = !renewal.under_way && renewal.not_before.is_none_or(|at| now >= at);
        renewal.under_way |= begin;
        begin
    }

    pub(super) fn end_renewal(&self, not_before: Option<Instant>) {
        *self.renewal() = Renewal { under_way: false, not_before };
    }
}

type Shard = LruCache<Key, Arc<Entry>>;

/// Answers, or denials.
pub(super) struct Shelf {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    count: AtomicI64,
    limits: Limits,
    entries: Gauge,
    evictions: Counter,
    pub(super) hits: Counter,
}

/// What the directive says about a shelf.
pub(super) struct Limits {
    pub(super) capacity: NonZeroUsize,
    /// Seconds.
    pub(super) min_ttl: u32,
    /// Seconds.
    pub(super) max_ttl: u32,
    /// Zones that are not kept.
    pub(super) disabled: Vec<DnsName>,
}

impl Shelf {
    /// `kind` is `success` or `denial`.
    pub(super) fn new(kind: &'static str, limits: Limits, metrics: &CacheMetrics, labels: &CacheLabels) -> Self {
        let count = SHARDS.min(limits.capacity.get());
        let each = NonZeroUsize::new(limits.capacity.get() / count).unwrap_or(NonZeroUsize::MIN);
        let CacheLabels { server, zones, view } = labels.clone();
        let labels = ShelfLabels { server, r#type: kind, zones, view };
        Self {
            shards: (0..count).map(|_| Mutex::new(LruCache::sparse(each))).collect(),
            hasher: RandomState::new(),
            count: AtomicI64::new(0),
            limits,
            entries: metrics.entries.get_or_create_owned(&labels),
            evictions: metrics.evictions.get_or_create_owned(&labels),
            hits: metrics.hits.get_or_create_owned(&labels),
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let number = self.hasher.hash_one(key) as usize % self.shards.len();
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept for a question, unless it expired longer than `stale` ago.
    pub(super) fn get(&self, key: &Key, now: Instant, stale: Duration) -> Option<Arc<Entry>> {
        let mut shard = self.shard(key);
        let entry = shard.get(key)?;
        if entry.age(now) < entry.lifetime() + stale {
            return Some(entry.clone());
        }
        shard.pop(key);
        drop(shard);
        self.changed(-1);
        None
    }

    /// A TTL within the limits, seconds.
    pub(super) fn clamp(&self, ttl: u32) -> u32 {
        ttl.clamp(self.limits.min_ttl.min(self.limits.max_ttl), self.limits.max_ttl)
    }

    pub(super) fn keeps(&self, name: &DnsName) -> bool {
        nearest(&self.limits.disabled, name).is_none()
    }

    pub(super) fn put(&self, key: Key, entry: Entry) {
        let pushed = self.shard(&key).push(key.clone(), Arc::new(entry));
        if let Some((other, _)) = pushed {
            self.evictions.inc_by(u64::from(other != key));
        } else {
            self.changed(1);
        }
    }

    pub(super) fn remove(&self, key: &Key) {
        let removed = self.shard(key).pop(key);
        if removed.is_some() {
            self.changed(-1);
        }
    }

    fn changed(&self, by: i64) {
        self.entries.set(self.count.fetch_add(by, Ordering::Relaxed) + by);
    }
}
