//! What the kernel holds of each frontend.

use std::sync::Arc;

use podwire_model::{IpNet, Name};

use crate::plan::Backend;

/// What the kernel holds of a frontend.
#[derive(Debug, Default)]
pub struct Held {
    /// Of inside traffic, then of outside traffic.
    pub sides: [Side; 2],
    /// The sources that were asked to be allowed.
    pub sources: Option<Arc<[IpNet]>>,
}

impl Held {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.sources.is_none() && self.sides.iter().all(Side::is_empty)
    }
}

/// What the kernel holds of a frontend for inside or for outside traffic.
#[derive(Debug, Default)]
pub struct Side {
    /// The number of what is done, and the label.
    pub service: Option<(u32, Name)>,
    /// The endpoints from number zero on. Shared with the plan where the order is the same.
    pub endpoints: Arc<[Backend]>,
    /// What follows them in the map and nothing leads to.
    pub tail: Vec<Option<Backend>>,
    /// The set of endpoints that clients stick to, instead of `endpoints`.
    pub sticky: Option<Sticky>,
}

/// The use of a sticky set.
#[derive(Debug)]
pub struct Sticky {
    /// Its number.
    pub set: u32,
    /// Its endpoints.
    pub endpoints: Arc<[Backend]>,
    /// Whether the set counts this user: not yet if an earlier run wrote it.
    pub counted: bool,
}

impl Side {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.service.is_none() && self.endpoints.is_empty() && self.tail.is_empty() && self.sticky.is_none()
    }

    /// The endpoints that get traffic.
    pub fn backends(&self) -> &Arc<[Backend]> {
        self.sticky.as_ref().map_or(&self.endpoints, |sticky| &sticky.endpoints)
    }

    /// The endpoint with a number, in use or not.
    pub fn numbered(&self, number: usize) -> Option<Backend> {
        let in_tail = || self.tail.get(number - self.endpoints.len()).copied().flatten();
        self.endpoints.get(number).copied().or_else(in_tail)
    }

    /// How many numbers are in the map, or might be.
    pub fn numbers(&self) -> usize {
        self.endpoints.len() + self.tail.len()
    }
}

/// Puts `wanted`, which is sorted, in an order in which those that were in `current` keep their place, if there is one.
pub fn arrange(current: impl Iterator<Item = Option<Backend>>, wanted: &Arc<[Backend]>) -> Arc<[Backend]> {
    let mut left = vec![true; wanted.len()];
    let mut keep = |backend: Option<Backend>| {
        let at = wanted.binary_search(&backend?).ok()?;
        std::mem::take(left.get_mut(at)?).then_some(backend).flatten()
    };
    let mut places: Vec<_> = current.take(wanted.len()).map(&mut keep).collect();
    places.resize(wanted.len(), None);
    let mut new = wanted.iter().zip(left).filter(|(_, left)| *left).map(|(backend, _)| *backend);
    let arranged: Vec<_> = places.into_iter().filter_map(|place| place.or_else(|| new.next())).collect();
    if arranged == **wanted { wanted.clone() } else { arranged.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(numbers: &[u8]) -> Arc<[Backend]> {
        numbers.iter().map(|n| Backend { address: [10, 244, 0, *n].into(), port: 80 }).collect()
    }

    #[test]
    fn backends_keep_their_numbers_where_they_can() {
        let arranged =
            |current: &[u8], wanted: &[u8]| arrange(backends(current).iter().copied().map(Some), &backends(wanted));
        assert_eq!(arranged(&[], &[1, 2, 3]), backends(&[1, 2, 3]));
        assert_eq!(arranged(&[1, 2, 3], &[1, 2, 3, 4]), backends(&[1, 2, 3, 4]));
        assert_eq!(arranged(&[1, 2, 3, 4], &[2, 3, 4]), backends(&[4, 2, 3]), "the last one fills the hole");
        assert_eq!(arranged(&[5, 4, 1], &[1, 2, 4]), backends(&[2, 4, 1]));
        assert_eq!(arranged(&[1, 1], &[1, 2]), backends(&[1, 2]));
        assert_eq!(arranged(&[1, 2], &[]), backends(&[]));
    }

    #[test]
    fn an_order_that_is_the_plans_is_shared_with_it() {
        let wanted = backends(&[1, 2, 3]);
        assert!(Arc::ptr_eq(&arrange(std::iter::empty(), &wanted), &wanted));
    }
}
