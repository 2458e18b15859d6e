//! `cache`: remembers what upstream servers answered, and that they had no answer.
//!
//! Only upstream answers: those from our own state cost less than a look into the cache and are never stale, so a changed
//! Service shows at once. Time is the query's time of arrival.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::base::{
    Ttl,
    iana::{Rcode, Rtype},
};
use lru::LruCache;

use super::{Plugin, Step};
use crate::{
    corefile::{CorefileError, Directive, Word},
    message::{Data, DnsName, Query, Record, Reply, Source},
    metrics::Metrics,
    program::{SiteBuilder, nearest, zones},
    router::Rest,
};

const NAME: &str = "cache";
/// Answers of each kind that are kept (CoreDNS).
const CAPACITY: NonZeroUsize = NonZeroUsize::new(9984).unwrap();
/// The longest time that an answer is kept where the directive does not say, seconds (CoreDNS).
const MAX_TTL: u32 = 3600;
/// The same for denials.
const MAX_DENIAL_TTL: u32 = 1800;
/// The shortest time, seconds: it keeps a TTL of 0 from sending every query upstream (CoreDNS).
const MIN_TTL: u32 = 5;
/// How long an upstream's SERVFAIL is kept, seconds (CoreDNS).
const FAILURE_TTL: u32 = 5;

/// What is remembered about one question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Compared without regard to case.
    name: DnsName,
    qtype: Rtype,
    dnssec_ok: bool,
    checking_disabled: bool,
}

struct Entry {
    reply: Reply,
    stored: Instant,
    /// Seconds.
    ttl: u32,
}

/// Answers, or denials.
struct Shelf {
    entries: Mutex<LruCache<Key, Entry>>,
    min_ttl: u32,
    max_ttl: u32,
    /// Zones that are not kept.
    disabled: Vec<DnsName>,
}

/// The directive as it was configured.
pub struct Cache {
    zones: Vec<DnsName>,
    answers: Shelf,
    denials: Shelf,
    failure_ttl: u32,
    metrics: std::sync::Arc<Metrics>,
}

impl Shelf {
    fn new(max_ttl: u32) -> Self {
        Self { entries: Mutex::new(LruCache::new(CAPACITY)), min_ttl: MIN_TTL, max_ttl, disabled: Vec::new() }
    }

    fn get(&self, key: &Key, query: &Query) -> Option<Reply> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(key)?;
        let age = query.arrival.now.saturating_duration_since(entry.stored);
        if age >= Duration::from_secs(entry.ttl.into()) {
            entries.pop(key);
            return None;
        }
        let mut reply = entry.reply.clone();
        let ttl = entry.ttl;
        drop(entries);
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in reply.records_mut() {
            let left = Ttl::from_secs(record.ttl().as_secs().min(ttl).saturating_sub(age));
            // The query's spelling of the name, not that of whoever asked first.
            let owner = if *record.owner() == query.name { query.name.clone() } else { record.owner().clone() };
            *record = Record::new(owner, record.class(), left, record.data().clone());
        }
        Some(reply)
    }

    fn put(&self, key: Key, query: &Query, reply: &mut Reply, ttl: u32) {
        if nearest(&self.disabled, &key.name).is_some() {
            return;
        }
        for record in reply.records_mut() {
            record.set_ttl(Ttl::from_secs(record.ttl().as_secs().min(ttl)));
        }
        let entry = Entry {
            reply: Reply { plugin: NAME, authoritative: false, ..reply.clone() },
            stored: query.arrival.now,
            ttl,
        };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).put(key, entry);
    }
}

