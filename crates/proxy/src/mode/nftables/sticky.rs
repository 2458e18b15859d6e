//! Sets of endpoints that clients stick to: one for each Service port and traffic policy, whatever frontends lead to it.

use std::{collections::HashMap, sync::Arc};

use podwire_model::{Name, TrafficPolicy, delta::Delta};

use super::{
    frontends::arrange,
    map::{Data, Item},
};
use crate::plan::Backend;

/// What has a set of its own: the label of a Service port, and whose endpoints.
pub type Key = (Name, TrafficPolicy);

/// The sets that are in use.
#[derive(Debug, Default)]
pub struct Sets {
    sets: HashMap<u32, Set>,
}

#[derive(Debug)]
struct Set {
    key: Key,
    users: usize,
}

impl Sets {
    /// Counts one more user of a set; returns its number. It is the same in every run, but for two labels of one hash.
    pub fn join(&mut self, key: Key) -> u32 {
        let (label, policy) = &key;
        let mut number = hash(label.bytes().chain([u8::from(*policy == TrafficPolicy::Local)]));
        loop {
            match self.sets.get_mut(&number) {
                Some(set) if set.key == key => {
                    set.users += 1;
                    return number;
                }
                Some(_) => number = number.wrapping_add(1),
                None => {
                    self.sets.insert(number, Set { key, users: 1 });
                    return number;
                }
            }
        }
    }

    /// Counts one less; returns whether that was the last.
    pub fn leave(&mut self, number: u32) -> bool {
        let Some(set) = self.sets.get_mut(&number) else { return false };
        set.users -= 1;
        if set.users == 0 {
            self.sets.remove(&number);
        }
        !self.sets.contains_key(&number)
    }

    /// Forgets all users.
    pub fn clear(&mut self) {
        self.sets.clear();
    }
}

/// Has a set hold exactly `wanted`, which is sorted. Endpoints keep their names always and their numbers where they can.
pub fn hold(items: &mut Delta<Item, Data>, set: u32, wanted: &Arc<[Backend]>) {
    let old = held(items, set);
    let arranged = arrange(old.iter().map(|(_, backend)| Some(*backend)), wanted);
    let mut names: HashMap<Backend, u32> = old.iter().map(|(name, backend)| (*backend, *name)).collect();
    let unwanted: Vec<_> = old.iter().filter(|(_, backend)| wanted.binary_search(backend).is_err()).collect();
    for (name, _) in unwanted {
        items.unwant(&Item::StickyEndpoint(set, *name));
    }
    for (number, backend) in arranged.iter().enumerate() {
        let name = *names.entry(*backend).or_insert_with(|| name(items, set, backend));
        want(items, Item::StickyEndpoint(set, name), Data::Backend(*backend));
        want(items, Item::StickyNumber(set, number as u32), Data::Number(name));
    }
    for number in arranged.len()..old.len() {
        items.unwant(&Item::StickyNumber(set, number as u32));
    }
}

/// The endpoints of a set in the order of their numbers, with their names: those that it shall hold, or, before that was
/// said, those that the kernel holds.
pub fn held(items: &Delta<Item, Data>, set: u32) -> Vec<(u32, Backend)> {
    let is_wanted = items.desired(&Item::StickyNumber(set, 0)).is_some();
    let get = |item| if is_wanted { items.desired(&item) } else { items.actual(&item) };
    let numbered = |number| {
        let Data::Number(name) = get(Item::StickyNumber(set, number))? else { return None };
        let Data::Backend(backend) = get(Item::StickyEndpoint(set, *name))? else { return None };
        Some((*name, *backend))
    };
    (0..).map_while(numbered).collect()
}

fn want(items: &mut Delta<Item, Data>, item: Item, data: Data) {
    if items.desired(&item) != Some(&data) {
        items.want(item, data);
    }
}

/// A name for a new endpoint: no other one has had it as far as the kernel remembers.
fn name(items: &Delta<Item, Data>, set: u32, backend: &Backend) -> u32 {
    let mut name = hash(format!("{} {}", backend.address, backend.port).into_bytes());
    let other = |name| {
        let item = Item::StickyEndpoint(set, name);
        let known = items.desired(&item).or_else(|| items.actual(&item));
        known.is_some_and(|known| *known != Data::Backend(*backend))
    };
    while other(name) {
        name = name.wrapping_add(1);
    }
    name
}

fn hash(bytes: impl IntoIterator<Item = u8>) -> u32 {
    podwire_kernel::stable_hash(bytes) as u32
}
