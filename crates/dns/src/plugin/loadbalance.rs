//! `loadbalance`: answers come in another order each time, so that clients which take the first address spread.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use domain::base::iana::Rtype;
use futures_util::{FutureExt, future::BoxFuture};
use podwire_model::IpNet;
use tracing::{error, warn};

use super::{Plugin, watched::WatchedFile};
use crate::{
    corefile::{CorefileError, Directive},
    message::{Data, DnsName, Query, Record, Reply},
    program::SiteBuilder,
    router::Router,
};

const NAME: &str = "loadbalance";
/// How often CoreDNS looks for a changed weight file.
const RELOAD: Duration = Duration::from_secs(30);

/// `loadbalance [round_robin|weighted FILE] { prefer RANGE…; reload DURATION }`
#[derive(Default)]
struct LoadBalance {
    /// Without: every order is as likely as any other.
    weighted: Option<Arc<Weighted>>,
    /// Addresses of the first of these ranges come first, then those of the second.
    preferred: Vec<IpNet>,
}

/// Which address comes first, by weights from a file.
struct Weighted {
    file: WatchedFile,
    weights: RwLock<Weights>,
}

/// The weights of a name's addresses; an address that is not there weighs 1.
type Weights = HashMap<DnsName, Vec<(IpAddr, u8)>>;

impl Weighted {
    /// Reads the file if it changed; one that is broken or gone changes nothing.
    fn look(&self) -> Result<(), String> {
        let Some(read) = self.file.changed() else { return Ok(()) };
        let path = self.file.path.display();
        let (_, bytes) = read.map_err(|error| format!("cannot read {path}: {error}"))?;
        let weights = parse(&String::from_utf8_lossy(&bytes)).map_err(|error| format!("{path}:{error}"))?;
        *self.weights.write().unwrap_or_else(PoisonError::into_inner) = weights;
        Ok(())
    }

    /// Puts one of the addresses first, each as often as its weight says.
    fn choose(&self, addresses: &mut [Record], random: &mut u64) {
        let table = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        let weight = |record: &Record| {
            let known = table.get(record.owner()).into_iter().flatten();
            known
                .filter(|(ip, _)| Some(*ip) == address(record))
                .map(|(_, weight)| u64::from(*weight))
                .next()
                .unwrap_or(1)
        };
        let sum: u64 = addresses.iter().map(weight).sum();
        if sum == 0 {
            return;
        }
        let mut left = next(random) % sum;
        for index in 0..addresses.len() {
            match left.checked_sub(weight(&addresses[index])) {
                Some(rest) => left = rest,
                None => return addresses.swap(0, index),
            }
        }
    }
}

/// A weight file: a line with a name, then lines with an address and its weight from 1 to 255.
///
/// # Errors
/// `line: what` is wrong.
fn parse(text: &str) -> Result<Weights, String> {
    let mut weights = Weights::new();
    let mut name = None;
    for (index, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("{}: {what}: {line:?}", index + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            [domain] if domain.parse::<IpAddr>().is_ok() => return Err(wrong("expected a weight after the address")),
            [domain] => {
                let domain = DnsName::bytes_from_str(domain).map_err(|_| wrong("not a domain name"))?;
                weights.entry(domain.clone()).or_default();
                name = Some(domain);
            }
            [address, weight] => {
                let address = address.parse().map_err(|_| wrong("not an address"))?;
                let weight = weight.parse().ok().filter(|weight| *weight > 0);
                let weight = weight.ok_or_else(|| wrong("not a weight from 1 to 255"))?;
                let name = name.clone().ok_or_else(|| wrong("no name before this address"))?;
                weights.entry(name).or_default().push((address, weight));
            }
            _ => return Err(wrong("expected a name, or an address and its weight")),
        }
    }
    Ok(weights)
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let mut balance = LoadBalance::default();
    let mut file = None;
    match directive.arguments(0, 2)? {
        [] => {}
        [policy] if policy.text == "round_robin" => {}
        [policy, more] if policy.text == "round_robin" => {
            return Err(more.error("loadbalance: round_robin takes no argument"));
        }
        [policy] if policy.text == "weighted" => return Err(policy.error("loadbalance: weighted needs a file")),
        [policy, path] if policy.text == "weighted" => file = Some((path, WatchedFile::new(&path.text, RELOAD))),
        [policy, ..] => return Err(policy.error(format!("loadbalance: unknown policy {:?}", policy.text))),
    }
    for option in &directive.body {
        match (option.name(), &mut file) {
            ("prefer", _) => {
                for word in option.plain(1, usize::MAX)? {
                    let wrong = |_| word.error(format!("prefer: {:?} is not a range such as 10.0.0.0/8", word.text));
                    balance.preferred.push(word.text.parse().map_err(wrong)?);
                }
            }
            ("reload", Some((_, file))) => {
                let [word] = option.plain(1, 1)? else { continue };
                file.interval = word.duration()?;
            }
            _ => return Err(option.unknown_option(NAME)),
        }
    }
    if let Some((path, file)) = file {
        let missing = !file.path.exists();
        if missing && file.interval.is_zero() {
            return Err(path.error(format!("{NAME}: {} is not there", path.text)));
        }
        if missing {
            warn!("{NAME}: {} is not there yet", path.text);
        }
        let weighted = Weighted { file, weights: RwLock::default() };
        weighted.look().map_err(|error| path.error(format!("{NAME}: {error}")))?;
        balance.weighted = Some(Arc::new(weighted));
    }
    site.add(balance);
    Ok(())
}

