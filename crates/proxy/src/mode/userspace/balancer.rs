//! Which backend a client gets: round robin, session affinity, and last what has just failed.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::plan::Backend;

/// How long a backend that failed is tried after all others.
const GRUDGE: Duration = Duration::from_secs(10);
/// So many clients are remembered before the expired ones are looked for.
const MANY: usize = 1024;

/// Chooses among the backends of one Service port.
#[derive(Debug, Default)]
pub struct Balancer {
    /// Sorted.
    backends: Arc<[Backend]>,
    affinity: Option<Duration>,
    /// The one chosen last: whatever comes after it is next, whether it still exists or not.
    last: Option<Backend>,
    clients: HashMap<IpAddr, Sticky>,
    /// When the clients are next searched for expired ones: at this number.
    search_at: usize,
    /// When each failed.
    failed: HashMap<Backend, Instant>,
}

/// What a client got.
#[derive(Debug, Clone, Copy)]
struct Sticky {
    backend: Backend,
    used: Instant,
}

impl Balancer {
    /// Replaces the backends (sorted) and how long a client keeps one. Clients of backends that stay keep them.
    pub fn set(&mut self, backends: Arc<[Backend]>, affinity: Option<Duration>) {
        self.backends = backends;
        self.affinity = affinity;
        if affinity.is_none() {
            self.clients = HashMap::new();
        }
        let backends = &self.backends;
        self.failed.retain(|backend, _| backends.binary_search(backend).is_ok());
    }

    /// The backends, sorted.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Whether a backend is one of them.
    pub fn has(&self, backend: &Backend) -> bool {
        self.backends.binary_search(backend).is_ok()
    }

    /// The backend for a new connection of `client`, but none of `avoid`; `None` when no other is left.
    pub fn pick(&mut self, client: IpAddr, avoid: &[Backend], now: Instant) -> Option<Backend> {
        let usable = |backend: &Backend| !avoid.contains(backend);
        let kept = self.kept(client, now).filter(usable);
        let backend = kept.or_else(|| {
            let next = self.next(|backend| usable(backend) && !self.has_failed(backend, now));
            let next = next.or_else(|| self.next(usable))?;
            self.last = Some(next);
            Some(next)
        })?;
        if self.affinity.is_some() {
            self.clients.insert(client, Sticky { backend, used: now });
            self.forget_expired(now);
        }
        Some(backend)
    }

    /// A backend did not take a connection.
    pub fn failed(&mut self, backend: Backend, now: Instant) {
        self.failed.retain(|_, since| now.saturating_duration_since(*since) < GRUDGE);
        if self.has(&backend) {
            self.failed.insert(backend, now);
        }
    }

    /// A backend took a connection.
    pub fn succeeded(&mut self, backend: &Backend) {
        self.failed.remove(backend);
    }

    fn has_failed(&self, backend: &Backend, now: Instant) -> bool {
        self.failed.get(backend).is_some_and(|since| now.saturating_duration_since(*since) < GRUDGE)
    }

    fn kept(&self, client: IpAddr, now: Instant) -> Option<Backend> {
        let (sticky, time) = (self.clients.get(&client)?, self.affinity?);
        let fresh = now.saturating_duration_since(sticky.used) < time;
        (fresh && self.has(&sticky.backend)).then_some(sticky.backend)
    }

    fn next(&self, wanted: impl Fn(&Backend) -> bool) -> Option<Backend> {
        let begin = self.backends.partition_point(|backend| Some(*backend) <= self.last);
        let (before, after) = self.backends.split_at(begin);
        after.iter().chain(before).copied().find(wanted)
    }

