//! One family's table: what should be in it, what is in it, and the transactions between the two.
//!
//! A transaction is atomic for each single lookup, but a packet makes several (what to do, then the endpoint), and its
//! processor may be taken away between them. So what one lookup leads to is written before it, and removed a while after
//! nothing leads there any more: see [`Stage`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use podwire_kernel::nftables::{Batch, Datum, Element, Mapped, Table, Value};
use podwire_model::{
    Family, IpNet, Name, TrafficPolicy,
    delta::{Delta, Step},
};

use super::{
    frontends::{Held, Side, Sticky, arrange},
    kind::{self, Kind, MOST_ENDPOINTS, Numbers, Pick},
    map::{self, Data, Item, Map},
    render, sticky,
    tidy::Aged,
    work::{Rooms, Work},
};
use crate::{
    mode::{Applied, Settings},
    plan::{Action, Backend, Frontend, Treatment},
};

/// When something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// First: endpoints, and chains that pick from them. Nothing leads there yet; an endpoint that takes another one's
    /// number is one that the Service wants anyway.
    Prepare,
    /// Then: what leads to them.
    Switch,
    /// Later: endpoints and chains that nothing leads to. A packet may still be on its way to them.
    Tidy,
}

/// What the kernel has of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// One of another layout, or one that somebody changed.
    Foreign,
    /// Ours, but the kernel calls no chain of it yet.
    Unfinished,
    /// Ours.
    Ours,
}

/// The table of one family.
#[derive(Debug)]
pub struct TableState {
    pub(super) family: Family,
    pub(super) table: Table,
    pub(super) presence: Presence,
    /// A map is full and did not grow (before Linux 6.5 none does): the table is to be made anew, with room.
    pub(super) is_outgrown: bool,
    /// What should happen at each frontend.
    wanted: HashMap<Frontend, Treatment>,
    pub(super) frontends: HashMap<Frontend, Held>,
    pub(super) addresses: Delta<Item, Data>,
    pub(super) items: Delta<Item, Data>,
    pub(super) sets: sticky::Sets,
    pub(super) numbers: Numbers,
    pub(super) picks: Delta<Pick, ()>,
    /// How many services lead to each pick.
    pub(super) users: HashMap<Pick, usize>,
    pub(super) rooms: Rooms,
    /// What is to be written in the next transactions.
    pub(super) prepare: Work,
    pub(super) switch: Work,
    /// Frontends with endpoints that nothing leads to.
    pub(super) tails: BTreeSet<(Frontend, bool)>,
    /// What was found unused by the last tidying; it goes with the next one unless it was used in between.
    pub(super) aged: Aged,
}

/// What should be at one side of a frontend.
struct Wanted {
    kind: Kind,
    label: Name,
    backends: Arc<[Backend]>,
    /// The set of endpoints that clients stick to.
    set: Option<sticky::Key>,
}

impl Wanted {
    fn of(frontend: &Frontend, treatment: &Treatment, outside: bool) -> Option<Self> {
        let kind = Kind::of(frontend, treatment, outside)?;
        let (backends, policy) = match kind::action(treatment, outside)? {
            Action::Balance { backends, policy, .. } => match backends.get(..MOST_ENDPOINTS) {
                Some(first) if backends.len() > MOST_ENDPOINTS => (first.into(), *policy),
                _ => (backends.clone(), *policy),
            },
            _ => (Arc::default(), TrafficPolicy::Cluster),
        };
        let is_sticky = matches!(kind, Kind::Pick(Pick { sticky: 1.., .. }));
        let set = is_sticky.then(|| (treatment.label.clone(), policy));
        Some(Self { kind, label: treatment.label.clone(), backends, set })
    }
}

