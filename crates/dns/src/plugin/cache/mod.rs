//! `cache`: remembers what upstream servers answered, and that they had no answer.
//!
//! Only upstream answers, and they are looked up only when nothing of our own answers: our state costs less than a look
//! into the cache and is never stale. So a Service shows at once, also when its name was asked before it was there and
//! an upstream denied it. Answers are kept by question, never by the names of the records in them. Time is the query's
//! time of arrival.

mod metrics;
mod setup;
mod shelf;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::base::{
    Ttl,
    iana::{Rcode, Rtype},
};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{task::JoinHandle, time::timeout};

pub(crate) use self::metrics::CacheMetrics;
use self::{
    metrics::Counters,
    shelf::{Entry, Shelf},
};
pub(super) use self::{setup::setup, shelf::Key};
use super::{Plugin, Step};
use crate::{
    message::{Data, DnsName, Query, Reply, Source},
    program::nearest,
    router::{Progress, Rest},
};

const NAME: &str = "cache";

/// The directive as it was configured.
pub struct Cache {
    zones: Vec<DnsName>,
    store: Arc<Store>,
}

struct Store {
    answers: Shelf,
    denials: Shelf,
    options: Options,
    counters: Counters,
}

struct Options {
    /// How long an upstream's SERVFAIL is kept, seconds; 0 for not at all.
    failure_ttl: u32,
    keep_ttl: bool,
    prefetch: Option<Prefetch>,
    stale: Option<Stale>,
}

/// `prefetch`: what is asked for often is fetched again before it expires.
struct Prefetch {
    /// Queries that make an answer popular.
    amount: u32,
    /// The longest gap between them.
    gap: Duration,
    /// What is left of the lifetime then, per cent.
    percentage: u32,
}

/// `serve_stale`: what has expired is better than nothing (RFC 8767).
#[derive(Debug, Clone, Copy)]
struct Stale {
    /// How long after it expired.
    time: Duration,
    /// How long to wait for the upstream first: `None` for not at all, zero for as long as it takes.
    verify: Option<Duration>,
    /// The TTL of what is served so, seconds.
    ttl: u32,
    /// How long after a failure to ask again.
    recheck: Duration,
    /// A denial does not take an answer's place.
    prefer_positive: bool,
}

/// A question that goes upstream as soon as `fetched` is awaited.
struct Asked {
    key: Key,
    query: Query,
    fetched: BoxFuture<'static, Reply>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Answer,
    Denial,
    Failure,
}

impl Plugin for Cache {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, rest: &Rest<'_>) -> Step {
        if nearest(&self.zones, &query.name).is_none() {
            return Step::Next;
        }
        let fetched = match rest.begin_noting_alias(query) {
            (Progress::Done(reply), _) => return Step::Reply(reply),
            // What the alias leads to has been here, as a question of its own.
            (Progress::Waiting(reply), true) => return Step::Wait(reply),
            // Nothing is sent before this is awaited.
            (Progress::Waiting(reply), false) => reply,
        };
        let store = &self.store;
        store.counters.requests.inc();
        let asked = Asked { key: Key::of(query), query: query.clone(), fetched };
        let Some(entry) = store.find(&asked.key, query.arrival.now) else {
            store.counters.misses.inc();
            let store = store.clone();
            return Step::Wait(async move { store.fetch(asked).await }.boxed());
        };
        match (entry.left(query.arrival.now), store.options.stale) {
            (None, Some(stale)) => store.expired(stale, entry, asked),
            (left, _) => {
                let reply = if store.options.keep_ttl { entry.unaged(query) } else { entry.aged(query) };
                if store.should_prefetch(&entry, left.unwrap_or_default(), query.arrival.now) {
                    store.renew(entry, asked);
                }
                Step::Reply(reply)
            }
        }
    }
}

impl Store {
    /// What is kept for a question. A denial is there together with an answer only where the answer is to be preferred.
    fn find(&self, key: &Key, now: Instant) -> Option<Arc<Entry>> {
        let stale = self.options.stale.map_or(Duration::ZERO, |stale| stale.time);
        [&self.answers, &self.denials].into_iter().find_map(|shelf| {
            let entry = shelf.get(key, now, stale)?;
            shelf.hits.inc();
            Some(entry)
        })
    }

    async fn fetch(&self, Asked { key, query, fetched }: Asked) -> Reply {
        let mut reply = fetched.await;
        self.keep(key, &query, &mut reply, None);
        reply
    }

    fn should_prefetch(&self, entry: &Entry, left: Duration, now: Instant) -> bool {
        let Some(Prefetch { amount, gap, percentage }) = self.options.prefetch else { return false };
        let popular = entry.count(now, gap) >= amount;
        popular && left <= (entry.lifetime() * percentage / 100).max(Duration::from_secs(1)) && entry.begin_renewal(now)
    }

