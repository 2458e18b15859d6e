//! The directive's options.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use super::{
    Cache, NAME, Options, Prefetch, Stale, Store,
    metrics::CacheLabels,
    shelf::{Limits, Shelf},
};
use crate::{
    corefile::{CorefileError, Directive, Word},
    program::{SiteBuilder, zones},
};

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
/// The longest time for that, and for not asking again after a failure (RFC 2308 7.1, RFC 8767 5).
const MAX_FAILURE_TIME: Duration = Duration::from_secs(300);
/// How long what has expired may be served, and how long the gap between queries may be, where the directive does not
/// say (CoreDNS).
const STALE_TIME: Duration = Duration::from_secs(3600);
const PREFETCH_GAP: Duration = Duration::from_secs(60);

/// `cache [TTL] [ZONES…] { success|denial CAPACITY [TTL] [MINTTL]; prefetch AMOUNT [DURATION] [PERCENTAGE%];
/// serve_stale [DURATION] [immediate [TTL [RECHECK]]|verify [TIMEOUT [TTL [RECHECK]]]]; serve_stale_policy prefer_positive;
/// servfail DURATION; disable success|denial [ZONES…]; keepttl }`
pub(in crate::plugin) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let (ttl, names) = match directive.args.split_first() {
        Some((first, rest)) if first.text.bytes().all(|byte| byte.is_ascii_digit()) => (Some(max_ttl(first)?), rest),
        _ => (None, &directive.args[..]),
    };
    let limits = |max_ttl| Limits { capacity: CAPACITY, min_ttl: MIN_TTL, max_ttl, disabled: Vec::new() };
    let mut answers = limits(ttl.unwrap_or(MAX_TTL));
    let mut denials = limits(ttl.unwrap_or(MAX_DENIAL_TTL));
    let mut options = Options { failure_ttl: FAILURE_TTL, keep_ttl: false, prefetch: None, stale: None };
    let mut policy = None;
    let own_zones = site.zones_or_own(names)?;
    for option in &directive.body {
        match option.name() {
            "success" => set_limits(option, &mut answers)?,
            "denial" => set_limits(option, &mut denials)?,
            "prefetch" => options.prefetch = prefetch(option)?,
            "serve_stale" => options.stale = Some(stale(option)?),
            "serve_stale_policy" => match option.plain(1, 1)? {
                [word] if word.text == "prefer_positive" => policy = Some(&option.name),
                words => return Err(words[0].error("serve_stale_policy: the only policy is prefer_positive")),
            },
            "servfail" => {
                let [duration] = option.plain(1, 1)? else { continue };
                options.failure_ttl = seconds(at_most(duration, MAX_FAILURE_TIME)?);
            }
            "keepttl" => {
                option.plain(0, 0)?;
                options.keep_ttl = true;
            }
            "disable" => {
                let (kind, names) = option.plain(1, usize::MAX)?.split_at(1);
                let disabled = if names.is_empty() { own_zones.clone() } else { zones(names)? };
                match kind[0].text.as_str() {
                    "success" => answers.disabled.extend(disabled),
                    "denial" => denials.disabled.extend(disabled),
                    other => return Err(kind[0].error(format!("disable: {other:?} is neither success nor denial"))),
                }
            }
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    match (policy, &mut options.stale) {
        (Some(_), Some(stale)) => stale.prefer_positive = true,
        (Some(word), None) => return Err(word.error("serve_stale_policy needs serve_stale")),
        (None, _) => {}
    }
    let names: Vec<String> = own_zones.iter().map(|zone| zone.fmt_with_dot().to_string()).collect();
    let labels = CacheLabels { server: site.server_label(), zones: names.join(",").into(), view: "" };
    let metrics = &site.environment.metrics.cache;
    let store = Store {
        answers: Shelf::new("success", answers, metrics, &labels),
        denials: Shelf::new("denial", denials, metrics, &labels),
        options,
        counters: metrics.of(&labels),
    };
    site.add(Cache { zones: own_zones, store: Arc::new(store) });
    Ok(())
}

fn set_limits(option: &Directive, limits: &mut Limits) -> Result<(), CorefileError> {
    let words = option.plain(1, 3)?;
    let capacity = usize::try_from(words[0].number(10_000_000)?).unwrap_or_default();
    limits.capacity =
        NonZeroUsize::new(capacity).ok_or_else(|| words[0].error("a capacity of 0: use disable instead"))?;
    if let Some(ttl) = words.get(1) {
        limits.max_ttl = max_ttl(ttl)?;
    }
    if let Some(ttl) = words.get(2) {
        limits.min_ttl = ttl_seconds(ttl)?;
    }
    Ok(())
}

fn prefetch(option: &Directive) -> Result<Option<Prefetch>, CorefileError> {
    let words = option.plain(1, 3)?;
    let amount = u32::try_from(words[0].number(u32::MAX.into())?).unwrap_or(u32::MAX);
    let gap = words.get(1).map_or(Ok(PREFETCH_GAP), Word::duration)?;
    let percentage = match words.get(2) {
        None => 10,
        Some(word) => {
            let number = word.text.strip_suffix('%').and_then(|number| number.parse().ok());
            let number = number.filter(|number| (10..=90).contains(number));
            number.ok_or_else(|| word.error(format!("prefetch: {:?} is not a share from 10% to 90%", word.text)))?
        }
    };
    Ok((amount > 0).then_some(Prefetch { amount, gap, percentage }))
}

fn stale(option: &Directive) -> Result<Stale, CorefileError> {
    let words = option.plain(0, 5)?;
    let time = words.first().map_or(Ok(STALE_TIME), Word::duration)?;
    let (verify, rest) = match words.get(1) {
        None => (None, &[][..]),
        Some(word) if word.text.eq_ignore_ascii_case("immediate") => (None, &words[2..]),
        Some(word) if word.text.eq_ignore_ascii_case("verify") => {
            (Some(words.get(2).map_or(Ok(Duration::ZERO), Word::duration)?), words.get(3..).unwrap_or_default())
        }
        Some(word) => {
            return Err(word.error(format!("serve_stale: {:?} is neither immediate nor verify", word.text)));
        }
    };
    if let Some(word) = rest.get(2) {
        return Err(word.error("serve_stale: nothing may follow here"));
    }
    let ttl = match rest.first() {
        None => 0,
        Some(word) => match word.duration()? {
            ttl if ttl.subsec_nanos() == 0 => seconds(ttl),
            _ => return Err(word.error("serve_stale: a TTL counts whole seconds")),
        },
    };
    let recheck = rest.get(1).map_or(Ok(Duration::ZERO), |word| at_most(word, MAX_FAILURE_TIME))?;
    Ok(Stale { time, verify, ttl, recheck, prefer_positive: false })
}

fn at_most(word: &Word, max: Duration) -> Result<Duration, CorefileError> {
    let duration = word.duration()?;
    match duration <= max {
        true => Ok(duration),
        false => Err(word.error(format!("{:?} is longer than {} s", word.text, max.as_secs()))),
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn ttl_seconds(word: &Word) -> Result<u32, CorefileError> {
    Ok(u32::try_from(word.number(86_400)?).unwrap_or(MAX_TTL))
}

fn max_ttl(word: &Word) -> Result<u32, CorefileError> {
    match ttl_seconds(word)? {
        0 => Err(word.error("a TTL of 0: use disable instead")),
        ttl => Ok(ttl),
    }
}
