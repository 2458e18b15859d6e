//! What the kernel holds of a table, at start and whenever it is not known.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use podwire_kernel::nftables::{Action as Step, Batch, Chain, Datum, Mapped, Nftables, Rule, SetInfo};
use podwire_model::Name;

use super::{
    frontends::Sticky,
    kind::{Kind, Numbers, Pick},
    map::{self, Item, Map},
    render, sticky,
    table::{Presence, TableState},
    work::{Room, Rooms, Work},
};
use crate::{
    mode::Settings,
    plan::{Backend, Frontend},
};

/// From so many endpoints on it takes the kernel longer to list them than to look each up.
const MANY: usize = 1 << 16;

/// Of how many frontends the endpoints are looked up together.
const AT_ONCE: usize = 16;

type Result<T> = podwire_kernel::Result<T>;

/// Endpoints by frontend and side, each at its number.
type Endpoints = HashMap<(Frontend, bool), Vec<Option<Backend>>>;

impl TableState {
    /// Reads what the kernel holds. A table of another layout, or one whose rules somebody changed, counts as foreign.
    /// What is wanted stays; afterwards every frontend must be routed.
    pub fn read(&mut self, kernel: &mut impl Nftables, settings: &Settings) -> Result<()> {
        self.forget();
        let tables = kernel.tables()?;
        let Some(found) = tables.iter().find(|info| info.table == self.table) else { return Ok(()) };
        self.presence = Presence::Foreign;
        if !self.is_outgrown
            && found.comment.as_deref() == Some(&*render::layout_comment(self.family, settings))
            && self.read_maps(kernel)?
            && self.read_kinds(kernel)?
            && self.has_its_rules(kernel, settings)?
        {
            self.presence = Presence::Ours;
            self.read_items(kernel)?;
            self.read_services(kernel)?;
            self.read_endpoints(kernel)?;
        } else {
            self.picks.found([]);
        }
        Ok(())
    }

    /// Forgets what the kernel holds, and what of it is wanted that routing says anew.
    fn forget(&mut self) {
        self.presence = Presence::Absent;
        self.frontends.clear();
        self.tails.clear();
        self.sets.clear();
        self.users.clear();
        self.numbers = Numbers::default();
        self.rooms = Rooms::default();
        (self.prepare, self.switch) = (Work::default(), Work::default());
        self.addresses.found([]);
        self.items.want_exactly([]);
        self.items.found([]);
        self.picks.want_exactly([]);
        self.picks.found([]);
    }

    /// Whether there are all maps.
    fn read_maps(&mut self, kernel: &mut impl Nftables) -> Result<bool> {
        let sets: HashMap<Name, SetInfo> =
            kernel.sets(&self.table)?.into_iter().map(|set| (set.name.clone(), set)).collect();
        for map in Map::ALL {
            let Some(set) = sets.get(map.name()) else { return Ok(false) };
            let held = set.count.unwrap_or_default() as usize;
            *self.rooms.room(map) = Room { held, size: set.size.unwrap_or(u32::MAX) };
        }
        Ok(true)
    }

    /// Whether the kinds are ours, each with a number that it can have, and the fixed ones among them.
    fn read_kinds(&mut self, kernel: &mut impl Nftables) -> Result<bool> {
        let elements = kernel.elements(&self.table, Map::Kinds.name())?;
        self.rooms.room(Map::Kinds).held = elements.len();
        let mut picks = Vec::new();
        let mut fixed = 0;
        for element in &elements {
            let number = element.key.split(&Map::Kinds.key(self.family));
            let (Some([Datum::Mark(number)]), Mapped::Verdict(verdict)) = (number.as_deref(), &element.data) else {
                return Ok(false);
            };
            match Kind::from_verdict(verdict).filter(|kind| self.numbers.learn(*number, kind)) {
                Some(Kind::Pick(pick)) => picks.push((pick, ())),
                Some(_) => fixed += 1,
                None => return Ok(false),
            }
        }
        self.picks.found(picks);
        Ok(fixed == Numbers::FIXED.len())
    }

    /// Whether there are exactly the chains that should be, with exactly the rules that they should have.
    fn has_its_rules(&self, kernel: &mut impl Nftables, settings: &Settings) -> Result<bool> {
        let mut batch = Batch::new();
        render::inner_chains(&mut batch, &self.table, self.family, settings);
        render::base_chains(&mut batch, &self.table, self.family, settings);
        for pick in self.picks.all_actual() {
            Pick::add(pick, &mut batch, &self.table, self.family, settings);
        }
        let mut chains: BTreeMap<&Name, (&Chain, Vec<&Rule>)> = BTreeMap::new();
        for (_, step) in batch.steps() {
            match step {
                Step::AddChain(chain) => _ = chains.insert(&chain.name, (chain, Vec::new())),
                Step::AddRule { chain, rule } => {
                    if let Some((_, rules)) = chains.get_mut(chain) {
                        rules.push(rule);
                    }
                }
                _ => {}
            }
        }
        let found = kernel.chains(&self.table)?;
        let same_chains = found.len() == chains.len()
            && found.iter().all(|chain| chains.get(&chain.name).is_some_and(|(expected, _)| *expected == chain));
        let listed = kernel.rules(&self.table)?;
        let mut rest: BTreeMap<&Name, _> = chains.iter().map(|(name, (_, rules))| (*name, rules.iter())).collect();
        let same_rules = listed
            .iter()
            .all(|listed| rest.get_mut(&listed.chain).and_then(Iterator::next).is_some_and(|rule| listed.does(rule)));
        Ok(same_chains && same_rules && rest.values_mut().all(|rules| rules.next().is_none()))
    }

