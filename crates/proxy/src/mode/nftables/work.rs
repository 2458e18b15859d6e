//! Elements to write, and how many a table's maps hold.

use std::collections::BTreeMap;

use podwire_kernel::nftables::{Batch, Element, Table};
use podwire_model::Family;

use super::map::Map;

/// Elements that go and elements that come, in one transaction. What is replaced is in both.
#[derive(Debug, Default)]
pub struct Work {
    gone: BTreeMap<Map, Vec<Element>>,
    new: BTreeMap<Map, Vec<Element>>,
    /// How many there are.
    pub count: usize,
}

impl Work {
    /// Changes one element: what is held, to what should be.
    pub fn change(&mut self, map: Map, held: Option<Element>, wanted: Option<Element>) {
        for (elements, element) in [(&mut self.gone, held), (&mut self.new, wanted)] {
            if let Some(element) = element {
                elements.entry(map).or_default().push(element);
                self.count += 1;
            }
        }
    }

    /// Appends it to a transaction, with more room where there is not enough.
    pub fn write(self, batch: &mut Batch, table: &Table, family: Family, rooms: &mut Rooms) {
        for (map, new) in &self.new {
            if let Some(size) = rooms.larger(*map, new.len()) {
                batch.add_set(table, map.set(family, size));
            }
        }
        for (map, gone) in self.gone {
            let room = rooms.room(map);
            room.held = room.held.saturating_sub(gone.len());
            batch.delete_elements(table, map.name(), gone);
        }
        for (map, new) in self.new {
            rooms.room(map).held += new.len();
            batch.add_elements(table, map.name(), new);
        }
    }
}

/// One map's elements: how many there are, and how many fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Room {
    /// How many there are.
    pub held: usize,
    /// How many fit.
    pub size: u32,
}

/// The room in a table's maps.
#[derive(Debug, Default)]
pub struct Rooms(BTreeMap<Map, Room>);

impl Rooms {
    /// One map's.
    pub fn room(&mut self, map: Map) -> &mut Room {
        self.0.entry(map).or_default()
    }

    /// The room of an empty map that shall have `expected` elements: half as many again. The kernel makes one to two
    /// buckets for each and never more, and looks at all of them again for every 32 KiB of a dump.
    pub fn reserve(&mut self, map: Map, expected: usize) -> u32 {
        let size = ((expected + expected / 2) as u32).max(map.smallest_size());
        *self.room(map) = Room { held: 0, size };
        size
    }

    /// The size to declare before `more` elements are added, if the declared one is too small. Elements that are
    /// replaced count twice until the transaction is over.
    fn larger(&mut self, map: Map, more: usize) -> Option<u32> {
        let room = self.room(map);
        let needed = room.held + more;
        if needed <= room.size as usize {
            return None;
        }
        room.size = (2 * needed).next_power_of_two() as u32;
        Some(room.size)
    }
}