impl Plugin for LoadBalance {
    fn name(&self) -> &'static str {
        NAME
    }

    fn answered(&self, query: &Query, reply: &mut Reply) {
        let mut random = query.arrival.random;
        for section in [&mut reply.answer, &mut reply.authority, &mut reply.additional] {
            if section.len() < 2 {
                continue;
            }
            let (addresses, mx) = arrange(section);
            match &self.weighted {
                None => {
                    fisher_yates(&mut section[addresses..mx], &mut random);
                    fisher_yates(&mut section[mx..], &mut random);
                }
                Some(weighted) => weighted.choose(&mut section[addresses..mx], &mut random),
            }
            if !self.preferred.is_empty() {
                section[addresses..mx].sort_by_key(|record| rank(&self.preferred, record));
            }
        }
    }

    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let weighted = self.weighted.clone()?;
        let interval = weighted.file.interval;
        let look = move || {
            if let Err(error) = weighted.look() {
                error!("{NAME}: {error}; the weights stay as they were");
            }
        };
        Some(WatchedFile::watch(interval, look).boxed())
    }
}

/// Aliases first, then what is neither address nor MX, then addresses, then MX. Says where the last two begin.
fn arrange(records: &mut [Record]) -> (usize, usize) {
    records.sort_by_key(|record| match record.rtype() {
        Rtype::CNAME => 0,
        Rtype::A | Rtype::AAAA => 2,
        Rtype::MX => 3,
        _ => 1,
    });
    let from = |rank: fn(Rtype) -> bool| move |record: &Record| !rank(record.rtype());
    let addresses = records.partition_point(from(|rtype| matches!(rtype, Rtype::A | Rtype::AAAA | Rtype::MX)));
    let mx = records.partition_point(from(|rtype| rtype == Rtype::MX));
    (addresses, mx)
}

fn address(record: &Record) -> Option<IpAddr> {
    match record.data() {
        Data::A(data) => Some(data.addr().into()),
        Data::Aaaa(data) => Some(data.addr().into()),
        _ => None,
    }
}

/// Which of the ranges an address is in; behind all of them for one that is in none.
fn rank(ranges: &[IpNet], record: &Record) -> usize {
    let ip = address(record);
    ranges.iter().position(|range| ip.is_some_and(|ip| range.contains(&ip))).unwrap_or(ranges.len())
}

/// Puts items in any order, each as likely as the others.
pub(super) fn fisher_yates<T>(items: &mut [T], random: &mut u64) {
    for last in (1..items.len()).rev() {
        items.swap(last, next(random) as usize % (last + 1));
    }
}

