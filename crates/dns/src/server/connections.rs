//! How many TCP connections there may be at once, and whose.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// The connections that are open, by client.
pub(super) struct Connections {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One open connection; it counts until it is dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Connections {
    /// At most `limit` at once.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// A place for a connection of `client`, unless all are taken, or it has as many already as are left for everybody: so
    /// one client has half of them at most, and another one always gets some.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.limit.saturating_sub(open.total);
        let own = open.by_client.get(&client).copied().unwrap_or(0);
        if own >= left {
            return None;
        }
        open.total += 1;
        open.by_client.insert(client, own + 1);
        Some(Place { connections: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Some(own) = open.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_takes_what_others_need() {
        let connections = Connections::new(8);
        let fill = |n: u8| std::iter::from_fn(|| connections.enter([10, 0, 0, n].into())).collect::<Vec<_>>();
        let first = fill(1);
        assert_eq!(first.len(), 4);
        let second = fill(2);
        assert_eq!(second.len(), 2);
        assert_eq!((fill(3).len(), fill(1).len()), (1, 0));
        drop(first);
        assert_eq!(fill(1).len(), 3, "what is given back can be had again");
        drop(second);
        let open = connections.open.lock().unwrap();
        assert_eq!((open.total, open.by_client.len()), (0, 0));
    }
}
