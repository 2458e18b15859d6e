//! One family's table: what should be in it, what is in it, and the transactions between the two.
//!
//! A transaction is atomic for each single lookup, but a packet makes two (verdict, then endpoint), and its processor may
//! be taken away between them. So what verdicts lead to is written before them, and removed a while after nothing leads
//! there any more: see [`Stage`].

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

/// When something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// First: endpoints, and chains that pick from them. No verdict leads there yet; an endpoint that takes another one's
    /// number is one that the Service wants anyway.
    Prepare,
    /// Then: verdicts.
    Switch,
    /// Later: endpoints and chains that no verdict leads to. A packet may still be on its way to them.
    Tidy,
}

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

    /// The value that the key has, or that it should have.
    fn value(&self, key: &Value, actual: bool) -> Option<&Value> {
        let cell = if actual { self.delta.actual(key) } else { self.delta.desired(key) }?;
        if let Mapped::Value(value) = &cell.data { Some(value) } else { None }
    }

    /// When a pending step is to be taken.
    fn stage(map: Map, step: &Step<'_, Value, Cell>) -> Stage {
        match (map, step) {
            (Map::Endpoints | Map::NodePortEndpoints | Map::Hairpin, Step::Delete(..)) => Stage::Tidy,
            (Map::Endpoints | Map::NodePortEndpoints | Map::Hairpin, _) => Stage::Prepare,
            _ => Stage::Switch,
        }
    }

    /// The size to declare before `adds` elements are added, if the declared one is too small. Elements that are
    /// replaced count twice until the transaction is over.
    fn larger_size(&self, adds: usize) -> Option<u32> {
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
    /// The kernel has no table of ours with this layout.
    missing: bool,
    /// It has one with another layout, or one that somebody changed.
    leftover: bool,
    /// A set is full and did not grow (before Linux 6.5 none does): the table is to be made anew, with room.
    outgrown: bool,
    /// Nothing was written since the kernel was read.
    starting: bool,
    /// What the transaction that is being written will have done.
    in_flight: InFlight,
    /// What was found unused by the last tidying; it goes with the next one unless it was used in between.
    aged_elements: BTreeSet<(Map, Value)>,
    aged_picks: BTreeSet<Pick>,
}

/// Objects in a transaction; `None` for an element that goes.
#[derive(Debug, Default)]
struct InFlight {
    elements: Vec<(Map, Value, Option<Cell>)>,
    picks: Vec<(Pick, bool)>,
    table: Option<bool>,
}