impl TableState {
    pub fn new(family: Family) -> Self {
        Self {
            family,
            table: Table::new(family.into(), render::TABLE),
            presence: Presence::Absent,
            is_outgrown: false,
            wanted: HashMap::new(),
            frontends: HashMap::new(),
            addresses: Delta::new(),
            items: Delta::new(),
            sets: sticky::Sets::default(),
            numbers: Numbers::default(),
            picks: Delta::new(),
            users: HashMap::new(),
            rooms: Rooms::default(),
            prepare: Work::default(),
            switch: Work::default(),
            tails: BTreeSet::new(),
            aged: Aged::default(),
        }
    }

    /// The table as the kernel knows it.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// A map was full: what the kernel has is made anew after the next read.
    pub fn outgrown(&mut self) {
        self.is_outgrown = true;
    }

    /// Says what should happen at a frontend; [`TableState::route`] does it.
    pub fn want(&mut self, frontend: Frontend, treatment: Option<Treatment>) {
        match treatment {
            Some(treatment) => self.wanted.insert(frontend, treatment),
            None => self.wanted.remove(&frontend),
        };
    }

    /// Says whether an address is to be in [`Map::ClusterIps`] or [`Map::Hairpin`].
    pub fn use_address(&mut self, item: Item, used: bool) {
        if used {
            self.addresses.want(item, Data::Nothing);
        } else {
            self.addresses.unwant(&item);
        }
    }

    /// Every frontend that is wanted or held, sorted.
    pub fn all_frontends(&self) -> Vec<Frontend> {
        let all: BTreeSet<_> = self.wanted.keys().chain(self.frontends.keys()).copied().collect();
        all.into_iter().collect()
    }

    /// Notes what is to be written so that what is wanted at a frontend happens there.
    pub fn route(&mut self, frontend: &Frontend, report: &mut Applied) {
        let treatment = self.wanted.get(frontend);
        let sides = [false, true].map(|outside| Wanted::of(frontend, treatment?, outside));
        let sources = treatment.and_then(|treatment| treatment.sources.clone());
        let mut held = self.frontends.remove(frontend).unwrap_or_default();
        for ((outside, wanted), side) in [false, true].into_iter().zip(sides).zip(&mut held.sides) {
            self.route_side((frontend, outside), side, wanted, report);
        }
        self.allow(frontend, held.sources.as_deref(), sources.as_deref());
        held.sources = sources;
        if !held.is_empty() {
            self.frontends.insert(*frontend, held);
        }
    }

    fn route_side(&mut self, at: (&Frontend, bool), side: &mut Side, wanted: Option<Wanted>, report: &mut Applied) {
        let (kind, label, backends, set) = match wanted {
            Some(Wanted { kind, label, backends, set }) => (Some(kind), Some(label), backends, set),
            None => (None, None, Arc::default(), None),
        };
        report.note_stale(*at.0, side.backends(), &backends);
        let in_map = if set.is_some() { Arc::default() } else { backends.clone() };
        self.number_endpoints(at, side, &in_map);
        self.stick(at, side, set, backends);
        let service = kind.map(|kind| self.numbers.number(&kind)).zip(label);
        self.lead(at, side, service);
    }

    /// Gives each endpoint a number, so that as few as possible change theirs.
    fn number_endpoints(&mut self, at: (&Frontend, bool), side: &mut Side, backends: &Arc<[Backend]>) {
        if side.tail.is_empty() && *side.endpoints == **backends {
            // What was read is not held twice.
            side.endpoints.clone_from(backends);
            return;
        }
        let (frontend, outside) = at;
        let new = arrange((0..side.numbers()).map(|number| side.numbered(number)), backends);
        let map = Map::endpoints(&frontend.entry);
        for (number, backend) in new.iter().enumerate() {
            let held = side.numbered(number);
            if held != Some(*backend) {
                let key = map::endpoint_key(frontend, outside, number as u32);
                let wanted = Element::map(key, Mapped::Value(map::backend_value(backend)));
                self.prepare.change(map, held.map(|_| Element::key(key)), Some(wanted));
            }
        }
        side.tail = (new.len()..side.numbers()).map(|number| side.numbered(number)).collect();
        if side.tail.iter().all(Option::is_none) {
            side.tail = Vec::new();
            self.tails.remove(&(*frontend, outside));
        } else {
            self.tails.insert((*frontend, outside));
        }
        self.aged.tails.remove(&(*frontend, outside));
        side.endpoints = new;
    }