    fn forget_expired(&mut self, now: Instant) {
        if self.clients.len() >= self.search_at.max(MANY) {
            let time = self.affinity.unwrap_or_default();
            self.clients.retain(|_, sticky| now.saturating_duration_since(sticky.used) < time);
            self.search_at = 2 * self.clients.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn backend(number: u8) -> Backend {
        Backend { address: Ipv4Addr::new(10, 244, 0, number).into(), port: 8080 }
    }

    fn client(number: u8) -> IpAddr {
        Ipv4Addr::new(172, 25, 2, number).into()
    }

    fn balancer(numbers: impl IntoIterator<Item = u8>, affinity: Option<Duration>) -> Balancer {
        let mut balancer = Balancer::default();
        balancer.set(numbers.into_iter().map(backend).collect(), affinity);
        balancer
    }

    #[test]
    fn one_after_the_other_whatever_joins_and_leaves() {
        let now = Instant::now();
        let mut balancer = balancer([1, 3, 5], None);
        let next = |balancer: &mut Balancer| balancer.pick(client(1), &[], now).unwrap();
        assert_eq!([(); 4].map(|()| next(&mut balancer)), [1, 3, 5, 1].map(backend));
        balancer.set([1, 2, 3].map(backend).into(), None);
        assert_eq!([(); 3].map(|()| next(&mut balancer)), [2, 3, 1].map(backend));
        balancer.set([2, 9].map(backend).into(), None);
        assert_eq!(next(&mut balancer), backend(2));
        balancer.set([].into(), None);
        assert_eq!(balancer.pick(client(1), &[], now), None);
    }

    #[test]
    fn a_client_keeps_its_backend_for_a_time_after_its_last_connection() {
        let (now, time) = (Instant::now(), Duration::from_secs(60));
        let mut balancer = balancer([1, 2, 3], Some(time));
        assert_eq!(balancer.pick(client(1), &[], now), Some(backend(1)));
        assert_eq!(balancer.pick(client(2), &[], now), Some(backend(2)));
        let later = now + Duration::from_secs(59);
        assert_eq!(balancer.pick(client(1), &[], later), Some(backend(1)));
        balancer.set([1, 9].map(backend).into(), Some(time));
        let later = later + Duration::from_secs(59);
        assert_eq!(balancer.pick(client(1), &[], later), Some(backend(1)), "it stays");
        assert_eq!(balancer.pick(client(2), &[], later), Some(backend(9)), "2 is gone");
        let much_later = later + time;
        assert_eq!(balancer.pick(client(1), &[], much_later), Some(backend(1)), "expired: the next one");
        assert_eq!(balancer.pick(client(2), &[], much_later), Some(backend(9)));
        // It refused this client: the client moves for good.
        assert_eq!(balancer.pick(client(1), &[backend(1)], much_later), Some(backend(9)));
        assert_eq!(balancer.pick(client(1), &[], much_later), Some(backend(9)));
    }

    #[test]
    fn what_failed_is_tried_last_for_a_while() {
        let now = Instant::now();
        let mut balancer = balancer([1, 2, 3], None);
        balancer.failed(backend(2), now);
        let picks = |balancer: &mut Balancer, now| [(); 4].map(|()| balancer.pick(client(1), &[], now).unwrap());
        assert_eq!(picks(&mut balancer, now), [1, 3, 1, 3].map(backend));
        assert_eq!(balancer.pick(client(1), &[1, 3].map(backend), now), Some(backend(2)));
        assert_eq!(balancer.pick(client(1), &[1, 2, 3].map(backend), now), None);
        assert_eq!(picks(&mut balancer, now + GRUDGE), [3, 1, 2, 3].map(backend));
        balancer.failed(backend(1), now);
        balancer.succeeded(&backend(1));
        assert_eq!(balancer.pick(client(1), &[], now), Some(backend(1)));
    }

    #[test]
    fn expired_clients_are_forgotten() {
        let (now, time) = (Instant::now(), Duration::from_secs(1));
        let mut balancer = balancer([1], Some(time));
        for number in 0..5000_u32 {
            let client = Ipv4Addr::from(number).into();
            balancer.pick(client, &[], now + Duration::from_millis(number.into()));
        }
        assert!(balancer.clients.len() <= 2 * 1000 + MANY, "{}", balancer.clients.len());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(BTreeSet<u8>),
        Pick(u8, BTreeSet<u8>),
        Fail(u8),
        Succeed(u8),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let some = || proptest::collection::btree_set(0..6_u8, 0..6);
        proptest::collection::vec(
            prop_oneof![
                some().prop_map(Step::Set),
                (0..4_u8, some()).prop_map(|(client, avoid)| Step::Pick(client, avoid)),
                (0..6_u8).prop_map(Step::Fail),
                (0..6_u8).prop_map(Step::Succeed),
                (0..40_u64).prop_map(Step::Wait),
            ],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn a_pick_is_a_backend_that_is_not_avoided_and_sticks(steps in steps()) {
            let time = Duration::from_secs(30);
            let (mut now, mut balancer, mut live) = (Instant::now(), balancer([], Some(time)), BTreeSet::new());
            // What each client should keep: naive.
            let mut kept: HashMap<u8, (u8, Instant)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Set(numbers) => {
                        balancer.set(numbers.iter().copied().map(backend).collect(), Some(time));
                        live = numbers;
                    }
                    Step::Pick(from, avoid) => {
                        let avoided: Vec<_> = avoid.iter().copied().map(backend).collect();
                        let picked = balancer.pick(client(from), &avoided, now);
                        let Some(number) = live.iter().copied().find(|number| picked == Some(backend(*number))) else {
                            prop_assert_eq!(picked, None);
                            prop_assert!(live.is_subset(&avoid));
                            continue;
                        };
                        prop_assert!(!avoid.contains(&number));
                        if let Some((keeps, used)) = kept.get(&from)
                            && now - *used < time && live.contains(keeps) && !avoid.contains(keeps)
                        {
                            prop_assert_eq!(number, *keeps);
                        }
                        kept.insert(from, (number, now));
                    }
                    Step::Fail(number) => balancer.failed(backend(number), now),
                    Step::Succeed(number) => balancer.succeeded(&backend(number)),
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
            }
        }

        #[test]
        fn everyone_gets_the_same_share(count in 1..20_u8, rounds in 1..5_usize) {
            let (now, mut balancer) = (Instant::now(), balancer(0..count, None));
            let mut shares: HashMap<Backend, usize> = HashMap::new();
            for _ in 0..rounds * usize::from(count) {
                *shares.entry(balancer.pick(client(1), &[], now).unwrap()).or_default() += 1;
            }
            prop_assert_eq!(shares.len(), usize::from(count));
            prop_assert!(shares.values().all(|share| *share == rounds));
        }
    }
}
