//! One family's table: what should be in it, what is in it, and the transaction between the two.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use podwire_kernel::nftables::{Action as Step_, Batch, Datum, Element, Mapped, Nftables, Table, Value};
use podwire_model::{
    Family, Name,
    delta::{Delta, Step},
};

use super::render::{self, Map, Pick};
use crate::{
    mode::{Applied, Settings},
    plan::{Action, Backend, Frontend, Treatment},
};

/// What an element is compared by.
#[derive(Debug, Clone, PartialEq)]
struct Cell {
    data: Mapped,
    comment: Option<Name>,
}

/// One map or set.
#[derive(Debug, Default)]
struct MapState {
    delta: Delta<Value, Cell>,
    /// Elements that should be.
    wanted: usize,
    /// Elements that are.
    held: usize,
    /// Elements that fit.
    size: u32,
}

impl MapState {
    fn want(&mut self, key: Value, data: Mapped, comment: Option<Name>) {
        let cell = Cell { data, comment };
        match self.delta.desired(&key) {
            Some(same) if *same == cell => return,
            Some(_) => {}
            None => self.wanted += 1,
        }
        self.delta.want(key, cell);
    }

    fn unwant(&mut self, key: &Value) {
        if self.delta.desired(key).is_some() {
            self.wanted -= 1;
            self.delta.unwant(key);
        }
    }

    /// The value that the key should have; at start, before anything was asked for, the one that it has.
    fn value(&self, key: &Value) -> Option<&Value> {
        let cell = self.delta.desired(key).or_else(|| self.delta.actual(key))?;
        if let Mapped::Value(value) = &cell.data { Some(value) } else { None }
    }

    /// The size to declare, if the declared one is too small for the pending transaction. Elements that are replaced
    /// count twice until it is over.
    fn larger_size(&self) -> Option<u32> {
        let adds = self.delta.pending().filter(|step| !matches!(step, Step::Delete(..))).count();
        let needed = self.held + adds;
        (needed > self.size as usize).then(|| (2 * needed).next_power_of_two() as u32)
    }
}

/// The table of one family.
#[derive(Debug)]
pub struct TableState {
    family: Family,
    table: Table,
    maps: BTreeMap<Map, MapState>,
    picks: Delta<Pick, ()>,
    /// How many verdicts lead to each pick.
    pick_users: HashMap<Pick, usize>,
    /// How many Services ask for each address of [`Map::ClusterIps`] and [`Map::Hairpin`].
    address_users: HashMap<(Map, IpAddr), usize>,
    /// The kernel has no table of ours with this layout.
    missing: bool,
    /// It has one with another layout, or one that somebody changed.
    leftover: bool,
}

