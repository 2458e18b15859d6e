//! Chains that nothing leads to any more, until every packet has passed (docs/adr/0005).

use std::collections::BTreeMap;

use super::names::Chain;

/// Chains of Service ports that the kernel holds and nothing leads to, each with whether it was so at the last tidying.
#[derive(Debug, Default)]
pub struct Unused(BTreeMap<Chain, bool>);

impl Unused {
    /// Nothing leads to these since now.
    pub fn extend<'a>(&mut self, chains: impl IntoIterator<Item = &'a Chain>) {
        self.0.extend(chains.into_iter().map(|chain| (*chain, false)));
    }

    /// Something leads to a chain again.
    pub fn remove(&mut self, chain: &Chain) {
        self.0.remove(chain);
    }

    /// These have new rules. If one of them was unused, a packet may have come to its old rules just before, and so to
    /// chains that were thought to be unused for long.
    pub fn changed<'a>(&mut self, mut chains: impl Iterator<Item = &'a Chain>) {
        if chains.any(|chain| self.0.contains_key(chain)) {
            self.0.values_mut().for_each(|aged| *aged = false);
        }
    }

    /// Takes out what was unused already at the last call: from what leads to others to what others lead to.
    pub fn grow_older(&mut self) -> Vec<Chain> {
        let aged = self.0.iter().rev().filter(|(_, aged)| **aged).map(|(chain, _)| *chain).collect();
        self.0.retain(|_, aged| !std::mem::replace(aged, true));
        aged
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
