//! How many queries may wait for upstreams, and how many of one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Places for waiting queries. A client may take one more as long as it has no more than are free: one alone gets half
/// of them, several floods leave each other and everyone else a share.
pub(super) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One place, free again when it is dropped.
pub(super) struct Place<'a> {
    places: &'a Places,
    client: IpAddr,
}

impl Places {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::default() }
    }

    pub(super) fn take(&self, client: IpAddr) -> Option<Place<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.limit - taken.all;
        let own = taken.by_client.get(&client).copied().unwrap_or(0);
        if free == 0 || own > free {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, own + 1);
        Some(Place { places: self, client })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.by_client.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by_client.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_leave_places_for_others() {
        let places = Places::new(100);
        let client = |last: u8| IpAddr::from([10, 0, 0, last]);
        let take_all = |last: u8| -> Vec<Place<'_>> { std::iter::from_fn(|| places.take(client(last))).collect() };
        let first = take_all(1);
        assert_eq!(first.len(), 51);
        let second = take_all(2);
        assert_eq!(second.len(), 25);
        assert!(places.take(client(3)).is_some(), "a third finds room at once");
        drop(first);
        assert!(take_all(2).len() > 10, "what is given back can be had again");
        drop(second);
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_client.len()), (0, 0));
    }

    #[test]
    fn the_limit_holds() {
        let places = Places::new(1);
        let one = places.take(IpAddr::from([10, 0, 0, 1]));
        assert!(one.is_some() && places.take(IpAddr::from([10, 0, 0, 2])).is_none());
    }
}