impl TableState {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            table: Table::new(family.into(), render::TABLE),
            maps: Map::ALL.into_iter().map(|map| (map, MapState::default())).collect(),
            picks: Delta::new(),
            pick_users: HashMap::new(),
            missing: true,
            leftover: false,
            outgrown: false,
            starting: false,
            in_flight: InFlight::default(),
            aged_elements: BTreeSet::new(),
            aged_picks: BTreeSet::new(),
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
            // A frontend that is new to us may have been served by an earlier run: its endpoints keep their numbers.
            let actual = before.is_none() && self.starting;
            let old = self.number_backends((frontend, outside), actual, backends);
            applied.note_stale(*frontend, &old, backends);
        }
    }

    /// Gives each backend a number, so that as few as possible change theirs; returns the backends of before.
    fn number_backends(
        &mut self,
        (frontend, outside): (&Frontend, bool),
        actual: bool,
        backends: &[Backend],
    ) -> Vec<Backend> {
        let family = self.family;
        let map = self.maps.entry(Map::endpoints(&frontend.entry)).or_default();
        let key = |number: usize| render::endpoint_key(frontend, outside, number as u32);
        let backend = |number| render::backend_of(map.value(&key(number), actual)?, family);
        let old: Vec<_> = (0..).map_while(backend).collect();
        let new = arrange(&old, backends);
        for (number, backend) in new.iter().enumerate() {
            map.want(key(number), Mapped::Value(render::backend_value(backend)), None);
            self.aged_elements.remove(&(Map::endpoints(&frontend.entry), key(number)));
        }
        for number in new.len()..old.len() {
            map.unwant(&key(number));
        }
        old
    }

    /// After a read and before anything is written: UDP flows that entered at frontends which are gone since an earlier
    /// run. Those of frontends that stay were noted by [`TableState::route`].
    pub fn note_stale_frontends(&self, applied: &mut Applied) {
        let stays = |frontend: &Frontend| {
            [false, true].into_iter().any(|outside| {
                let verdicts = self.maps.get(&Map::verdicts(&frontend.entry, outside));
                verdicts.is_some_and(|map| map.delta.desired(&render::frontend_key(frontend)).is_some())
            })
        };
        for (map, state) in self.maps.iter().filter(|(map, _)| matches!(map, Map::Endpoints | Map::NodePortEndpoints)) {
            for step in state.delta.pending() {
                if let Step::Delete(key, Cell { data: Mapped::Value(value), .. }) = step
                    && let Some(frontend) = render::frontend_of(*map, key, self.family)
                    && let Some(backend) = render::backend_of(value, self.family)
                    && !stays(&frontend)
                {
                    applied.note_stale(frontend, &[backend], &[]);
                }
            }
        }
    }

    fn change_pick(&mut self, before: Option<Pick>, after: Option<Pick>) {
        if before == after {
            return;
        }
        if let Some(pick) = after {
            *self.pick_users.entry(pick).or_default() += 1;
            self.picks.want(pick, ());
            self.aged_picks.remove(&pick);
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

    /// An address is to be in [`Map::ClusterIps`] or [`Map::Hairpin`], or no longer.
    pub fn use_address(&mut self, map: Map, address: IpAddr, used: bool) {
        let key = match map {
            Map::Hairpin => render::hairpin_key(address),
            _ => Value::concat(&[Datum::Addr(address)]),
        };
        let state = self.maps.entry(map).or_default();
        if used {
            state.want(key, Mapped::Nothing, None);
            self.aged_elements.remove(&(map, key));
        } else {
            state.unwant(&key);
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
        self.starting = true;
        self.missing = self.outgrown || !kept || !self.is_intact(kernel, &picks, settings)?;
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

    /// Whether the table must be made: then everything goes into one transaction.
    pub fn must_be_made(&self) -> bool {
        self.missing && (self.family == Family::V4 || self.maps.values().any(|map| map.wanted > 0))
    }

    /// Appends what is to be done in one of `stages` to `batch`; returns how many objects that are. Follow it with
    /// [`TableState::committed`] or [`TableState::refused`].
    pub fn write(&mut self, stages: &[Stage], batch: &mut Batch, settings: &Settings) -> usize {
        if self.missing && !self.must_be_made() {
            // A machine without IPv6 Services may be one without IPv6.
            if self.leftover {
                batch.delete_table(&self.table);
                self.in_flight.table = Some(false);
            }
            return usize::from(self.leftover);
        }
        let mut written = if self.missing { self.make(batch, settings) } else { 0 };
        for step in self.picks.pending() {
            if let Step::Create(pick, ()) = step
                && stages.contains(&Stage::Prepare)
            {
                pick.add(batch, &self.table, self.family, settings);
                self.in_flight.picks.push((*pick, true));
            }
        }
        for (map, state) in &self.maps {
            for step in state.delta.pending().filter(|step| stages.contains(&MapState::stage(*map, step))) {
                let (key, cell) = match step {
                    Step::Create(key, cell) | Step::Replace(key, _, cell) => (key, Some(cell)),
                    Step::Delete(key, _) => (key, None),
                };
                if stages != [Stage::Tidy] || self.aged_elements.contains(&(*map, *key)) {
                    self.in_flight.elements.push((*map, *key, cell.cloned()));
                }
            }
        }
        self.write_elements(batch);
        if stages == [Stage::Tidy] {
            self.tidy_picks(batch);
        }
        written += self.in_flight.elements.len() + self.in_flight.picks.len();
        written
    }

    /// Deletes the chains that were unused long enough, and notes what is unused now for the next time.
    fn tidy_picks(&mut self, batch: &mut Batch) {
        let unused = |step| if let Step::Delete(pick, ()) = step { Some(*pick) } else { None };
        let unused_picks: BTreeSet<Pick> = self.picks.pending().filter_map(unused).collect();
        for pick in unused_picks.intersection(&self.aged_picks) {
            batch.delete_chain(&self.table, pick.to_string());
            self.in_flight.picks.push((*pick, false));
        }
        let going: BTreeSet<_> = self.in_flight.elements.iter().map(|(map, key, _)| (*map, *key)).collect();
        let unused_elements = self.maps.iter().flat_map(|(map, state)| {
            let tidied = state.delta.pending().filter(|step| MapState::stage(*map, step) == Stage::Tidy);
            tidied.filter_map(|step| if let Step::Delete(key, _) = step { Some((*map, *key)) } else { None })
        });
        self.aged_elements = unused_elements.filter(|element| !going.contains(element)).collect();
        self.aged_picks = unused_picks.difference(&self.aged_picks).copied().collect();
    }

    /// Whether something unused is left for tidying.
    pub fn is_untidy(&self) -> bool {
        !self.missing && (!self.picks.is_settled() || self.maps.values().any(|map| !map.delta.is_settled()))
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
        self.in_flight.table = Some(true);
        batch.len() - before
    }

    /// First what goes, then what comes; endpoints are there before a verdict leads to them.
    fn write_elements(&mut self, batch: &mut Batch) {
        let mut gone: BTreeMap<Map, Vec<Element>> = BTreeMap::new();
        let mut new: BTreeMap<Map, Vec<Element>> = BTreeMap::new();
        for (map, key, cell) in &self.in_flight.elements {
            let held = self.maps.get(map).is_some_and(|state| state.delta.actual(key).is_some());
            if held {
                gone.entry(*map).or_default().push(Element::key(*key));
            }
            if let Some(Cell { data, comment }) = cell.clone() {
                new.entry(*map).or_default().push(Element { key: *key, data, comment });
            }
        }
        for map in Map::ALL {
            let adds = new.get(&map).map_or(0, Vec::len);
            if let Some(state) = self.maps.get_mut(&map)
                && let Some(size) = state.larger_size(adds)
            {
                batch.add_set(&self.table, map.set(self.family, size));
                state.size = size;
            }
        }
        for map in Map::ALL.iter().rev() {
            batch.delete_elements(&self.table, map.name(), gone.remove(map).unwrap_or_default());
        }
        for map in Map::ALL {
            batch.add_elements(&self.table, map.name(), new.remove(&map).unwrap_or_default());
        }
    }

    /// The transaction that [`TableState::write`] made has been committed.
    pub fn committed(&mut self) {
        let InFlight { elements, picks, table } = std::mem::take(&mut self.in_flight);
        self.starting = false;
        if let Some(made) = table {
            (self.missing, self.leftover, self.outgrown) = (!made, false, false);
        }
        for (map, key, cell) in elements {
            let state = self.maps.entry(map).or_default();
            let held = state.delta.actual(&key).is_some();
            state.held = state.held + usize::from(cell.is_some()) - usize::from(held);
            match cell {
                Some(cell) => state.delta.is(key, cell),
                None => state.delta.is_gone(&key),
            }
        }
        for (pick, made) in picks {
            if made { self.picks.is(pick, ()) } else { self.picks.is_gone(&pick) }
        }
    }

    /// It has been refused; read the kernel again. Returns whether this table is to be made anew then.
    pub fn refused(&mut self, error: &podwire_kernel::Error) -> bool {
        let InFlight { elements, table, .. } = std::mem::take(&mut self.in_flight);
        self.outgrown = error.set_is_full() && !elements.is_empty() && table.is_none();
        self.outgrown
    }
}

/// Puts `wanted` in an order in which those that were in `current` keep their place, if there is one.
fn arrange(current: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let mut left: BTreeSet<_> = wanted.iter().copied().collect();
    let mut places: Vec<_> = current.iter().take(wanted.len()).map(|backend| left.take(backend)).collect();
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
