//! A list in pieces: `limit`, `continue`.
//!
//! All pieces show the state at the revision of the first one, whatever happens in between: the history says what to
//! undo. When it does not reach back that far any more the client is told to begin again (410), as etcd's compaction
//! makes kube-apiserver do.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use super::{path::Target, query::Query};
use crate::{
    object,
    status::Status,
    store::{Key, Listing, Object, Store},
};

/// Where the next piece begins, as `metadata.continue` carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// The state that all pieces show.
    revision: u64,
    /// The last object told.
    after: Key,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.revision, self.after.namespace, self.after.name)
    }
}

impl FromStr for Token {
    type Err = Status;

    fn from_str(text: &str) -> Result<Self, Status> {
        let mut parts = text.splitn(3, '/');
        let revision = parts.next().and_then(|revision| revision.parse().ok());
        match (revision, parts.next(), parts.next()) {
            (Some(revision), Some(namespace), Some(name)) => {
                Ok(Self { revision, after: Key { namespace: namespace.to_owned(), name: name.to_owned() } })
            }
            _ => Err(Status::bad_request(format!("continue key is not valid: {text:?} is none that was given out"))),
        }
    }
}

/// One piece.
#[derive(Debug)]
pub(super) struct Page {
    /// In the order of their keys.
    pub items: Vec<Arc<Object>>,
    /// What they are the state at.
    pub revision: u64,
    /// Where the next piece begins; `None` after the last.
    pub next: Option<Token>,
    /// How many objects are in the pieces to come; not told of a selection.
    pub remaining: Option<usize>,
}

impl Page {
    /// The piece that a query asks for, of the objects that `takes` admits.
    ///
    /// # Errors
    /// 400 for a parameter that is none, 410 when the state of the first piece cannot be had any more.
    pub fn of(
        store: &dyn Store,
        target: &Target,
        query: &Query,
        takes: impl Fn(&Object) -> bool,
    ) -> Result<Self, Status> {
        let limit = query.number::<usize>("limit")?.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let listing = store.list(target.kind.collection, target.namespace.as_deref());
        let (items, revision) = match query.text("continue") {
            "" => (listing.items, listing.revision),
            text => {
                let Token { revision, after } = text.parse()?;
                let mut items = as_of(store, target, listing, revision)?;
                items.retain(|item| key(item) > after);
                (items, revision)
            }
        };
        let mut items: Vec<_> = items.into_iter().filter(|item| takes(item)).collect();
        let remaining = items.len().saturating_sub(limit);
        items.truncate(limit);
        let last = items.last().filter(|_| remaining > 0);
        let next = last.map(|last| Token { revision, after: key(last) });
        let selects = ["labelSelector", "fieldSelector"].iter().any(|name| !query.text(name).is_empty());
        let remaining = Some(remaining).filter(|remaining| *remaining > 0 && !selects);
        Ok(Self { items, revision, next, remaining })
    }
}

/// What a later listing was at `revision`.
fn as_of(store: &dyn Store, target: &Target, listing: Listing, revision: u64) -> Result<Vec<Arc<Object>>, Status> {
    let history = store.history(target.kind.collection, revision);
    let history = history.map_err(|gone| Status::expired(revision, gone.oldest))?;
    let mut items: BTreeMap<Key, Arc<Object>> = listing.items.into_iter().map(|item| (key(&item), item)).collect();
    let is_meant = |key: &Key| target.namespace.as_deref().is_none_or(|namespace| namespace == key.namespace);
    for event in history.events.iter().rev().filter(|event| event.revision <= listing.revision) {
        let key = key(&event.object);
        match &event.previous {
            Some(previous) if is_meant(&key) => _ = items.insert(key, previous.clone()),
            _ => _ = items.remove(&key),
        }
    }
    Ok(items.into_values().collect())
}

/// Identifies an object in its collection.
pub(super) fn key(object: &Object) -> Key {
    let value = object.value();
    Key { namespace: object::namespace(value).to_owned(), name: object::name(value).to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_token_is_read_or_refused(text in r"[0-9]{0,4}/?[a-z0-9/.-]{0,12}|\PC{0,20}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse::<Token>().ok(), Some(token));
            }
        }
    }
}