    /// An answer that has expired but may be served.
    fn expired(self: &Arc<Self>, stale: Stale, entry: Arc<Entry>, asked: Asked) -> Step {
        let reply = entry.with_ttl(&asked.query, stale.ttl);
        // Where a failure is not remembered, every client that wants it verified gets that.
        let always = stale.verify.is_some() && stale.recheck.is_zero();
        let begun = entry.begin_renewal(asked.query.arrival.now) || always;
        let renewed = begun.then(|| self.renew(entry, asked));
        let (Some(time), Some(renewed)) = (stale.verify, renewed) else {
            self.counters.served_stale.inc();
            return Step::Reply(reply);
        };
        let counter = self.counters.served_stale.clone();
        let verified = async move {
            let renewed = match time.is_zero() {
                true => renewed.await,
                // Beyond that time it goes on in the background.
                false => timeout(time, renewed).await.unwrap_or(Ok(None)),
            };
            renewed.ok().flatten().unwrap_or_else(|| {
                counter.inc();
                reply
            })
        };
        Step::Wait(verified.boxed())
    }

    /// Fetches an answer again, whether or not anyone goes on waiting for it. Gives it if it is one that may take the
    /// old one's place.
    fn renew(self: &Arc<Self>, entry: Arc<Entry>, asked: Asked) -> JoinHandle<Option<Reply>> {
        self.counters.prefetches.inc();
        let (store, Asked { key, query, fetched }) = (self.clone(), asked);
        tokio::spawn(async move {
            let begin = Instant::now();
            let mut reply = fetched.await;
            let usable = reply.source == Source::Upstream && matches!(reply.rcode, Rcode::NOERROR | Rcode::NXDOMAIN);
            let kept = usable.then(|| store.keep(key, &query, &mut reply, Some(&entry)));
            let prefers_answers = store.options.stale.is_some_and(|stale| stale.prefer_positive);
            let renewed = usable && (!prefers_answers || kept == Some(Some(Kind::Answer)));
            let recheck = store.options.stale.map_or(Duration::ZERO, |stale| stale.recheck);
            let again = query.arrival.now + begin.elapsed() + recheck;
            entry.end_renewal((!renewed && !recheck.is_zero()).then_some(again));
            renewed.then_some(reply)
        })
    }

    /// Keeps an answer if it is one to keep, and says as what. Its TTLs become those that it is kept with.
    fn keep(&self, key: Key, query: &Query, reply: &mut Reply, previous: Option<&Entry>) -> Option<Kind> {
        let (kind, ttl) = self.classify(query, reply)?;
        let shelf = if kind == Kind::Answer { &self.answers } else { &self.denials };
        for record in reply.records_mut() {
            record.set_ttl(Ttl::from_secs(record.ttl().as_secs().min(ttl)));
        }
        if !shelf.keeps(&key.name) {
            return Some(kind);
        }
        let prefers_answers = self.options.stale.is_some_and(|stale| stale.prefer_positive);
        match kind {
            Kind::Answer => self.denials.remove(&key),
            Kind::Denial if !prefers_answers => self.answers.remove(&key),
            Kind::Denial | Kind::Failure => {}
        }
        let kept = Reply { plugin: NAME, authoritative: false, ..reply.clone() };
        shelf.put(key, Entry::new(kept, query.arrival.now, ttl, previous));
        Some(kind)
    }

    /// What kind of answer it is and for how long to keep it, seconds.
    fn classify(&self, query: &Query, reply: &Reply) -> Option<(Kind, u32)> {
        if reply.source != Source::Upstream {
            return None;
        }
        let wanted = |rtype: Rtype| rtype == query.qtype || query.qtype == Rtype::ANY;
        match reply.rcode {
            Rcode::NOERROR if reply.answer.iter().any(|record| wanted(record.rtype())) => {
                let ttl = reply.answer.iter().map(|record| record.ttl().as_secs()).min().unwrap_or(0);
                Some((Kind::Answer, self.answers.clamp(ttl)))
            }
            // Also an alias that leads to nothing of the type.
            Rcode::NOERROR | Rcode::NXDOMAIN => Some((Kind::Denial, self.denials.clamp(denial_ttl(reply)?))),
            Rcode::SERVFAIL if self.options.failure_ttl > 0 => Some((Kind::Failure, self.options.failure_ttl)),
            _ => None,
        }
    }
}

/// How long a denial holds (RFC 2308 5), seconds; without a SOA record it may not be kept.
fn denial_ttl(reply: &Reply) -> Option<u32> {
    reply.authority.iter().find_map(|record| match record.data() {
        Data::Soa(soa) => Some(record.ttl().as_secs().min(soa.minimum().as_secs())),
        _ => None,
    })
}