    fn read_items(&mut self, kernel: &mut impl Nftables) -> Result<()> {
        let (mut addresses, mut items) = (Vec::new(), Vec::new());
        for map in Item::MAPS {
            let mut held = 0;
            kernel.each_element(&self.table, map.name(), &mut |element| {
                held += 1;
                match Item::read(map, &element, self.family) {
                    Some(item @ (Item::ClusterIp(_) | Item::Hairpin(_), _)) => addresses.push(item),
                    Some(item) => items.push(item),
                    None => {}
                }
            })?;
            self.rooms.room(map).held = held;
        }
        self.addresses.found(addresses);
        self.items.found(items.iter().copied());
        for (item, data) in items {
            if let (Item::Sticky(frontend, outside), map::Data::Number(set)) = (item, data) {
                let endpoints = sticky::held(&self.items, set).into_iter().map(|(_, backend)| backend).collect();
                self.side(frontend, outside).sticky = Some(Sticky { set, endpoints, counted: false });
            }
        }
        Ok(())
    }

    fn read_services(&mut self, kernel: &mut impl Nftables) -> Result<()> {
        for (map, outside) in [
            (Map::Services, false),
            (Map::ServicesOutside, true),
            (Map::NodePorts, false),
            (Map::NodePortsOutside, true),
        ] {
            let elements = kernel.elements(&self.table, map.name())?;
            self.rooms.room(map).held = elements.len();
            for element in elements {
                let frontend = map::frontend_of(map, &element.key, self.family);
                let Some((frontend, number)) = frontend.zip(map::number_of(&element.data)) else { continue };
                self.side(frontend, outside).service = Some((number, element.comment.unwrap_or_else(|| "".into())));
                if let Some(Kind::Pick(pick)) = self.numbers.kind(number) {
                    self.use_pick(pick);
                }
            }
        }
        Ok(())
    }

    fn read_endpoints(&mut self, kernel: &mut impl Nftables) -> Result<()> {
        for map in [Map::Endpoints, Map::NodePortEndpoints] {
            if !self.read_endpoints_in_use(kernel, map)? {
                self.read_all_endpoints(kernel, map)?;
            }
        }
        Ok(())
    }

    /// Reads the endpoints that the services lead to, if they are many and the map has no others; returns whether that is so.
    /// The kernel begins every 32 KiB of a dump at the first element, so that to look up each of 250,000 takes a quarter of
    /// the time.
    fn read_endpoints_in_use(&mut self, kernel: &mut impl Nftables, map: Map) -> Result<bool> {
        let mut in_use: Vec<(Frontend, bool, u16)> = Vec::new();
        for (frontend, held) in self.frontends.iter().filter(|(frontend, _)| Map::endpoints(&frontend.entry) == map) {
            for (outside, side) in [false, true].into_iter().zip(&held.sides) {
                let kind = side.service.as_ref().and_then(|(number, _)| self.numbers.kind(*number));
                if let Some(Kind::Pick(Pick { sticky: 0, count, .. })) = kind {
                    in_use.push((*frontend, outside, count));
                }
            }
        }
        // Where the kernel does not tell how many there are it is zero.
        let expected: usize = in_use.iter().map(|(.., count)| usize::from(*count)).sum();
        if expected < MANY || self.rooms.room(map).held != expected {
            return Ok(false);
        }
        let family = self.family;
        for some in in_use.chunks(AT_ONCE) {
            let keys_of = |(frontend, outside, count): &(Frontend, bool, u16)| {
                let (frontend, outside) = (*frontend, *outside);
                (0..u32::from(*count)).map(move |number| map::endpoint_key(&frontend, outside, number))
            };
            let keys: Vec<_> = some.iter().flat_map(keys_of).collect();
            let Some(elements) = kernel.elements_at(&self.table, map.name(), &keys)? else { return Ok(false) };
            let mut backends = elements.iter().map(|element| map::backend_of(&element.data, family));
            for (frontend, outside, count) in some {
                let endpoints: Option<Arc<[Backend]>> = backends.by_ref().take(usize::from(*count)).collect();
                let Some(endpoints) = endpoints.filter(|all| all.len() == usize::from(*count)) else {
                    return Ok(false);
                };
                self.side(*frontend, *outside).endpoints = endpoints;
            }
        }
        Ok(true)
    }

    fn read_all_endpoints(&mut self, kernel: &mut impl Nftables, map: Map) -> Result<()> {
        let mut endpoints = Endpoints::new();
        let mut held = 0;
        kernel.each_element(&self.table, map.name(), &mut |element| {
            held += 1;
            let at = map::numbered_of(map, &element.key, self.family);
            let backend = map::backend_of(&element.data, self.family);
            let Some(((frontend, outside, number), backend)) = at.zip(backend) else { return };
            let numbered = endpoints.entry((frontend, outside)).or_default();
            let number = number as usize;
            if numbered.len() <= number {
                numbered.resize(number + 1, None);
            }
            if let Some(place) = numbered.get_mut(number) {
                *place = Some(backend);
            }
        })?;
        self.rooms.room(map).held = held;
        for ((frontend, outside), numbered) in endpoints {
            let side = self.side(frontend, outside);
            side.endpoints = numbered.iter().map_while(|backend| *backend).collect();
            side.tail = numbered.get(side.endpoints.len()..).unwrap_or_default().to_vec();
        }
        Ok(())
    }

    fn side(&mut self, frontend: Frontend, outside: bool) -> &mut super::frontends::Side {
        let [inside, from_outside] = &mut self.frontends.entry(frontend).or_default().sides;
        if outside { from_outside } else { inside }
    }
}
