//! Removing what nothing leads to, when every packet has passed.

use std::collections::BTreeSet;

use podwire_kernel::nftables::{Batch, Datum, Element, Mapped, Value};
use podwire_model::delta::Step;

use super::{
    kind::{Kind, Pick},
    map::{self, Data, Item, Map},
    table::{Presence, Stage, TableState, item_stage},
    work::Work,
};
use crate::plan::Frontend;

/// The most elements that one call of [`TableState::tidy`] deletes.
const TIDY_AT_ONCE: usize = 1 << 15;

/// What was found unused by the last tidying; it goes with the next one unless it was used in between.
#[derive(Debug, Default)]
pub(super) struct Aged {
    pub(super) tails: BTreeSet<(Frontend, bool)>,
    pub(super) items: BTreeSet<Item>,
    pub(super) picks: BTreeSet<Pick>,
}

impl TableState {
    /// Deletes what was unused long enough, and notes what is unused now for the next time.
    pub(super) fn tidy(&mut self, batch: &mut Batch) -> usize {
        let mut work = Work::default();
        let aged = std::mem::take(&mut self.aged);
        for at in &aged.tails {
            if work.count >= TIDY_AT_ONCE {
                break;
            }
            self.cut_tail(at, &mut work);
        }
        for items in [&mut self.addresses, &mut self.items] {
            let unused = items.pending().filter(|step| item_stage(step) == Stage::Tidy);
            let unused: Vec<(Item, Data)> = unused
                .filter_map(|step| if let Step::Delete(item, data) = step { Some((*item, *data)) } else { None })
                .collect();
            for (item, data) in unused {
                if aged.items.contains(&item) && work.count < TIDY_AT_ONCE {
                    let gone = Element { data: Mapped::Nothing, ..item.element(&data) };
                    work.change(item.map(), Some(gone), None);
                    items.is_gone(&item);
                } else {
                    self.aged.items.insert(item);
                }
            }
        }
        let unused = self.picks.pending();
        let unused = unused.filter_map(|step| if let Step::Delete(pick, ()) = step { Some(*pick) } else { None });
        let (going, young): (Vec<Pick>, Vec<Pick>) = unused.partition(|pick| aged.picks.contains(pick));
        self.aged.picks.extend(young);
        for pick in &going {
            let number = self.numbers.number(&Kind::Pick(*pick));
            work.change(Map::Kinds, Some(Element::key(Value::concat(&[Datum::Mark(number)]))), None);
        }
        self.aged.tails.extend(self.tails.iter().copied());
        let written = work.count + going.len();
        work.write(batch, &self.table, self.family, &mut self.rooms);
        for pick in going {
            batch.delete_chain(&self.table, pick.to_string());
            self.picks.is_gone(&pick);
        }
        written
    }

    /// Deletes the endpoints of a side that nothing leads to.
    fn cut_tail(&mut self, at: &(Frontend, bool), work: &mut Work) {
        let (frontend, outside) = at;
        self.tails.remove(at);
        let Some(held) = self.frontends.get_mut(frontend) else { return };
        let [inside, from_outside] = &mut held.sides;
        let side = if *outside { from_outside } else { inside };
        let first = side.endpoints.len();
        for (index, _) in std::mem::take(&mut side.tail).iter().enumerate().filter(|(_, backend)| backend.is_some()) {
            let key = map::endpoint_key(frontend, *outside, (first + index) as u32);
            work.change(Map::endpoints(&frontend.entry), Some(Element::key(key)), None);
        }
        if held.is_empty() {
            self.frontends.remove(frontend);
        }
    }

    /// Whether something unused is left for tidying.
    pub fn is_untidy(&self) -> bool {
        self.presence == Presence::Ours
            && !(self.tails.is_empty()
                && self.picks.is_settled()
                && self.items.is_settled()
                && self.addresses.is_settled())
    }
}
