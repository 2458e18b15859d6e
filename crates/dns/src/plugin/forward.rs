//! `forward`: asks other DNS servers.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::iana::Rcode;
use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tracing::warn;

use super::{Plugin, Step, upstream::Upstream};
use crate::{
    corefile::{CorefileError, Directive, Word, zone_names},
    message::{DnsName, Query, Reply},
    metrics::Metrics,
    program::{SiteBuilder, nearest, zones},
    random::Random,
    router::Rest,
};

const NAME: &str = "forward";
/// How long a client waits for us altogether: less than the 5 s after which resolvers give up, so that it hears why.
const DEADLINE: Duration = Duration::from_secs(4);
/// How often each upstream is asked for one query: a datagram may get lost.
const ROUNDS: usize = 2;
/// The most upstreams (CoreDNS).
const MAX_UPSTREAMS: usize = 15;
/// Failures in a row that put an upstream aside (CoreDNS).
const MAX_FAILS: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Random,
    RoundRobin,
    Sequential,
}

/// `forward FROM TO… { except ZONES…; policy POLICY; force_tcp; prefer_udp; max_concurrent N; max_fails N }`
struct Forward {
    from: Vec<DnsName>,
    except: Vec<DnsName>,
    pool: Arc<Pool>,
}

struct Pool {
    upstreams: Vec<Upstream>,
    /// Why there are no upstreams, if so.
    without: String,
    policy: Policy,
    next: AtomicUsize,
    concurrent: Option<Semaphore>,
    random: Arc<Random>,
    metrics: Arc<Metrics>,
}

impl Plugin for Forward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, _rest: &Rest<'_>) -> Step {
        if nearest(&self.from, &query.name).is_none() || nearest(&self.except, &query.name).is_some() {
            return Step::Next;
        }
        if self.pool.upstreams.is_empty() {
            return Step::Reply(Reply::failure(NAME, self.pool.without.clone()));
        }
        let (pool, query) = (self.pool.clone(), query.clone());
        Step::Wait(async move { pool.resolve(&query).await }.boxed())
    }
}

impl Pool {
    async fn resolve(&self, query: &Query) -> Reply {
        let permit = self.concurrent.as_ref().map(Semaphore::try_acquire);
        if let Some(Err(_)) = permit {
            return Reply {
                error: Some("max_concurrent queries are under way".to_owned()),
                ..Reply::code(Rcode::REFUSED, NAME)
            };
        }
        let deadline = Instant::now() + DEADLINE;
        let start = self.start();
        let count = self.upstreams.len();
        let mut errors: Vec<String> = Vec::new();
        for turn in 0..count * ROUNDS {
            let upstream = &self.upstreams[(start + turn) % count];
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !upstream.is_up(Instant::now()) {
                continue;
            }
            match upstream.ask(query, left, &self.random).await {
                Ok(reply) => return Reply { plugin: NAME, ..reply },
                Err(error) => errors.push(format!("{}: {error}", upstream.address)),
            }
        }
        self.metrics.forward_failures.inc();
        errors.dedup();
        Reply::failure(
            NAME,
            match errors.is_empty() {
                true => format!("every upstream is put aside for failing: {}", self.addresses()),
                false => format!("no upstream answered: {}", errors.join("; ")),
            },
        )
    }

    /// The index of the upstream to ask first.
    fn start(&self) -> usize {
        match self.policy {
            Policy::Random => (self.random.next() >> 32) as usize,
            Policy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed),
            Policy::Sequential => 0,
        }
    }

    fn addresses(&self) -> String {
        let addresses: Vec<_> = self.upstreams.iter().map(|upstream| upstream.address.to_string()).collect();
        addresses.join(", ")
    }
}

pub(super) fn setup(directive: &Directive, site: &mut SiteBuilder<'_>) -> Result<(), CorefileError> {
    let (from, to) = directive.arguments(2, usize::MAX)?.split_at(1);
    let mut without = String::new();
    let mut addresses = Vec::new();
    for word in to {
        addresses.extend(upstreams(word, &mut without)?);
    }
    if addresses.len() > MAX_UPSTREAMS {
        return Err(directive.error(format!("forward: {} upstreams, at most {MAX_UPSTREAMS}", addresses.len())));
    }
    let mut options =
        Options { except: Vec::new(), policy: Policy::Random, concurrent: None, tcp: false, fails: MAX_FAILS };
    directive.body.iter().try_for_each(|option| options.set(option))?;
    let pool = Pool {
        upstreams: addresses.into_iter().map(|address| Upstream::new(address, options.tcp, options.fails)).collect(),
        without,
        policy: options.policy,
        next: AtomicUsize::new(0),
        concurrent: options.concurrent.map(Semaphore::new),
        random: site.environment.random.clone(),
        metrics: site.environment.metrics.clone(),
    };
    if pool.upstreams.is_empty() {
        warn!("forward: {}; names outside the cluster get SERVFAIL", pool.without);
    }
    site.add(Forward { from: zone_names(&from[0])?, except: options.except, pool: Arc::new(pool) });
    Ok(())
}

