use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{Change, Collection, Event, Gone, History, Key, Listing, Object, Store, StoreError};

/// Changes remembered for each collection, unless told otherwise.
const HISTORY: usize = 4096;

/// A [`Store`] in memory: nothing survives the process.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    history: usize,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    shelves: HashMap<Collection, Shelf>,
}

/// One collection.
#[derive(Debug)]
struct Shelf {
    objects: BTreeMap<Key, Arc<Object>>,
    events: VecDeque<Arc<Event>>,
    /// The revision of the newest event that was forgotten.
    forgotten: u64,
    changed: watch::Sender<u64>,
}

impl Default for Shelf {
    fn default() -> Self {
        Shelf { objects: BTreeMap::new(), events: VecDeque::new(), forgotten: 0, changed: watch::Sender::new(0) }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::with_history(HISTORY)
    }
}

impl Memory {
    /// A store that remembers the last `history` changes of each collection.
    pub fn with_history(history: usize) -> Memory {
        // Revision 0 means "any" to clients, so the first state has revision 1.
        Memory { state: Mutex::new(State { revision: 1, ..State::default() }), history }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code between lock and unlock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the change at the next revision. `value` is `None` to remove.
    fn commit(&mut self, collection: Collection, key: Key, value: Option<Value>, history: usize) -> Arc<Object> {
        self.revision += 1;
        let revision = self.revision;
        let shelf = self.shelves.entry(collection).or_default();
        let previous = shelf.objects.remove(&key);
        let (change, object) = match (value, &previous) {
            (Some(value), None) => (Change::Added, Object::new(value, revision)),
            (Some(value), Some(_)) => (Change::Modified, Object::new(value, revision)),
            (None, last) => {
                let last = last.as_ref().map_or(Value::Null, |o| o.value().clone());
                (Change::Deleted, Object::new(last, revision))
            }
        };
        let object = Arc::new(object);
        if change != Change::Deleted {
            shelf.objects.insert(key, object.clone());
        }
        shelf.events.push_back(Arc::new(Event { revision, change, object: object.clone(), previous }));
        while shelf.events.len() > history {
            if let Some(event) = shelf.events.pop_front() {
                shelf.forgotten = event.revision;
            }
        }
        shelf.changed.send_replace(revision);
        object
    }

    fn check(&self, collection: Collection, key: &Key, expected: u64) -> Result<(), StoreError> {
        let object = self.shelves.get(collection).and_then(|s| s.objects.get(key)).ok_or(StoreError::NotFound)?;
        if object.revision() == expected { Ok(()) } else { Err(StoreError::Modified) }
    }
}

impl Store for Memory {
    fn get(&self, collection: Collection, key: &Key) -> Option<Arc<Object>> {
        self.lock().shelves.get(collection)?.objects.get(key).cloned()
    }

    fn list(&self, collection: Collection, namespace: Option<&str>) -> Listing {
        let state = self.lock();
        let items = match (state.shelves.get(collection), namespace) {
            (None, _) => Vec::new(),
            (Some(shelf), None) => shelf.objects.values().cloned().collect(),
            (Some(shelf), Some(namespace)) => {
                let first = Key { namespace: namespace.to_owned(), name: String::new() };
                let range = shelf.objects.range((Bound::Included(first), Bound::Unbounded));
                range.take_while(|(k, _)| k.namespace == namespace).map(|(_, o)| o.clone()).collect()
            }
        };
        Listing { items, revision: state.revision }
    }

    fn create(&self, collection: Collection, key: Key, value: Value) -> Result<Arc<Object>, StoreError> {
        let mut state = self.lock();
        if state.shelves.get(collection).is_some_and(|s| s.objects.contains_key(&key)) {
            return Err(StoreError::Exists);
        }
        Ok(state.commit(collection, key, Some(value), self.history))
    }

    fn update(
        &self,
        collection: Collection,
        key: &Key,
        expected: u64,
        value: Value,
    ) -> Result<Arc<Object>, StoreError> {
        let mut state = self.lock();
        state.check(collection, key, expected)?;
        Ok(state.commit(collection, key.clone(), Some(value), self.history))
    }

    fn delete(&self, collection: Collection, key: &Key, expected: u64) -> Result<Arc<Object>, StoreError> {
        let mut state = self.lock();
        state.check(collection, key, expected)?;
        Ok(state.commit(collection, key.clone(), None, self.history))
    }

    fn history(&self, collection: Collection, revision: u64) -> Result<History, Gone> {
        let state = self.lock();
        let shelf = state.shelves.get(collection);
        let oldest = shelf.map_or(0, |s| s.forgotten);
        if revision < oldest || revision > state.revision {
            return Err(Gone { oldest });
        }
        let events = shelf.map_or_else(Vec::new, |shelf| {
            let start = shelf.events.partition_point(|e| e.revision <= revision);
            shelf.events.range(start..).cloned().collect()
        });
        Ok(History { events, revision: state.revision })
    }

    fn subscribe(&self, collection: Collection) -> watch::Receiver<u64> {
        self.lock().shelves.entry(collection).or_default().changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn changes_are_told_in_order_and_deletions_carry_their_own_revision() {
        let store = Memory::default();
        let start = store.list("pods", None).revision;
        let a = store.create("pods", key("a"), json!({"n": 1})).unwrap();
        let b = store.update("pods", &key("a"), a.revision(), json!({"n": 2})).unwrap();
        store.create("nodes", key("other"), json!({})).unwrap();
        let c = store.delete("pods", &key("a"), b.revision()).unwrap();
        let history = store.history("pods", start).unwrap();
        let told: Vec<_> = history.events.iter().map(|e| (e.change, e.revision)).collect();
        assert_eq!(told, [(Change::Added, 2), (Change::Modified, 3), (Change::Deleted, 5)]);
        assert_eq!(history.revision, 5);
        assert_eq!(c.value()["metadata"]["resourceVersion"], "5");
        assert_eq!(c.value()["n"], 2);
        assert!(store.list("pods", None).items.is_empty());
    }

    #[test]
    fn stale_revisions_and_taken_names_are_refused() {
        let store = Memory::default();
        let a = store.create("pods", key("a"), json!({})).unwrap();
        assert_eq!(store.create("pods", key("a"), json!({})).unwrap_err(), StoreError::Exists);
        assert_eq!(store.update("pods", &key("a"), a.revision() + 1, json!({})).unwrap_err(), StoreError::Modified);
        assert_eq!(store.delete("pods", &key("b"), 1).unwrap_err(), StoreError::NotFound);
    }

    #[test]
    fn forgotten_and_future_history_is_gone() {
        let store = Memory::with_history(2);
        for name in ["a", "b", "c", "d"] {
            store.create("pods", key(name), json!({})).unwrap();
        }
        assert_eq!(store.history("pods", 2).unwrap_err(), Gone { oldest: 3 });
        assert_eq!(store.history("pods", 3).unwrap().events.len(), 2);
        assert!(store.history("pods", 99).is_err());
        assert_eq!(store.history("nodes", 1).unwrap().events.len(), 0);
    }

    #[test]
    fn a_namespace_lists_only_its_own() {
        let store = Memory::default();
        for (namespace, name) in [("a", "x"), ("b", "y"), ("b", "z"), ("bb", "x")] {
            store
                .create("pods", Key { namespace: namespace.into(), name: name.into() }, json!({"name": name}))
                .unwrap();
        }
        let names: Vec<_> = store.list("pods", Some("b")).items.iter().map(|o| o.value()["name"].clone()).collect();
        assert_eq!(names, ["y", "z"]);
    }
}