    /// Has clients of a side stick to the endpoints of a set, or no longer.
    fn stick(&mut self, at: (&Frontend, bool), side: &mut Side, key: Option<sticky::Key>, backends: Arc<[Backend]>) {
        let item = Item::Sticky(*at.0, at.1);
        let set = key.map(|key| self.sets.join(key));
        if let Some(set) = set {
            sticky::hold(&mut self.items, set, &backends);
            self.items.want(item, Data::Number(set));
        } else {
            self.items.unwant(&item);
        }
        if let Some(Sticky { set: left, counted: true, .. }) = side.sticky
            && self.sets.leave(left)
        {
            sticky::hold(&mut self.items, left, &Arc::default());
        }
        side.sticky = set.map(|set| Sticky { set, endpoints: backends, counted: true });
    }

    /// Leads traffic of a side to what is done with it.
    fn lead(&mut self, at: (&Frontend, bool), side: &mut Side, service: Option<(u32, Name)>) {
        if side.service == service {
            return;
        }
        let (frontend, outside) = at;
        let key = map::frontend_key(frontend);
        let kind = |service: &Option<(u32, Name)>| self.numbers.kind(service.as_ref()?.0);
        let (before, after) = (kind(&side.service), kind(&service));
        let held = side.service.as_ref().map(|_| Element::key(key));
        let wanted = service.as_ref().map(|(number, label)| Element {
            comment: Some(label.clone()),
            ..Element::map(key, map::number_value(*number))
        });
        self.switch.change(Map::services(&frontend.entry, outside), held, wanted);
        self.change_pick(before, after);
        side.service = service;
    }

