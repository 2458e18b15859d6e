//! `forward`: asks other DNS servers.

mod connections;
mod flights;
mod metrics;
mod places;
mod setup;
mod tls;
mod upstream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::iana::Rcode;
use futures_util::{
    FutureExt,
    future::{BoxFuture, join, join_all},
};

pub(crate) use self::metrics::ForwardMetrics;
pub(super) use self::setup::setup;
use self::{flights::Flights, places::Places, upstream::Upstream};
use super::{Plugin, Step, cache::Key, loadbalance::fisher_yates};
use crate::{
    message::{DnsName, Query, Reply},
    metrics::Metrics,
    program::nearest,
    router::{OwnedRest, Rest, Router},
};

const NAME: &str = "forward";
/// How long a client waits for us altogether: less than the 5 s after which resolvers give up, so that it hears why.
const DEADLINE: Duration = Duration::from_secs(4);
/// How often each upstream is asked for one query: a datagram may get lost.
const ROUNDS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Random,
    RoundRobin,
    Sequential,
}

/// The directive as it was configured.
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
    turn: AtomicUsize,
    places: Places,
    flights: Flights,
    answers: Answers,
    /// The most time that one upstream gets for an answer.
    read_timeout: Duration,
    /// The most attempts for one query.
    max_attempts: usize,
    /// Answer SERVFAIL at once while all upstreams are down.
    fail_fast: bool,
    /// How often idle connections are looked through.
    expire: Duration,
    metrics: Arc<Metrics>,
}

/// Answers that are not taken as they are.
#[derive(Default)]
struct Answers {
    /// Codes with which the next upstream is asked.
    failover: Vec<Rcode>,
    /// Codes with which the next `forward` is asked.
    next: Vec<Rcode>,
    /// Whether the next `forward` is asked when there is nothing of the type.
    next_on_nodata: bool,
}

impl Plugin for Forward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ask(&self, query: &Query, rest: &Rest<'_>) -> Step {
        if nearest(&self.from, &query.name).is_none() || nearest(&self.except, &query.name).is_some() {
            return Step::Next;
        }
        if self.pool.upstreams.is_empty() {
            return Step::Reply(Reply::failure(NAME, self.pool.without.clone()));
        }
        let next = (self.pool.answers.go_on() && rest.first() == Some(NAME)).then(|| rest.owned());
        let (pool, query) = (self.pool.clone(), query.clone());
        Step::Wait(async move { pool.resolve(&query, next).await }.boxed())
    }

    fn background(&self, _router: &Arc<Router>) -> Option<BoxFuture<'static, ()>> {
        let pool = self.pool.clone();
        let task = async move {
            let checks = join_all(pool.upstreams.iter().map(Upstream::watch));
            join(checks, pool.close_idle()).await;
        };
        Some(task.boxed())
    }
}

impl Answers {
    fn go_on(&self) -> bool {
        self.next_on_nodata || !self.next.is_empty()
    }

    fn is_for_next(&self, reply: &Reply) -> bool {
        let nodata = reply.rcode == Rcode::NOERROR && reply.answer.is_empty();
        self.next.contains(&reply.rcode) || (self.next_on_nodata && nodata)
    }
}

impl Pool {
    async fn resolve(self: &Arc<Self>, query: &Query, next: Option<OwnedRest>) -> Reply {
        let Some(_place) = self.places.take(query.arrival.client.ip()) else {
            self.metrics.forward.rejects.inc();
            let error = Some("too many queries are under way, of this client or altogether".to_owned());
            return Reply { error, ..Reply::code(Rcode::REFUSED, NAME) };
        };
        let flight = self.flights.join(Key::of(query), || {
            let (pool, query) = (self.clone(), query.clone());
            async move { pool.ask_upstreams(&query).await }.boxed()
        });
        let reply = flight.await;
        match next.filter(|_| self.answers.is_for_next(&reply)) {
            Some(next) => next.resolve(query).await,
            None => reply.retold(query, |ttl| ttl),
        }
    }

    async fn ask_upstreams(&self, query: &Query) -> Reply {
        let deadline = Instant::now() + DEADLINE.max(self.read_timeout);
        let order = self.order(query.arrival.random);
        let mut attempts = order.len() * ROUNDS;
        let mut healthy: Vec<&Upstream> = order.iter().copied().filter(|upstream| !upstream.is_down()).collect();
        if healthy.is_empty() {
            self.metrics.forward.broken.inc();
            if self.fail_fast {
                return Reply::failure(NAME, format!("every upstream is down: {}", addresses(&order)));
            }
            // Perhaps it is the checks that are broken: try one, any one, once.
            healthy.push(order[query.arrival.random as usize % order.len()]);
            attempts = 1;
        }
        let (mut errors, mut refused): (Vec<String>, Option<Reply>) = (Vec::new(), None);
        let mut refusals = 0;
        let attempts = attempts.min(healthy.len() * ROUNDS).min(self.max_attempts);
        for attempt in 0..attempts {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || refusals >= healthy.len() {
                break;
            }
            // All that are healthy get their turn before the time is up.
            let position = attempt % healthy.len();
            let waiting = u32::try_from(healthy.len() - position).unwrap_or(1);
            let upstream = healthy[position];
            match upstream.ask(query, (left / waiting).min(self.read_timeout)).await {
                Ok(reply) if self.answers.failover.contains(&reply.rcode) => {
                    refusals += 1;
                    refused = Some(reply);
                }
                Ok(reply) => return Reply { plugin: NAME, ..reply },
                Err(error) => errors.push(format!("{}: {error}", upstream.address)),
            }
        }
        errors.dedup();
        let failure = || Reply::failure(NAME, format!("no upstream answered: {}", errors.join("; ")));
        refused.map_or_else(failure, |reply| Reply { plugin: NAME, ..reply })
    }

    /// The upstreams in the order in which to ask them.
    fn order(&self, mut random: u64) -> Vec<&Upstream> {
        let mut order: Vec<&Upstream> = self.upstreams.iter().collect();
        let count = order.len();
        match self.policy {
            Policy::Random => fisher_yates(&mut order, &mut random),
            Policy::RoundRobin => order.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % count),
            Policy::Sequential => {}
        }
        order
    }

    async fn close_idle(&self) {
        loop {
            tokio::time::sleep(self.expire).await;
            self.upstreams.iter().for_each(|upstream| upstream.idle.close_expired());
        }
    }
}

fn addresses(upstreams: &[&Upstream]) -> String {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address.to_string()).collect();
    addresses.join(", ")
}
