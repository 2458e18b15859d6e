//! Desired against actual, solved once.
//!
//! A [`Delta`] holds what should be (`desired`) and what is known to be (`actual`) for one kind of kernel object, and
//! the keys where the two differ. Its pending work depends on those two states only, never on the order of the
//! calls that led to them, and costs time in proportion to the difference.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

/// Desired and actual state of a keyed set of objects, and where they differ.
#[derive(Debug, Clone)]
pub struct Delta<K, V> {
    /// What is known of each key: the desired value, then the actual one; never neither. One map, so that a key is
    /// held once.
    states: HashMap<K, (Option<V>, Option<V>)>,
    pending: BTreeSet<K>,
}

/// One step that brings the actual state nearer to the desired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a, K, V> {
    /// The object is missing.
    Create(&'a K, &'a V),
    /// The object differs: the actual value, then the desired one.
    Replace(&'a K, &'a V, &'a V),
    /// The object should not be there.
    Delete(&'a K, &'a V),
}

impl<K: Ord + Hash + Clone, V: PartialEq + Clone> Default for Delta<K, V> {
    fn default() -> Self {
        Self { states: HashMap::new(), pending: BTreeSet::new() }
    }
}

impl<K: Ord + Hash + Clone, V: PartialEq + Clone> Delta<K, V> {
    /// An empty desired and actual state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `key` should exist as `value`.
    pub fn want(&mut self, key: K, value: V) {
        self.set(key, |state| state.0 = Some(value));
    }

    /// Says that `key` should not exist.
    pub fn unwant(&mut self, key: &K) {
        if self.desired(key).is_some() {
            self.set(key.clone(), |state| state.0 = None);
        }
    }

    /// Replaces the whole desired state.
    pub fn want_exactly(&mut self, desired: impl IntoIterator<Item = (K, V)>) {
        self.states.values_mut().for_each(|state| state.0 = None);
        for (key, value) in desired {
            self.states.entry(key).or_insert((None, None)).0 = Some(value);
        }
        self.compare_all();
    }

    /// Replaces the whole actual state, as a dump of the kernel showed it.
    pub fn found(&mut self, actual: impl IntoIterator<Item = (K, V)>) {
        self.states.values_mut().for_each(|state| state.1 = None);
        for (key, value) in actual {
            self.states.entry(key).or_insert((None, None)).1 = Some(value);
        }
        self.compare_all();
    }

    /// Says that the kernel now holds `key` as `value`.
    pub fn is(&mut self, key: K, value: V) {
        self.set(key, |state| state.1 = Some(value));
    }

    /// Says that the kernel no longer holds `key`.
    pub fn is_gone(&mut self, key: &K) {
        if self.actual(key).is_some() {
            self.set(key.clone(), |state| state.1 = None);
        }
    }

    /// The steps still to take, in key order. Report each with [`Delta::is`] or [`Delta::is_gone`] once it is done.
    pub fn pending(&self) -> impl Iterator<Item = Step<'_, K, V>> {
        self.pending.iter().filter_map(|key| match self.states.get(key)? {
            (Some(to), None) => Some(Step::Create(key, to)),
            (Some(to), Some(from)) => Some(Step::Replace(key, from, to)),
            (None, Some(from)) => Some(Step::Delete(key, from)),
            (None, None) => None,
        })
    }

    /// Marks every pending step as done: for appliers that commit all of them in one transaction.
    pub fn all_done(&mut self) {
        for key in std::mem::take(&mut self.pending) {
            match self.states.get_mut(&key) {
                Some((None, _)) => _ = self.states.remove(&key),
                Some((desired, actual)) => actual.clone_from(desired),
                None => {}
            }
        }
    }

    /// Whether desired and actual agree.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// The desired value of `key`.
    pub fn desired(&self, key: &K) -> Option<&V> {
        self.states.get(key)?.0.as_ref()
    }

    /// The actual value of `key`, as last reported.
    pub fn actual(&self, key: &K) -> Option<&V> {
        self.states.get(key)?.1.as_ref()
    }

    /// Every key that is known to be there, in no particular order.
    pub fn all_actual(&self) -> impl Iterator<Item = &K> {
        self.states.iter().filter(|(_, (_, actual))| actual.is_some()).map(|(key, _)| key)
    }

    fn set(&mut self, key: K, change: impl FnOnce(&mut (Option<V>, Option<V>))) {
        let state = self.states.entry(key.clone()).or_insert((None, None));
        change(state);
        let (desired, actual) = state;
        if desired.is_none() && actual.is_none() {
            self.states.remove(&key);
            self.pending.remove(&key);
        } else if desired == actual {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key);
        }
    }

    fn compare_all(&mut self) {
        self.states.retain(|_, (desired, actual)| desired.is_some() || actual.is_some());
        let differing = self.states.iter().filter(|(_, (desired, actual))| desired != actual);
        self.pending = differing.map(|(key, _)| key.clone()).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(delta: &Delta<u8, char>) -> Vec<Step<'_, u8, char>> {
        delta.pending().collect()
    }

    #[test]
    fn pending_is_the_difference_in_key_order() {
        let mut delta = Delta::new();
        delta.found([(1, 'a'), (2, 'b'), (4, 'd')]);
        delta.want_exactly([(4, 'x'), (3, 'c'), (1, 'a')]);
        assert_eq!(steps(&delta), [Step::Delete(&2, &'b'), Step::Create(&3, &'c'), Step::Replace(&4, &'d', &'x')]);
    }

    #[test]
    fn a_change_taken_back_leaves_nothing_to_do() {
        let mut delta = Delta::new();
        delta.found([(1, 'a')]);
        delta.want(1, 'a');
        delta.want(1, 'b');
        delta.want(2, 'c');
        delta.want(1, 'a');
        delta.unwant(&2);
        assert!(delta.is_settled());
    }

    #[test]
    fn the_same_states_by_another_road_give_the_same_steps() {
        let mut whole = Delta::new();
        whole.found([(1, 'a'), (2, 'b')]);
        whole.want_exactly([(2, 'z'), (3, 'c')]);
        let mut piecemeal = Delta::new();
        piecemeal.want(3, 'q');
        piecemeal.is(2, 'b');
        piecemeal.want(9, 'n');
        piecemeal.want(3, 'c');
        piecemeal.is(1, 'a');
        piecemeal.unwant(&9);
        piecemeal.want(2, 'z');
        assert_eq!(steps(&whole), steps(&piecemeal));
    }

    #[test]
    fn reported_steps_settle_it() {
        let mut delta = Delta::new();
        delta.found([(1, 'a'), (2, 'b')]);
        delta.want_exactly([(2, 'z'), (3, 'c')]);
        delta.is_gone(&1);
        delta.is(2, 'z');
        assert_eq!(steps(&delta), [Step::Create(&3, &'c')]);
        delta.all_done();
        assert!(delta.is_settled());
        assert_eq!(delta.actual(&3), Some(&'c'));
        assert_eq!(delta.actual(&1), None);
    }
}