impl TableState {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            table: Table::new(family.into(), render::TABLE),
            maps: Map::ALL.into_iter().map(|map| (map, MapState::default())).collect(),
            picks: Delta::new(),
            pick_users: HashMap::new(),
            address_users: HashMap::new(),
            missing: true,
            leftover: false,
        }
    }

    /// Changes what happens at a frontend.
    pub fn route(
        &mut self,
        frontend: &Frontend,
        before: Option<&Treatment>,
        after: Option<&Treatment>,
        applied: &mut Applied,
    ) {
        for outside in [false, true] {
            let pick = |treatment: Option<&Treatment>| Pick::of(frontend, treatment?, outside);
            self.change_pick(pick(before), pick(after));
            let map = self.maps.entry(Map::verdicts(&frontend.entry, outside)).or_default();
            let key = render::frontend_key(frontend);
            match after.and_then(|t| Some((t, render::verdict(frontend, t, outside)?))) {
                Some((treatment, verdict)) => {
                    map.want(key, Mapped::Verdict(verdict), Some(treatment.label.clone()));
                }
                None => map.unwant(&key),
            }
            let backends = match after.and_then(|treatment| render::action(treatment, outside)) {
                Some(Action::Balance { backends, .. }) => &**backends,
                _ => &[],
            };
            let old = self.number_backends(frontend, outside, backends);
            applied.note_stale(*frontend, &old, backends);
        }
    }

    /// Gives each backend a number, so that as few as possible change theirs; returns the backends of before.
    fn number_backends(&mut self, frontend: &Frontend, outside: bool, backends: &[Backend]) -> Vec<Backend> {
        let family = self.family;
        let map = self.maps.entry(Map::endpoints(&frontend.entry)).or_default();
        let key = |number: usize| render::endpoint_key(frontend, outside, number as u32);
        let backend = |number| render::backend_of(map.value(&key(number))?, family);
        let old: Vec<_> = (0..).map_while(backend).collect();
        let new = arrange(&old, backends);
        for (number, backend) in new.iter().enumerate() {
            map.want(key(number), Mapped::Value(render::backend_value(backend)), None);
        }
        for number in new.len()..old.len() {
            map.unwant(&key(number));
        }
        old
    }

    fn change_pick(&mut self, before: Option<Pick>, after: Option<Pick>) {
        if before == after {
            return;
        }
        if let Some(pick) = after {
            *self.pick_users.entry(pick).or_default() += 1;
            self.picks.want(pick, ());
        }
        if let Some(pick) = before
            && let Some(users) = self.pick_users.get_mut(&pick)
        {
            *users -= 1;
            if *users == 0 {
                self.pick_users.remove(&pick);
                self.picks.unwant(&pick);
            }
        }
    }

    /// Some Service asks for an address in [`Map::ClusterIps`] or [`Map::Hairpin`], or no longer does.
    pub fn use_address(&mut self, map: Map, address: IpAddr, used: bool) {
        let users = self.address_users.entry((map, address)).or_default();
        *users = if used { *users + 1 } else { users.saturating_sub(1) };
        let users = *users;
        let key = match map {
            Map::Hairpin => render::hairpin_key(address),
            _ => Value::concat(&[Datum::Addr(address)]),
        };
        let state = self.maps.entry(map).or_default();
        match (used, users) {
            (true, 1) => state.want(key, Mapped::Nothing, None),
            (false, 0) => {
                self.address_users.remove(&(map, address));
                state.unwant(&key);
            }
            _ => {}
        }
    }

    /// Reads what the kernel holds. A table of another layout, or one whose rules somebody changed, counts as missing.
    pub fn read(&mut self, kernel: &mut impl Nftables, settings: &Settings) -> podwire_kernel::Result<()> {
        let tables = kernel.tables()?;
        let comment = render::layout_comment(self.family, settings);
        let ours = |info: &podwire_kernel::nftables::TableInfo| info.table == self.table;
        let kept = tables.iter().any(|info| ours(info) && info.comment.as_deref() == Some(&*comment));
        let picks: BTreeSet<Pick> = if kept {
            kernel.chains(&self.table)?.iter().filter_map(|chain| chain.name.parse().ok()).collect()
        } else {
            BTreeSet::new()
        };
        self.missing = !kept || !self.is_intact(kernel, &picks, settings)?;
        self.leftover = self.missing && tables.iter().any(ours);
        if self.missing {
            self.picks.found([]);
            for map in self.maps.values_mut() {
                map.delta.found([]);
                (map.held, map.size) = (0, 0);
            }
            return Ok(());
        }
        self.picks.found(picks.into_iter().map(|pick| (pick, ())));
        let sizes: HashMap<Name, u32> =
            kernel.sets(&self.table)?.into_iter().map(|set| (set.name, set.size.unwrap_or(u32::MAX))).collect();
        for (map, state) in &mut self.maps {
            let elements = kernel.elements(&self.table, map.name())?;
            state.held = elements.len();
            state.size = sizes.get(map.name()).copied().unwrap_or(0);
            let cell = |element: Element| (element.key, Cell { data: element.data, comment: element.comment });
            state.delta.found(elements.into_iter().map(cell));
        }
        Ok(())
    }

    /// Whether every chain has rules of the kinds that it should have.
    fn is_intact(
        &self,
        kernel: &mut impl Nftables,
        picks: &BTreeSet<Pick>,
        settings: &Settings,
    ) -> podwire_kernel::Result<bool> {
        let mut batch = Batch::new();
        render::constant(&mut batch, &self.table, self.family, settings);
        for pick in picks {
            pick.add(&mut batch, &self.table, self.family, settings);
        }
        let mut expected: BTreeMap<Name, Vec<Vec<String>>> = BTreeMap::new();
        for (_, step) in batch.steps() {
            if let Step_::AddRule { chain, rule } = step {
                let names = rule.expressions.iter().map(|expr| expr.name().to_owned()).collect();
                expected.entry(chain.clone()).or_default().push(names);
            }
        }
        let mut found: BTreeMap<Name, Vec<Vec<String>>> = BTreeMap::new();
        for rule in kernel.rules(&self.table)? {
            found.entry(rule.chain).or_default().push(rule.expressions);
        }
        Ok(expected == found)
    }

    /// Appends what is missing in the kernel to `batch`; returns how many objects that are.
    pub fn write(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        let pending = self.maps.values().map(|map| map.delta.pending().count()).sum::<usize>();
        if self.missing && pending == 0 && self.family == Family::V6 {
            // A machine without IPv6 Services may be one without IPv6.
            if self.leftover {
                batch.delete_table(&self.table);
            }
            return usize::from(self.leftover);
        }
        let mut written = pending + self.picks.pending().count();
        if self.missing {
            written += self.make(batch, settings);
        } else {
            for (map, state) in &mut self.maps {
                if let Some(size) = state.larger_size() {
                    batch.add_set(&self.table, map.set(self.family, size));
                    state.size = size;
                }
            }
        }
        for step in self.picks.pending() {
            if let Step::Create(pick, ()) = step {
                pick.add(batch, &self.table, self.family, settings);
            }
        }
        self.write_elements(batch);
        for step in self.picks.pending() {
            if let Step::Delete(pick, ()) = step {
                batch.delete_chain(&self.table, pick.to_string());
            }
        }
        written
    }

    /// Makes the table anew, in the same transaction as its elements: there is no moment without it.
    fn make(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        let before = batch.len();
        batch.replace_table(&self.table, Some(&render::layout_comment(self.family, settings)));
        for (map, state) in &mut self.maps {
            let room = (2 * state.wanted).next_power_of_two() as u32;
            state.size = room.max(map.smallest_size());
            batch.add_set(&self.table, map.set(self.family, state.size));
        }
        render::constant(batch, &self.table, self.family, settings);
        batch.len() - before
    }

    /// First what goes, then what comes; endpoints are there before a verdict leads to them.
    fn write_elements(&self, batch: &mut Batch) {
        let element =
            |key: &Value, cell: &Cell| Element { key: *key, data: cell.data.clone(), comment: cell.comment.clone() };
        for map in Map::ALL.iter().rev() {
            let Some(state) = self.maps.get(map) else { continue };
            let gone = state.delta.pending().filter_map(|step| match step {
                Step::Create(..) => None,
                Step::Replace(key, ..) | Step::Delete(key, _) => Some(Element::key(*key)),
            });
            batch.delete_elements(&self.table, map.name(), gone.collect());
        }
        for map in &Map::ALL {
            let Some(state) = self.maps.get(map) else { continue };
            let new = state.delta.pending().filter_map(|step| match step {
                Step::Create(key, cell) | Step::Replace(key, _, cell) => Some(element(key, cell)),
                Step::Delete(..) => None,
            });
            batch.add_elements(&self.table, map.name(), new.collect());
        }
    }

    /// The transaction that [`TableState::write`] made has been committed.
    pub fn committed(&mut self) {
        let written = !self.missing || self.family == Family::V4 || self.maps.values().any(|map| map.wanted > 0);
        self.missing = !written;
        self.leftover = false;
        self.picks.all_done();
        for map in self.maps.values_mut() {
            map.delta.all_done();
            map.held = map.wanted;
        }
    }
}