    fn change_pick(&mut self, before: Option<Kind>, after: Option<Kind>) {
        if before == after {
            return;
        }
        if let Some(Kind::Pick(pick)) = after {
            self.use_pick(pick);
        }
        if let Some(Kind::Pick(pick)) = before
            && let Some(users) = self.users.get_mut(&pick)
        {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&pick);
                self.unwant_pick(pick);
            }
        }
    }

    /// A pick is used: its chain is wanted at once, those for one endpoint more and one less in good time. (The kernel
    /// goes through every element of a map when a new chain begins to look into it: docs/adr/0007.)
    pub(super) fn use_pick(&mut self, pick: Pick) {
        *self.users.entry(pick).or_default() += 1;
        for near in pick.near().filter(|near| self.picks.desired(near).is_none()).collect::<Vec<_>>() {
            self.picks.want(near, ());
        }
    }

    /// A pick is no longer used.
    fn unwant_pick(&mut self, pick: Pick) {
        for near in pick.near() {
            if !near.near().any(|user| self.users.contains_key(&user)) {
                self.picks.unwant(&near);
            }
        }
    }

    /// Allows some sources at a frontend instead of others.
    fn allow(&mut self, frontend: &Frontend, before: Option<&[IpNet]>, after: Option<&[IpNet]>) {
        if before == after {
            return;
        }
        for range in before.unwrap_or_default() {
            self.items.unwant(&Item::Allowed(*frontend, *range));
        }
        let ranges = after.unwrap_or_default();
        // A range within another one would be an overlap, which the kernel does not take.
        let within = |range: &IpNet| ranges.iter().any(|other| other != range && other.contains(range));
        for range in ranges.iter().filter(|range| !within(range)) {
            self.items.want(Item::Allowed(*frontend, range.trunc()), Data::Nothing);
        }
    }

    /// Whether anything should be in the table. A machine without IPv6 Services may be one without IPv6.
    pub fn is_wanted(&self) -> bool {
        self.family == Family::V4 || !self.wanted.is_empty()
    }

    /// Whether a table of another layout stands where ours should be: everything must be in one transaction then.
    pub fn must_be_replaced(&self) -> bool {
        self.presence == Presence::Foreign
    }

    /// How many endpoints wait to be written.
    pub const fn prepared(&self) -> usize {
        self.prepare.count
    }

    /// Appends the endpoints that wait to be written, without anything that leads to them; returns how many objects that
    /// are.
    pub fn write_endpoints(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        let made = self.make(batch, settings);
        let work = std::mem::take(&mut self.prepare);
        let count = work.count;
        work.write(batch, &self.table, self.family, &mut self.rooms);
        made + count
    }

    /// Appends what is to be done in a stage; returns how many objects that are.
    pub fn write(&mut self, stage: Stage, batch: &mut Batch, settings: &Settings) -> usize {
        if self.presence != Presence::Ours && !self.is_wanted() {
            let foreign = self.presence == Presence::Foreign && stage == Stage::Switch;
            if foreign {
                batch.delete_table(&self.table);
                self.presence = Presence::Absent;
            }
            return usize::from(foreign);
        }
        match stage {
            Stage::Prepare => self.write_prepared(batch, settings),
            Stage::Switch => self.write_switched(batch, settings),
            Stage::Tidy => self.tidy(batch) + self.add_picks(batch, settings, |_, _| true),
        }
    }

    fn write_prepared(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        let made = self.make(batch, settings);
        let chains = self.add_picks(batch, settings, |users, pick| users.contains_key(pick));
        self.take_items(Stage::Prepare);
        made + chains + self.write_endpoints(batch, settings)
    }

    /// Appends chains that are wanted and not there, and the kinds that lead to them; returns how many chains.
    fn add_picks(
        &mut self,
        batch: &mut Batch,
        settings: &Settings,
        now: impl Fn(&HashMap<Pick, usize>, &Pick) -> bool,
    ) -> usize {
        let missing = self.picks.pending().filter_map(|step| match step {
            Step::Create(pick, ()) if now(&self.users, pick) => Some(*pick),
            _ => None,
        });
        let missing: Vec<Pick> = missing.collect();
        let mut kinds = Work::default();
        for pick in &missing {
            pick.add(batch, &self.table, self.family, settings);
            let kind = Kind::Pick(*pick);
            let number = self.numbers.number(&kind);
            kinds.change(Map::Kinds, None, Some(kind_element(number, &kind)));
            self.picks.is(*pick, ());
        }
        kinds.write(batch, &self.table, self.family, &mut self.rooms);
        missing.len()
    }

    fn write_switched(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        // What is used again begins to age anew when it is unused.
        self.aged.items.retain(|item| self.items.desired(item).or(self.addresses.desired(item)).is_none());
        self.aged.picks.retain(|pick| self.picks.desired(pick).is_none());
        self.take_items(Stage::Switch);
        let work = std::mem::take(&mut self.switch);
        let mut written = work.count;
        work.write(batch, &self.table, self.family, &mut self.rooms);
        if self.presence == Presence::Unfinished {
            let before = batch.len();
            render::base_chains(batch, &self.table, self.family, settings);
            self.presence = Presence::Ours;
            written += batch.len() - before;
        }
        written
    }

    /// Moves the items of a stage into its work.
    fn take_items(&mut self, stage: Stage) {
        for items in [&mut self.addresses, &mut self.items] {
            let steps: Vec<(Item, Option<Data>, Option<Data>)> = items
                .pending()
                .filter(|step| item_stage(step) == stage)
                .map(|step| match step {
                    Step::Create(item, to) => (*item, None, Some(*to)),
                    Step::Replace(item, from, to) => (*item, Some(*from), Some(*to)),
                    Step::Delete(item, from) => (*item, Some(*from), None),
                })
                .collect();
            let work = if stage == Stage::Prepare { &mut self.prepare } else { &mut self.switch };
            for (item, from, to) in steps {
                let gone = from.map(|from| Element { data: Mapped::Nothing, ..item.element(&from) });
                work.change(item.map(), gone, to.map(|to| item.element(&to)));
                match to {
                    Some(data) => items.is(item, data),
                    None => items.is_gone(&item),
                }
            }
        }
    }

    /// Makes the table, if there is none of ours: without the chains that the kernel calls, so that nothing happens
    /// before it is complete.
    fn make(&mut self, batch: &mut Batch, settings: &Settings) -> usize {
        if matches!(self.presence, Presence::Ours | Presence::Unfinished) {
            return 0;
        }
        let before = batch.len();
        let comment = render::layout_comment(self.family, settings);
        if self.presence == Presence::Foreign {
            batch.replace_table(&self.table, Some(&comment));
        } else {
            batch.add_table(&self.table, Some(&comment));
        }
        let expected = self.expected();
        for map in Map::ALL {
            let size = self.rooms.reserve(map, expected.get(&map).copied().unwrap_or(0));
            batch.add_set(&self.table, map.set(self.family, size));
        }
        render::inner_chains(batch, &self.table, self.family, settings);
        let mut fixed = Work::default();
        for (number, kind) in Numbers::FIXED {
            fixed.change(Map::Kinds, None, Some(kind_element(number, &kind)));
        }
        fixed.write(batch, &self.table, self.family, &mut self.rooms);
        self.presence = Presence::Unfinished;
        self.is_outgrown = false;
        self.expect_picks();
        self.add_picks(batch, settings, |_, _| true);
        batch.len() - before
    }

    /// Wants the chains that will be used: they are made while the maps are empty.
    fn expect_picks(&mut self) {
        let mut expected = BTreeSet::new();
        for (frontend, treatment) in &self.wanted {
            let kinds = [false, true].map(|outside| Kind::of(frontend, treatment, outside));
            for kind in kinds.into_iter().flatten() {
                // As it will be after the number has been given.
                let number = self.numbers.number(&kind);
                if let Some(Kind::Pick(pick)) = self.numbers.kind(number) {
                    expected.extend(pick.near());
                }
            }
        }
        for pick in expected {
            self.picks.want(pick, ());
        }
    }

    /// How many elements the larger maps will have.
    fn expected(&self) -> HashMap<Map, usize> {
        let mut expected = HashMap::new();
        for (frontend, treatment) in &self.wanted {
            for outside in [false, true] {
                let Some(Wanted { backends, set, .. }) = Wanted::of(frontend, treatment, outside) else { continue };
                *expected.entry(Map::services(&frontend.entry, outside)).or_default() += 1;
                let endpoints = if set.is_some() { Map::StickyEndpoints } else { Map::endpoints(&frontend.entry) };
                *expected.entry(endpoints).or_default() += backends.len();
            }
        }
        let sticky = expected.get(&Map::StickyEndpoints).copied().unwrap_or(0);
        expected.insert(Map::StickyNumbers, sticky);
        for step in self.addresses.pending() {
            if let Step::Create(item, _) = step {
                *expected.entry(item.map()).or_default() += 1;
            }
        }
        expected
    }
}

/// A kind in [`Map::Kinds`].
fn kind_element(number: u32, kind: &Kind) -> Element {
    Element::map(Value::concat(&[Datum::Mark(number)]), Mapped::Verdict(kind.verdict()))
}

/// When a pending step of an item is to be taken. A removed endpoint of a sticky set is to be used no more, and a source
/// that is no longer allowed to be kept out, so these do not wait.
pub(super) const fn item_stage(step: &Step<'_, Item, Data>) -> Stage {
    match step {
        Step::Delete(Item::Hairpin(_) | Item::Sticky(..) | Item::StickyNumber(..), _) => Stage::Tidy,
        Step::Delete(..) => Stage::Switch,
        // A range may overlap one that goes: the kernel takes that in one transaction only.
        Step::Create(Item::ClusterIp(_) | Item::Allowed(..), _) => Stage::Switch,
        Step::Create(..) | Step::Replace(..) => Stage::Prepare,
    }
}