/// Knuth's MMIX generator; the high bits are the good ones.
fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, HashSet},
        time::Instant,
    };

    use domain::rdata::{A, Cname};
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Arrival, Transport, record};

    fn record_of(last: u8) -> Record {
        record(DnsName::root_bytes(), 5, Data::A(A::new([10, 0, 0, last].into())))
    }

    /// The last byte of each address, in the order that a client sees.
    fn order(balance: &LoadBalance, records: Vec<Record>, seed: u64) -> Vec<u8> {
        let client = ([127, 0, 0, 1], 1).into();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let arrival = Arrival { client, transport: Transport::Udp, now: Instant::now(), random };
        // A header, the root, A, IN.
        let query = Query::parse(&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1], arrival).unwrap();
        let mut reply = Reply { answer: records, ..Reply::default() };
        balance.answered(&query, &mut reply);
        let last = |record: &Record| match address(record) {
            Some(IpAddr::V4(ip)) => ip.octets()[3],
            _ => 0,
        };
        reply.answer.iter().map(last).collect()
    }

    #[test]
    fn addresses_move_and_aliases_come_first() {
        let alias = record(DnsName::root_bytes(), 5, Data::Cname(Cname::new(DnsName::root_bytes())));
        let records: Vec<_> = (1..=3).map(record_of).chain([alias]).collect();
        let orders: HashSet<_> = (0..1000).map(|seed| order(&LoadBalance::default(), records.clone(), seed)).collect();
        assert!(orders.iter().all(|order| order[0] == 0), "{orders:?}");
        assert_eq!(orders.len(), 6, "every order of three addresses");
    }

    #[test]
    fn preferred_ranges_come_first() {
        let preferred = vec!["10.0.0.4/32".parse().unwrap(), "10.0.0.0/30".parse().unwrap()];
        let balance = LoadBalance { preferred, ..LoadBalance::default() };
        let records: Vec<_> = (1..=6).map(record_of).collect();
        let orders: HashSet<_> = (0..1000).map(|seed| order(&balance, records.clone(), seed)).collect();
        for order in &orders {
            let sorted = |part: &[u8]| part.iter().copied().collect::<std::collections::BTreeSet<u8>>();
            assert_eq!(order[0], 4);
            assert_eq!(sorted(&order[1..4]), [1, 2, 3].into());
        }
        assert_eq!(orders.len(), 12, "both groups in every order");
    }

    #[test]
    fn weights_decide_who_is_first() {
        let weights = parse("# x\n.\n10.0.0.1 6\n10.0.0.2 3\n\n other.test\n10.0.0.3 200\n").unwrap();
        assert_eq!(weights.len(), 2);
        let weighted = Weighted { file: WatchedFile::new("", RELOAD), weights: RwLock::new(weights) };
        let balance = LoadBalance { weighted: Some(Arc::new(weighted)), ..LoadBalance::default() };
        let records: Vec<_> = (1..=3).map(record_of).collect();
        let mut first: HashMap<u8, i32> = HashMap::new();
        for seed in 0..10_000 {
            *first.entry(order(&balance, records.clone(), seed)[0]).or_default() += 1;
        }
        for (last, share) in [(1, 6000), (2, 3000), (3, 1000)] {
            assert!((first[&last] - share).abs() < 300, "{first:?}");
        }
    }

    #[test]
    fn broken_weight_files() {
        for (text, wanted) in [
            ("10.0.0.1 5", "1: no name before this address: \"10.0.0.1 5\""),
            ("a\n10.0.0.1", "2: expected a weight after the address: \"10.0.0.1\""),
            ("a\n10.0.0.1 256", "2: not a weight from 1 to 255: \"10.0.0.1 256\""),
            ("a\nb 5", "2: not an address: \"b 5\""),
            ("a b c", "1: expected a name, or an address and its weight: \"a b c\""),
            ("a..b", "1: not a domain name: \"a..b\""),
        ] {
            assert_eq!(parse(text), Err(wanted.to_owned()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_weight_file_is_survived(text in "([a-z.#]{0,6}|10.0.0.[0-9]|[0-9]{1,4}|[ \n]{1,2}){0,20}") {
            if let Ok(weights) = parse(&text) {
                prop_assert!(weights.values().flatten().all(|(_, weight)| *weight > 0));
            }
        }
    }
}