struct Options {
    except: Vec<DnsName>,
    policy: Policy,
    concurrent: Option<usize>,
    tcp: bool,
    fails: u32,
}

impl Options {
    fn set(&mut self, option: &Directive) -> Result<(), CorefileError> {
        match option.name() {
            "except" => self.except.extend(zones(option.plain(1, usize::MAX)?)?),
            "policy" => {
                let [policy] = option.plain(1, 1)? else { return Ok(()) };
                self.policy = match policy.text.as_str() {
                    "random" => Policy::Random,
                    "round_robin" => Policy::RoundRobin,
                    "sequential" => Policy::Sequential,
                    other => {
                        return Err(
                            policy.error(format!("policy: {other:?} is not one of random, round_robin, sequential"))
                        );
                    }
                };
            }
            "force_tcp" => {
                option.plain(0, 0)?;
                self.tcp = true;
            }
            // Queries go by UDP unless force_tcp says otherwise, whatever the client used.
            "prefer_udp" => drop(option.plain(0, 0)?),
            "max_concurrent" => {
                let [number] = option.plain(1, 1)? else { return Ok(()) };
                let limit = usize::try_from(number.number(1 << 24)?).unwrap_or_default();
                self.concurrent = (limit > 0).then_some(limit);
            }
            "max_fails" => {
                let [number] = option.plain(1, 1)? else { return Ok(()) };
                self.fails = u32::try_from(number.number(u32::MAX.into())?).unwrap_or(MAX_FAILS);
            }
            "expire"
            | "tls"
            | "tls_servername"
            | "health_check"
            | "next"
            | "failover"
            | "failfast_all_unhealthy_upstreams"
            | "max_idle_conns"
            | "max_age"
            | "doh_method"
            | "resolver"
            | "read_timeout" => {
                return Err(option.unsupported_option(NAME));
            }
            _ => return Err(option.unknown_option(NAME)),
        }
        Ok(())
    }
}

/// The servers that a word names: an address, or a file such as `/etc/resolv.conf`. A file that is missing or names none
/// is no error, since names of the cluster can be answered all the same; `without` says so for those that cannot.
fn upstreams(word: &Word, without: &mut String) -> Result<Vec<SocketAddr>, CorefileError> {
    let text = match word.text.split_once("://") {
        Some(("dns", rest)) => rest,
        Some((transport, _)) => {
            return Err(word.error(format!("forward: transport {transport:?} is not supported yet, only dns")));
        }
        None => &word.text,
    };
    if let Some(address) = address(text) {
        return Ok(vec![address]);
    }
    if !text.starts_with(['/', '.']) {
        return Err(word.error(format!("forward: {text:?} is neither an address nor a file such as /etc/resolv.conf")));
    }
    let servers = match fs::read_to_string(text) {
        Ok(file) => nameservers(&file),
        Err(error) => {
            *without = format!("no upstream: cannot read {text}: {error}");
            return Ok(Vec::new());
        }
    };
    if servers.is_empty() {
        *without = format!("no upstream: {text} names no nameserver");
    }
    Ok(servers)
}

fn address(text: &str) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse().ok().or_else(|| bare.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 53)))
}

/// The `nameserver` lines of a resolv.conf(5).
fn nameservers(file: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        // A scope such as fe80::1%eth0 has no place in a plain address.
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next()).and_then(address)
    };
    file.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let file = "# nameserver 1.1.1.1\nsearch x\nnameserver 10.0.0.1\n nameserver\tfd00::1 \nnameserver\nnameserver fe80::1%eth0\n";
        assert_eq!(nameservers(file), ["10.0.0.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }

    #[test]
    fn addresses() {
        for (text, wanted) in
            [("10.0.0.1", "10.0.0.1:53"), ("10.0.0.1:54", "10.0.0.1:54"), ("[::1]:54", "[::1]:54"), ("::1", "[::1]:53")]
        {
            assert_eq!(address(text), Some(wanted.parse().unwrap()));
        }
        assert_eq!(address("example.org"), None);
    }
}
