//! Where objects live: by collection and key, under one global revision, with the recent history of each collection.
//!
//! [`Store`] is all that the rest of the server knows. [`Memory`] is the only implementation so far.

mod memory;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

pub use memory::Memory;

/// A name that identifies a collection for ever, such as `services` or `apps/deployments`.
pub type Collection = &'static str;

/// Identifies an object in its collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace; empty for kinds without one.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A stored object: never changes. Its JSON text is made once and shared by everyone who reads or watches it.
#[derive(Debug)]
pub struct Object {
    value: Value,
    revision: u64,
    json: OnceLock<Bytes>,
}

impl Object {
    /// Stamps `metadata.resourceVersion` of `value` with `revision`, unless that is 0: then it is not stored.
    pub fn new(mut value: Value, revision: u64) -> Object {
        if revision > 0 {
            value["metadata"]["resourceVersion"] = revision.to_string().into();
        }
        Object { value, revision, json: OnceLock::new() }
    }

    /// The object as JSON.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The revision of its last change: `metadata.resourceVersion`.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The object as JSON text.
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| self.value.to_string().into()).clone()
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was created.
    Added,
    /// It was replaced.
    Modified,
    /// It was removed.
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// The revision the change made.
    pub revision: u64,
    /// What happened.
    pub change: Change,
    /// The object after the change; of a deletion, its last state under the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before the change, unless it was created.
    pub previous: Option<Arc<Object>>,
}

/// The objects of a collection at one revision.
#[derive(Debug)]
pub struct Listing {
    /// In the order of their keys.
    pub items: Vec<Arc<Object>>,
    /// The store's revision when the list was taken.
    pub revision: u64,
}

/// A part of a collection's history.
#[derive(Debug)]
pub struct History {
    /// In the order they happened.
    pub events: Vec<Arc<Event>>,
    /// Everything up to this revision has been told.
    pub revision: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no object of that key.
    #[error("not found")]
    NotFound,
    /// There is already an object of that key.
    #[error("already exists")]
    Exists,
    /// The object is not at the expected revision.
    #[error("the object has been modified; please apply your changes to the latest version and try again")]
    Modified,
}

/// The history asked for begins before what is kept, or lies in the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("history begins at revision {oldest}")]
pub struct Gone {
    /// The oldest revision one may still ask for.
    pub oldest: u64,
}

/// Objects by collection and key. Every change raises one global revision.
///
/// All methods are short and do not block on anything but each other.
pub trait Store: Send + Sync + 'static {
    /// The object of that key.
    fn get(&self, collection: Collection, key: &Key) -> Option<Arc<Object>>;

    /// All objects, or those of one namespace.
    fn list(&self, collection: Collection, namespace: Option<&str>) -> Listing;

    /// Adds an object.
    ///
    /// # Errors
    /// [`StoreError::Exists`].
    fn create(&self, collection: Collection, key: Key, value: Value) -> Result<Arc<Object>, StoreError>;

    /// Replaces the object if it is still at revision `expected`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Modified`].
    fn update(&self, collection: Collection, key: &Key, expected: u64, value: Value)
    -> Result<Arc<Object>, StoreError>;

    /// Removes the object if it is still at revision `expected`; returns its last state.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Modified`].
    fn delete(&self, collection: Collection, key: &Key, expected: u64) -> Result<Arc<Object>, StoreError>;

    /// What happened in the collection after `revision`.
    ///
    /// # Errors
    /// [`Gone`] when the history does not reach back so far, or `revision` has not happened yet.
    fn history(&self, collection: Collection, revision: u64) -> Result<History, Gone>;

    /// Wakes on every change in the collection. The value is the revision of the last one.
    fn subscribe(&self, collection: Collection) -> watch::Receiver<u64>;
}
