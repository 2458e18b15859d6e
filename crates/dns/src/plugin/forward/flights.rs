//! Questions under way: whoever asks what is being asked already waits for the same answer. It also ends loops: a query
//! that comes back to us waits for itself, and goes round no further.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

use super::super::cache::Key;
use crate::message::Reply;

type Flight = BoxFuture<'static, Arc<Reply>>;
type Table = Mutex<HashMap<Key, WeakShared<Flight>>>;

#[derive(Default)]
pub(super) struct Flights(Arc<Table>);

/// Takes the question out of the table when the answer is there, or when nobody waits for it any more.
struct Landing {
    table: Arc<Table>,
    key: Key,
}

impl Flights {
    /// The answer that is under way, or else the one that `ask` fetches.
    pub(super) fn join(&self, key: Key, ask: impl FnOnce() -> BoxFuture<'static, Reply>) -> Shared<Flight> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = table.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let landing = Landing { table: self.0.clone(), key: key.clone() };
        let reply = ask();
        let flight = async move {
            let reply = reply.await;
            drop(landing);
            Arc::new(reply)
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            table.insert(key, weak);
        }
        flight
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // If another flight of the question has begun meanwhile, the next one is not joined to it: no harm.
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
