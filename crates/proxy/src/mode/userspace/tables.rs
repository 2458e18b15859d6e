//! The rules of one address family: which there should be, which of them are not yet there, and the text that brings
//! them there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
};

use podwire_kernel::iptables::{Iptables, Table, TableState};
use podwire_model::{Family, Protocol};

use super::rules::{self, Placed, TABLES};
use crate::{mode::Settings, plan::Frontend};

/// Deleting so many rules one by one takes longer than writing the tables anew: each is searched for.
const MANY: usize = 200;

/// What rules are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A way into a Service.
    Frontend(Frontend),
    /// The other ports of a cluster IP.
    ClusterIp(IpAddr),
    /// A local port.
    Door(Protocol, u16),
    /// The other addresses of the Service ranges.
    Ranges,
}

/// What the kernel holds.
pub type Saved = Vec<(Table, TableState)>;

/// The rules of a family.
#[derive(Debug)]
pub struct Tables {
    family: Family,
    wanted: BTreeMap<Owner, Vec<Placed>>,
    /// What the kernel still holds for owners that have changed.
    outdated: BTreeMap<Owner, Vec<Placed>>,
    /// The kernel has our chains.
    made: bool,
}

impl Tables {
    /// Nothing yet.
    pub const fn new(family: Family) -> Self {
        Self { family, wanted: BTreeMap::new(), outdated: BTreeMap::new(), made: false }
    }

    /// Replaces the rules of an owner; none when it is gone.
    pub fn set(&mut self, owner: Owner, rules: Vec<Placed>) {
        let old = match rules.is_empty() {
            true => self.wanted.remove(&owner),
            false if self.wanted.get(&owner) == Some(&rules) => return,
            false => self.wanted.insert(owner, rules),
        };
        self.outdated.entry(owner).or_insert_with(|| old.unwrap_or_default());
    }

    /// Everything that there should be.
    pub const fn wanted(&self) -> &BTreeMap<Owner, Vec<Placed>> {
        &self.wanted
    }

    /// The owners that changed since the kernel last held everything, with their rules there.
    pub const fn outdated(&self) -> &BTreeMap<Owner, Vec<Placed>> {
        &self.outdated
    }