impl Plugin for Cache {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        if nearest(&self.zones, &query.name).is_none() {
            return Step::Next;
        }
        let key = key(query);
        match self.answers.get(&key, query).or_else(|| self.denials.get(&key, query)) {
            Some(reply) => {
                self.metrics.cache_hits.inc();
                Step::Reply(reply)
            }
            None => Step::Next,
        }
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        if reply.source != Source::Upstream || nearest(&self.zones, &query.name).is_none() {
            return;
        }
        self.metrics.cache_misses.inc();
        let clamp = |shelf: &Shelf, ttl: u32| ttl.clamp(shelf.min_ttl.min(shelf.max_ttl), shelf.max_ttl);
        match reply.rcode {
            Rcode::NOERROR if !reply.answer.is_empty() => {
                let ttl = reply.answer.iter().map(|record| record.ttl().as_secs()).min().unwrap_or(0);
                self.answers.put(key(query), query, reply, clamp(&self.answers, ttl));
            }
            Rcode::NOERROR | Rcode::NXDOMAIN => {
                if let Some(ttl) = denial_ttl(reply) {
                    self.denials.put(key(query), query, reply, clamp(&self.denials, ttl));
                }
            }
            Rcode::SERVFAIL if self.failure_ttl > 0 => self.denials.put(key(query), query, reply, self.failure_ttl),
            _ => {}
        }
    }
}

fn key(query: &Query) -> Key {
    Key {
        name: query.name.clone(),
        qtype: query.qtype,
        dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        checking_disabled: query.checking_disabled,
    }
}

/// How long a denial holds (RFC 2308 5), seconds; without a SOA record it may not be kept.
fn denial_ttl(reply: &Reply) -> Option<u32> {
    reply.authority.iter().find_map(|record| match record.data() {
        Data::Soa(soa) => Some(record.ttl().as_secs().min(soa.minimum().as_secs())),
        _ => None,
    })
}

/// `cache [TTL] [ZONES…] { success|denial CAPACITY [TTL] [MINTTL]; servfail DURATION; disable success|denial [ZONES…] }`
pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let (ttl, names) = match directive.args.split_first() {
        Some((first, rest)) if first.text.bytes().all(|byte| byte.is_ascii_digit()) => (Some(seconds(first)?), rest),
        _ => (None, &directive.args[..]),
    };
    let mut cache = Cache {
        zones: site.zones_or_own(names)?,
        answers: Shelf::new(ttl.unwrap_or(MAX_TTL)),
        denials: Shelf::new(ttl.unwrap_or(MAX_DENIAL_TTL)),
        failure_ttl: FAILURE_TTL,
        metrics: site.environment.metrics.clone(),
    };
    for option in &directive.body {
        match option.name() {
            "success" => limits(option, &mut cache.answers)?,
            "denial" => limits(option, &mut cache.denials)?,
            "servfail" => {
                let [duration] = option.plain(1, 1)? else { continue };
                cache.failure_ttl = u32::try_from(duration.duration()?.as_secs()).unwrap_or(FAILURE_TTL);
            }
            "disable" => {
                let (kind, names) = option.plain(1, usize::MAX)?.split_at(1);
                let disabled = if names.is_empty() { cache.zones.clone() } else { zones(names)? };
                match kind[0].text.as_str() {
                    "success" => cache.answers.disabled.extend(disabled),
                    "denial" => cache.denials.disabled.extend(disabled),
                    other => return Err(kind[0].error(format!("disable: {other:?} is neither success nor denial"))),
                }
            }
            "prefetch" | "serve_stale" | "keepttl" | "verify" => return Err(option.unsupported_option(NAME)),
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    site.add(cache);
    Ok(())
}

fn limits(option: &Directive, shelf: &mut Shelf) -> Result<(), CorefileError> {
    let words = option.plain(1, 3)?;
    let capacity = usize::try_from(words[0].number(10_000_000)?).unwrap_or_default();
    let capacity = NonZeroUsize::new(capacity).ok_or_else(|| words[0].error("a capacity of 0: use disable instead"))?;
    shelf.entries = Mutex::new(LruCache::new(capacity));
    if let Some(ttl) = words.get(1) {
        shelf.max_ttl = seconds(ttl)?;
    }
    if let Some(ttl) = words.get(2) {
        shelf.min_ttl = seconds(ttl)?;
    }
    Ok(())
}

fn seconds(word: &Word) -> Result<u32, CorefileError> {
    Ok(u32::try_from(word.number(86_400)?).unwrap_or(MAX_TTL))
}
