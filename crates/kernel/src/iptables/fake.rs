//! An iptables for tests that refuses what the real one refuses.

use std::collections::{BTreeMap, BTreeSet};

use podwire_model::Family;

use super::{ChainState, Edit, Iptables, Match, Rule, Table, TableState, Target, edit, prefix};
use crate::{Error, Result};

/// The longest name of a chain.
const NAME_LENGTH: usize = 28;

/// Tables in memory. Refuses rules that it does not understand, jumps to chains that do not exist, rules in chains
/// that do not exist, deleting what is not there, is not empty or is jumped to, making a chain twice, names that are
/// too long, targets in the wrong table, and addresses of the other family. A table that is refused is not changed.
#[derive(Debug, Clone)]
pub struct Fake {
    tables: BTreeMap<(Family, Table), TableState>,
    restored: Vec<(Family, String)>,
    disturbed: bool,
    random: u64,
    fail_one_in: Option<u64>,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// The four tables of both families, empty.
    pub fn new() -> Self {
        let accept = || ChainState { policy: Some("ACCEPT".to_owned()), rules: Vec::new() };
        let empty = |table: Table| TableState {
            chains: table.builtin_chains().iter().map(|chain| ((*chain).to_owned(), accept())).collect(),
        };
        let of_family = |family| Table::ALL.map(|table| ((family, table), empty(table)));
        Self {
            tables: [Family::V4, Family::V6].into_iter().flat_map(of_family).collect(),
            restored: Vec::new(),
            disturbed: false,
            random: 0,
            fail_one_in: None,
        }
    }

    /// A kernel that does not have this table.
    #[must_use]
    pub fn without(mut self, family: Family, table: Table) -> Self {
        self.tables.remove(&(family, table));
        self
    }

    /// Makes one in `n` operations fail and do nothing: at random, but the same ones in every run.
    #[must_use]
    pub fn failing_one_in(mut self, n: u64) -> Self {
        self.fail_one_in = Some(n);
        self
    }

    /// Ends the failures.
    pub fn heal(&mut self) {
        self.fail_one_in = None;
    }

    /// What a table holds; empty if there is no such table.
    pub fn table(&self, family: Family, table: Table) -> TableState {
        self.tables.get(&(family, table)).cloned().unwrap_or_default()
    }

    /// Mutable access, to play an administrator who changes things by hand; [`Iptables::disturbed`] tells.
    pub fn table_mut(&mut self, family: Family, table: Table) -> &mut TableState {
        self.disturbed = true;
        self.tables.entry((family, table)).or_default()
    }

    /// The texts that were restored successfully, oldest first; empties the list.
    pub fn take_restored(&mut self) -> Vec<(Family, String)> {
        std::mem::take(&mut self.restored)
    }

    fn operate(&mut self, what: String) -> Result<()> {
        let Some(n) = self.fail_one_in else { return Ok(()) };
        // Knuth's linear congruential generator; its high bits are the good ones.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (self.random >> 33).is_multiple_of(n) {
            return Err(Error::Program { what, message: "another app is holding the xtables lock".to_owned() });
        }
        Ok(())
    }
}

impl Iptables for Fake {
    fn restore(&mut self, family: Family, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let what = format!("run {}-restore", prefix(family));
        self.operate(what.clone())?;
        let mut open: Option<(Table, TableState)> = None;
        for (number, line) in text.lines().enumerate() {
            let refuse = |problem: String| Error::Program {
                what: what.clone(),
                message: format!("line {}: {problem}: {line}", number + 1),
            };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('*') {
                let table = Table::ALL.into_iter().find(|table| table.name() == name);
                let found = table.and_then(|table| Some((table, self.tables.get(&(family, table))?.clone())));
                open = Some(found.ok_or_else(|| refuse("there is no such table".to_owned()))?);
                continue;
            }
            let (table, mut state) = open.take().ok_or_else(|| refuse("no table was named".to_owned()))?;
            if line == "COMMIT" {
                check_jumps(&state).map_err(refuse)?;
                self.tables.insert((family, table), state);
            } else {
                run(family, table, &mut state, line).map_err(refuse)?;
                open = Some((table, state));
            }
        }
        if open.is_some() {
            return Err(Error::Program { what, message: "COMMIT is missing".to_owned() });
        }
        self.restored.push((family, text.to_owned()));
        Ok(())
    }

    /// In as many steps as nf_tables takes, any of which may fail.
    fn edit(&mut self, family: Family, table: Table, edits: &mut dyn Iterator<Item = Edit>) -> Result<()> {
        let mut edits = edits.peekable();
        while edits.peek().is_some() {
            let mut step = edits.by_ref().take_while(|edit| *edit != Edit::Barrier);
            self.restore(family, &edit::text(family, table, &mut step))?;
        }
        Ok(())
    }

    fn save(&mut self, family: Family, table: Table) -> Result<TableState> {
        self.operate(format!("run {}-save", prefix(family)))?;
        Ok(self.table(family, table))
    }

    fn disturbed(&mut self) -> Result<bool> {
        Ok(std::mem::take(&mut self.disturbed))
    }
}

