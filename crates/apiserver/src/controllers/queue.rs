//! A queue of keys: each at most once in it, at most one worker on a key, and a growing pause after failures.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

/// The pause after a key's first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The queue. A key that is added while a worker has it comes up again when that worker is done.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    /// What is in `ready`, or will be once its worker is done.
    wanted: HashSet<K>,
    working: HashSet<K>,
    failures: HashMap<K, u32>,
    later: BTreeMap<Instant, Vec<K>>,
    /// When a key in `later` is due: only its earliest time counts.
    due: HashMap<K, Instant>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            wanted: HashSet::new(),
            working: HashSet::new(),
            failures: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Asks for a look at `key`, now.
    pub fn add(&mut self, key: K) {
        if self.wanted.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Asks for a look at `key` at `when`.
    pub fn add_at(&mut self, key: K, when: Instant) {
        if self.due.get(&key).is_some_and(|due| *due <= when) {
            return;
        }
        self.due.insert(key.clone(), when);
        self.later.entry(when).or_default().push(key);
    }

    /// The next key to work on; [`Self::done`] must follow.
    pub fn pop(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.wanted.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    /// The worker on `key` is done; after a failure the key comes up again by itself.
    pub fn done(&mut self, key: K, succeeded: bool, now: Instant) {
        self.working.remove(&key);
        if succeeded {
            self.failures.remove(&key);
        } else {
            let failures = self.failures.entry(key.clone()).or_default();
            let pause = FIRST_PAUSE.saturating_mul(1 << (*failures).min(16)).min(LONGEST_PAUSE);
            *failures += 1;
            self.add_at(key.clone(), now + pause);
        }
        if self.wanted.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Moves what is due at `now` to the ready ones; returns when the next is due.
    pub fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some(entry) = self.later.first_entry() {
            let when = *entry.key();
            if when > now {
                return Some(when);
            }
            for key in entry.remove() {
                if self.due.get(&key) == Some(&when) {
                    self.due.remove(&key);
                    self.add(key);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_queued_once_and_worked_on_by_one() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.pop(), Some("a"));
        queue.add("a");
        assert_eq!((queue.pop(), queue.pop()), (Some("b"), None), "a is being worked on");
        queue.done("a", true, now);
        assert_eq!((queue.pop(), queue.pop()), (Some("a"), None));
    }

    #[test]
    fn failures_come_back_later_and_later_until_one_success() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let mut pauses = Vec::new();
        queue.add("a");
        for _ in 0..20 {
            assert_eq!(queue.pop(), Some("a"));
            queue.done("a", false, now);
            assert_eq!(queue.pop(), None);
            let when = queue.wake(now).unwrap();
            pauses.push((when - now).as_millis());
            now = when;
            assert_eq!(queue.wake(now), None);
        }
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[19], 30_000);
        queue.pop();
        queue.done("a", true, now);
        queue.add("a");
        queue.pop();
        queue.done("a", false, now);
        assert_eq!(queue.wake(now), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn the_earliest_of_several_times_counts() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add_at("a", now + Duration::from_secs(9));
        queue.add_at("a", now + Duration::from_secs(3));
        queue.add_at("a", now + Duration::from_secs(6));
        assert_eq!(queue.wake(now), Some(now + Duration::from_secs(3)));
        queue.wake(now + Duration::from_secs(3));
        assert_eq!((queue.pop(), queue.pop()), (Some("a"), None));
        queue.done("a", true, now);
        assert_eq!(queue.wake(now + Duration::from_secs(10)), None);
        assert_eq!(queue.pop(), None, "the later times were superseded");
    }
}