    /// What the kernel holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, iptables: &mut impl Iptables) -> podwire_kernel::Result<Saved> {
        TABLES.into_iter().map(|table| Ok((table, iptables.save(self.family, table)?))).collect()
    }

    /// The kernel holds everything now.
    pub fn written(&mut self) {
        self.made = !self.wanted.is_empty();
        self.outdated.clear();
    }

    /// What `iptables-restore` has to be told, and how many rules that writes or deletes, when the kernel is as it was
    /// left.
    pub fn change(&self, settings: &Settings) -> (String, usize) {
        if self.outdated.is_empty() {
            return Default::default();
        }
        let deleted: usize = self.outdated.values().map(Vec::len).sum();
        if !self.made || self.wanted.is_empty() || deleted > MANY {
            return self.repair(&self.assumed(settings), settings);
        }
        let mut text = String::new();
        let mut count = 0;
        for table in TABLES {
            let mut lines = String::new();
            let mut add = |command, rules: Option<&Vec<Placed>>| {
                for Placed { chain, rule, .. } in rules.into_iter().flatten().filter(|placed| placed.table == table) {
                    let _ = writeln!(lines, "{command} {chain} {rule}");
                    count += 1;
                }
            };
            for (owner, old) in &self.outdated {
                let new = self.wanted.get(owner);
                if new != Some(old) {
                    add("-D", Some(old));
                    add("-A", new);
                }
            }
            commit(&mut text, table, &lines);
        }
        (text, count)
    }

    /// What the kernel holds if nobody else touched it, as far as that is needed to write everything anew.
    fn assumed(&self, settings: &Settings) -> Saved {
        let state = |table| {
            let mut state = TableState::default();
            for (chain, rules) in rules::jumps(self.family, table, settings).into_iter().filter(|_| self.made) {
                state.chains.entry(chain.to_owned()).or_default().rules = rules;
            }
            for chain in rules::chains(table).iter().filter(|_| self.made) {
                // With something in it that is not wanted.
                state.chains.entry((*chain).to_owned()).or_default().rules.push(String::new());
            }
            (table, state)
        };
        TABLES.map(state).into()
    }

    /// What `iptables-restore` has to be told when the kernel holds `saved`, and how many rules that writes or deletes.
    /// Chains that hold what they should, in whichever order of owners, are left alone.
    pub fn repair(&self, saved: &Saved, settings: &Settings) -> (String, usize) {
        if self.wanted.is_empty() {
            let text = removal(saved);
            let count = text.lines().filter(|line| line.starts_with('-')).count();
            return (text, count);
        }
        let mut text = String::new();
        let mut count = 0;
        for (table, state) in saved {
            let mut lines = String::new();
            for chain in rules::chains(*table) {
                count += self.repair_chain((*table, chain), state, &mut lines);
            }
            for (chain, wanted) in rules::jumps(self.family, *table, settings) {
                let found: Vec<_> = state.rules(chain).iter().filter(|rule| leads_to_ours(rule)).collect();
                if found.iter().copied().eq(&wanted) {
                    continue;
                }
                for rule in &found {
                    let _ = writeln!(lines, "-D {chain} {rule}");
                }
                for (index, rule) in wanted.iter().enumerate() {
                    let _ = writeln!(lines, "-I {chain} {} {rule}", index + 1);
                }
                count += found.len() + wanted.len();
            }
            commit(&mut text, *table, &lines);
        }
        (text, count)
    }

    fn repair_chain(&self, (table, chain): (Table, &str), state: &TableState, lines: &mut String) -> usize {
        let is_here = |placed: &&Placed| placed.table == table && placed.chain == chain;
        let found = state.rules(chain);
        if state.chains.contains_key(chain) && self.holds(found, is_here) {
            return 0;
        }
        let mut count = found.len();
        let _ = writeln!(lines, ":{chain} - [0:0]");
        for placed in self.wanted.values().flatten().filter(is_here) {
            let _ = writeln!(lines, "-A {chain} {}", placed.rule);
            count += 1;
        }
        // Also a chain without rules is something that is written.
        count.max(1)
    }

    /// Whether the rules of a chain are those that there should be: each once, those of one owner in order.
    fn holds(&self, found: &[String], is_here: impl Fn(&&Placed) -> bool) -> bool {
        let positions: HashMap<&str, usize> = found.iter().enumerate().map(|(at, rule)| (rule.as_str(), at)).collect();
        let mut count = 0;
        let in_order = self.wanted.values().all(|rules| {
            let places = rules.iter().filter(&is_here).map(|placed| positions.get(placed.rule.as_str()));
            let places: Vec<_> = places.collect();
            count += places.len();
            places.iter().all(Option::is_some) && places.is_sorted()
        });
        in_order && count == found.len() && positions.len() == found.len()
    }
}

/// What `iptables-restore` has to be told to take everything of this mode away from what it finds.
pub fn removal(saved: &Saved) -> String {
    let mut text = String::new();
    for (table, state) in saved {
        let mut lines = String::new();
        for (chain, found) in &state.chains {
            for rule in found.rules.iter().filter(|rule| !is_ours(chain) && leads_to_ours(rule)) {
                let _ = writeln!(lines, "-D {chain} {rule}");
            }
        }
        let ours: BTreeSet<_> = state.chains.keys().filter(|chain| is_ours(chain)).collect();
        for chain in &ours {
            let _ = writeln!(lines, ":{chain} - [0:0]");
        }
        for chain in &ours {
            let _ = writeln!(lines, "-X {chain}");
        }
        commit(&mut text, *table, &lines);
    }
    text
}

/// Whether a chain is one that this mode, kube-proxy's userspace mode or another version of either made.
fn is_ours(chain: &str) -> bool {
    chain.starts_with("KUBE-PORTALS-") || chain.starts_with("KUBE-NODEPORT-")
}

fn leads_to_ours(rule: &str) -> bool {
    let target = rule.rsplit_once("-j ").map_or("", |(_, target)| target);
    is_ours(target)
}

fn commit(text: &mut String, table: Table, lines: &str) {
    if !lines.is_empty() {
        let _ = write!(text, "*{table}\n{lines}COMMIT\n");
    }
}