/// Puts `wanted` in an order in which those that were in `current` keep their place, if there is one.
fn arrange(current: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let mut left: BTreeSet<_> = wanted.iter().copied().collect();
    let mut places: Vec<_> =
        current.iter().take(wanted.len()).map(|backend| left.take(backend)).collect();
    places.resize(wanted.len(), None);
    let mut new = left.into_iter();
    places.into_iter().filter_map(|place| place.or_else(|| new.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(numbers: &[u8]) -> Vec<Backend> {
        numbers.iter().map(|n| Backend { address: [10, 244, 0, *n].into(), port: 80 }).collect()
    }

    #[test]
    fn backends_keep_their_numbers_where_they_can() {
        let arranged = |current: &[u8], wanted: &[u8]| arrange(&backends(current), &backends(wanted));
        assert_eq!(arranged(&[], &[1, 2, 3]), backends(&[1, 2, 3]));
        assert_eq!(arranged(&[1, 2, 3], &[1, 2, 3, 4]), backends(&[1, 2, 3, 4]));
        assert_eq!(arranged(&[1, 2, 3, 4], &[2, 3, 4]), backends(&[4, 2, 3]), "the last one fills the hole");
        assert_eq!(arranged(&[5, 4, 1], &[1, 2, 4]), backends(&[2, 4, 1]));
        assert_eq!(arranged(&[1, 2], &[]), []);
    }
}