/// One line of a table.
fn run(family: Family, table: Table, state: &mut TableState, line: &str) -> Result<(), String> {
    if let Some(chain) = line.strip_prefix(':') {
        let mut words = chain.split(' ');
        let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if table.builtin_chains().contains(&name) {
            state.chains.entry(name.to_owned()).or_default().policy = Some(policy.to_owned());
        } else if policy == "-" {
            name_fits(name)?;
            state.chains.insert(name.to_owned(), ChainState::default());
        } else {
            return Err("only chains of the kernel have a policy".to_owned());
        }
        return Ok(());
    }
    // Counters before a rule.
    let line = if line.starts_with('[') { line.split_once(' ').map_or("", |(_, rule)| rule) } else { line };
    let mut parts = line.splitn(3, ' ');
    let (command, chain, rest) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let missing = || "No chain/target/match by that name".to_owned();
    match command {
        "-N" => {
            name_fits(chain)?;
            if state.chains.contains_key(chain) {
                return Err("Chain already exists".to_owned());
            }
            state.chains.insert(chain.to_owned(), ChainState::default());
        }
        "-F" => state.chains.get_mut(chain).ok_or_else(missing)?.rules.clear(),
        "-X" => delete(table, state, chain)?,
        "-A" | "-I" | "-D" => {
            let (at, rest) = match rest.split_once(' ') {
                Some((number, rule)) if command == "-I" && number.parse::<usize>().is_ok() => {
                    (number.parse().unwrap_or(1), rule)
                }
                _ => (1, rest),
            };
            let rule = checked(family, table, state, rest)?;
            let rules = &mut state.chains.get_mut(chain).ok_or_else(missing)?.rules;
            match command {
                "-A" => rules.push(rule),
                "-I" if (1..=rules.len() + 1).contains(&at) => rules.insert(at - 1, rule),
                "-I" => return Err("Index of insertion too big".to_owned()),
                _ => {
                    let at = rules.iter().position(|found| *found == rule);
                    rules.remove(at.ok_or("Bad rule (does a matching rule exist in that chain?)")?);
                }
            }
        }
        _ => return Err("unknown command".to_owned()),
    }
    Ok(())
}

fn name_fits(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_LENGTH {
        return Err(format!("Invalid chain name `{name}' ({NAME_LENGTH} chars max)"));
    }
    Ok(())
}

fn delete(table: Table, state: &mut TableState, chain: &str) -> Result<(), String> {
    let rules = &state.chains.get(chain).ok_or("No chain/target/match by that name")?.rules;
    if table.builtin_chains().contains(&chain) {
        return Err("a chain of the kernel cannot be deleted".to_owned());
    }
    if !rules.is_empty() {
        return Err("Directory not empty".to_owned());
    }
    if jumps(state).any(|(_, to)| to == chain) {
        return Err("Too many links".to_owned());
    }
    state.chains.remove(chain);
    Ok(())
}

/// The rule as `iptables-save` will print it.
fn checked(family: Family, table: Table, state: &TableState, text: &str) -> Result<String, String> {
    let rule: Rule = text.parse()?;
    for net in [&rule.source, &rule.destination].into_iter().flatten() {
        if Family::of(&net.value.addr()) != family {
            return Err(format!("host/network `{}' not found", net.value));
        }
    }
    let protocol = rule.protocol.as_ref().filter(|protocol| !protocol.not).map(|protocol| protocol.value.as_str());
    for more in &rule.matches {
        if let Match::Ports(ports) = more
            && protocol != Some(&ports.protocol)
        {
            return Err(format!("-m {0} needs -p {0}", ports.protocol));
        }
    }
    match &rule.target {
        Some(Target::Masquerade { .. } | Target::Dnat(_) | Target::Redirect(_)) if table != Table::Nat => {
            return Err("Invalid argument: only in table nat".to_owned());
        }
        Some(Target::MapMark { .. }) if table != Table::Mangle => {
            return Err("Invalid argument: --map-set only usable from mangle table".to_owned());
        }
        Some(Target::Drop) if table == Table::Nat => {
            return Err(
                "The \"nat\" table is not intended for filtering, the use of DROP is therefore inhibited".to_owned()
            );
        }
        Some(Target::Reject) if table != Table::Filter => {
            return Err("Invalid argument: only in table filter".to_owned());
        }
        Some(Target::Dnat(_) | Target::Redirect(_)) if !matches!(protocol, Some("tcp" | "udp" | "sctp")) => {
            return Err("Need TCP, UDP, SCTP or DCCP with port specification".to_owned());
        }
        Some(Target::Chain(jump)) if !state.chains.contains_key(&jump.chain) => {
            return Err(format!("Chain '{}' does not exist", jump.chain));
        }
        Some(Target::Chain(jump)) if table.builtin_chains().contains(&jump.chain.as_str()) => {
            return Err(format!("chain {} belongs to the kernel", jump.chain));
        }
        _ => {}
    }
    Ok(rule.display(family).to_string())
}

/// From which chain to which.
fn jumps(state: &TableState) -> impl Iterator<Item = (&str, &str)> {
    state.chains.iter().flat_map(|(from, chain)| {
        chain.rules.iter().filter_map(|rule| {
            // Whoever has quotes around what looks like a jump has a comment: the jump is last.
            let (_, to) = rule.rsplit_once("-j ").or_else(|| rule.rsplit_once("-g "))?;
            to.chars().all(|c| c.is_ascii_alphanumeric() || c == '-').then_some((from.as_str(), to))
        })
    })
}

/// The kernel checks a table as a whole: jumps in a circle are refused.
fn check_jumps(state: &TableState) -> Result<(), String> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in jumps(state) {
        next.entry(from).or_default().insert(to);
    }
    // Chains without jumps are taken off until none is left, or only circles are.
    loop {
        let ends: BTreeSet<_> = next.values().flatten().copied().filter(|to| !next.contains_key(to)).collect();
        let before = next.len();
        next.values_mut().for_each(|to| to.retain(|chain| !ends.contains(chain)));
        next.retain(|_, to| !to.is_empty());
        match next.keys().next() {
            None => return Ok(()),
            Some(chain) if next.len() == before => return Err(format!("chain {chain} leads back to itself")),
            Some(_) => {}
        }
    }
}
