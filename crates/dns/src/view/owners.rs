//! Who has an address.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The owners of addresses, each address's in order. Mostly there is one: an address takes 24 bytes then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owners<T> {
    v4: HashMap<Ipv4Addr, Few<T>>,
    v6: HashMap<Ipv6Addr, Few<T>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Few<T> {
    One(T),
    Many(Box<[T]>),
}

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self { v4: HashMap::new(), v6: HashMap::new() }
    }
}

impl<T: Ord> Owners<T> {
    /// Adds an owner, unless it is one.
    pub(super) fn add(&mut self, address: IpAddr, owner: T) {
        match address {
            IpAddr::V4(address) => add(&mut self.v4, address, owner),
            IpAddr::V6(address) => add(&mut self.v6, address, owner),
        }
    }

    /// Removes an owner, if it is one.
    pub(super) fn remove(&mut self, address: IpAddr, owner: &T) {
        match address {
            IpAddr::V4(address) => remove(&mut self.v4, address, owner),
            IpAddr::V6(address) => remove(&mut self.v6, address, owner),
        }
    }

    /// The owners of an address, in order.
    pub(super) fn of(&self, address: IpAddr) -> &[T] {
        let few = match address {
            IpAddr::V4(address) => self.v4.get(&address),
            IpAddr::V6(address) => self.v6.get(&address),
        };
        match few {
            None => &[],
            Some(Few::One(owner)) => std::slice::from_ref(owner),
            Some(Few::Many(owners)) => owners,
        }
    }
}

fn add<K: Eq + Hash, T: Ord>(map: &mut HashMap<K, Few<T>>, address: K, owner: T) {
    let few = match map.remove(&address) {
        None => Few::One(owner),
        Some(Few::One(other)) if other == owner => Few::One(other),
        Some(Few::One(other)) if other < owner => Few::Many([other, owner].into()),
        Some(Few::One(other)) => Few::Many([owner, other].into()),
        Some(Few::Many(owners)) => {
            let mut owners = owners.into_vec();
            if let Err(place) = owners.binary_search(&owner) {
                owners.insert(place, owner);
            }
            Few::Many(owners.into())
        }
    };
    map.insert(address, few);
}

fn remove<K: Eq + Hash, T: Ord>(map: &mut HashMap<K, Few<T>>, address: K, owner: &T) {
    let few = match map.remove(&address) {
        None => return,
        Some(Few::One(other)) if other == *owner => return,
        Some(Few::One(other)) => Few::One(other),
        Some(Few::Many(owners)) => {
            let mut owners = owners.into_vec();
            owners.retain(|other| other != owner);
            match (owners.pop(), owners.is_empty()) {
                (Some(last), true) => Few::One(last),
                (last, _) => Few::Many(owners.into_iter().chain(last).collect()),
            }
        }
    };
    map.insert(address, few);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_owner_is_a_pointer_and_no_more() {
        assert_eq!(size_of::<(Ipv4Addr, Few<Arc<u8>>)>(), 24);
    }

    proptest! {
        #[test]
        fn they_are_what_a_set_would_be(steps in prop::collection::vec((any::<bool>(), 0..3_u8, 0..5_u8, any::<bool>()), 0..60)) {
            let (mut owners, mut sets) = (Owners::default(), HashMap::<IpAddr, BTreeSet<u8>>::new());
            for (added, last, owner, v6) in steps {
                let v4 = Ipv4Addr::new(10, 0, 0, last);
                let address: IpAddr = if v6 { v4.to_ipv6_mapped().into() } else { v4.into() };
                if added {
                    owners.add(address, owner);
                    sets.entry(address).or_default().insert(owner);
                } else {
                    owners.remove(address, &owner);
                    sets.entry(address).or_default().remove(&owner);
                }
                for (address, set) in &sets {
                    prop_assert!(owners.of(*address).iter().eq(set.iter()));
                }
            }
            for (address, set) in sets {
                set.iter().for_each(|owner| owners.remove(address, owner));
            }
            prop_assert_eq!(owners, Owners::default(), "nothing is left");
        }
    }
}
