//! An nf_tables for tests that refuses what the kernel refuses.

use std::collections::BTreeMap;

use podwire_model::Name;

use super::{
    Action, Batch, Chain, Element, Expr, Field, Mapped, Nftables, Rule, RuleInfo, Set, SetData, SetInfo, SetKind,
    Table, TableInfo, Value, Verdict, encode::expressions,
};
use crate::{Error, Result};

/// A chain and its rules, each with its handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// The chain.
    pub chain: Chain,
    /// The rules in order.
    pub rules: Vec<(u64, Rule)>,
}

/// A set or map and its elements by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetState {
    /// The set.
    pub set: Set,
    /// The elements.
    pub elements: BTreeMap<Value, Element>,
}

/// What is in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// The comment of its first creation.
    pub comment: Option<String>,
    /// Chains by name.
    pub chains: BTreeMap<Name, ChainState>,
    /// Sets and maps by name.
    pub sets: BTreeMap<Name, SetState>,
}

impl TableState {
    /// How many rules there are in all chains.
    pub fn rule_count(&self) -> usize {
        self.chains.values().map(|chain| chain.rules.len()).sum()
    }
}

/// Everything in the fake kernel.
pub type Ruleset = BTreeMap<Table, TableState>;

/// Holds a ruleset in memory and refuses, with the kernel's error numbers, transactions that refer to what does not
/// exist (ENOENT), delete what is in use (EBUSY), add an element twice (EEXIST), overflow a set (ENFILE), or have keys
/// or data of the wrong length (EINVAL). A refused transaction changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    ruleset: Ruleset,
    next_handle: u64,
    random: u64,
    fail_one_in: Option<u64>,
    commits: Vec<Batch>,
    /// Somebody else changed the ruleset.
    touched: bool,
    is_old: bool,
    listed: Vec<String>,
}

impl Fake {
    /// An empty ruleset.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one in `n` operations (commits and listings) fail with ENOBUFS and do nothing: at random, but the same
    /// ones in every run.
    #[must_use]
    pub fn failing_one_in(mut self, n: u64) -> Self {
        self.fail_one_in = Some(n);
        self
    }

    /// Does not tell how many elements a set has, as older kernels do not.
    #[must_use]
    pub fn old(mut self) -> Self {
        self.is_old = true;
        self
    }

    /// Ends the failures.
    pub fn heal(&mut self) {
        self.fail_one_in = None;
    }

    /// The state.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Mutable access to the state, to play an administrator who changes things by hand.
    pub fn ruleset_mut(&mut self) -> &mut Ruleset {
        self.touched = true;
        &mut self.ruleset
    }

    /// The transactions that were committed, oldest first; empties the list.
    pub fn take_commits(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.commits)
    }

    /// The sets of which all elements were asked for, in order; empties the list.
    pub fn take_listed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.listed)
    }

    fn operate(&mut self, what: &str) -> Result<()> {
        let Some(n) = self.fail_one_in else { return Ok(()) };
        // Knuth's linear congruential generator; its high bits are the good ones.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (self.random >> 33).is_multiple_of(n) { Err(Error::refused(what, libc::ENOBUFS)) } else { Ok(()) }
    }

    fn table(&mut self, table: &Table, what: &str) -> Result<&TableState> {
        self.operate(what)?;
        self.ruleset.get(table).ok_or_else(|| Error::refused(format_args!("{what} of {table}"), libc::ENOENT))
    }
}

impl Nftables for Fake {
    fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.operate("change nftables")?;
        let mut next = self.ruleset.clone();
        let mut handle = self.next_handle;
        for (table, action) in &batch.steps {
            handle += 1;
            act(&mut next, table, action, handle)
                .map_err(|errno| Error::refused(format_args!("{action} in nftables table {table}"), errno))?;
        }
        self.ruleset = next;
        self.next_handle = handle;
        self.commits.push(batch.clone());
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<TableInfo>> {
        self.operate("list nftables tables")?;
        let info =
            |(table, state): (&Table, &TableState)| TableInfo { table: table.clone(), comment: state.comment.clone() };
        Ok(self.ruleset.iter().map(info).collect())
    }

    fn chains(&mut self, table: &Table) -> Result<Vec<Chain>> {
        let state = self.table(table, "list chains")?;
        Ok(state.chains.values().map(|chain| chain.chain.clone()).collect())
    }

    fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>> {
        let state = self.table(table, "list rules")?;
        let rules = state.chains.iter().flat_map(|(name, chain)| {
            chain.rules.iter().map(|(handle, rule)| RuleInfo {
                chain: name.clone(),
                handle: *handle,
                comment: rule.comment.clone(),
                expressions: rule.expressions.iter().map(|expr| expr.name().to_owned()).collect(),
                encoded: expressions(rule),
            })
        });
        Ok(rules.collect())
    }

    fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let is_old = self.is_old;
        let state = self.table(table, "list sets")?;
        let info = |state: &SetState| SetInfo {
            name: state.set.name.clone(),
            size: state.set.size,
            count: (!is_old).then_some(state.elements.len() as u32),
            comment: state.set.comment.clone(),
        };
        Ok(state.sets.values().map(info).collect())
    }

    fn each_element(&mut self, table: &Table, set: &str, each: &mut dyn FnMut(Element)) -> Result<()> {
        self.listed.push(set.to_owned());
        let state = self.table(table, "list elements")?;
        let set = state.sets.get(set).ok_or_else(|| Error::refused(format_args!("list set {set}"), libc::ENOENT))?;
        set.elements.values().cloned().for_each(each);
        Ok(())
    }

    fn elements_at(&mut self, table: &Table, set: &str, keys: &[Value]) -> Result<Option<Vec<Element>>> {
        let state = self.table(table, "get elements")?;
        let set = state.sets.get(set).ok_or_else(|| Error::refused(format_args!("look into {set}"), libc::ENOENT))?;
        Ok(keys.iter().map(|key| set.elements.get(key).cloned()).collect())
    }

    fn changed_by_others(&mut self, _: &[Table]) -> Result<bool> {
        self.operate("ask for changes")?;
        Ok(std::mem::take(&mut self.touched))
    }
}

type Errno = i32;

fn act(ruleset: &mut Ruleset, table: &Table, action: &Action, handle: u64) -> Result<(), Errno> {
    if let Action::AddTable { comment } = action {
        let fresh = || TableState { comment: comment.clone(), ..TableState::default() };
        ruleset.entry(table.clone()).or_insert_with(fresh);
        return Ok(());
    }
    let state = ruleset.get_mut(table).ok_or(libc::ENOENT)?;
    match action {
        Action::AddTable { .. } => {}
        Action::DeleteTable => {
            ruleset.remove(table);
        }
        Action::AddChain(chain) => {
            let fresh = ChainState { chain: chain.clone(), rules: Vec::new() };
            state.chains.entry(chain.name.clone()).or_insert(fresh);
        }
        Action::FlushChain(chain) => state.chains.get_mut(chain).ok_or(libc::ENOENT)?.rules.clear(),
        Action::DeleteChain(chain) => delete_chain(state, chain)?,
        Action::AddRule { chain, rule } => add_rule(state, chain, rule, handle)?,
        Action::DeleteRule { chain, handle } => {
            let rules = &mut state.chains.get_mut(chain).ok_or(libc::ENOENT)?.rules;
            let at = rules.iter().position(|(found, _)| found == handle).ok_or(libc::ENOENT)?;
            rules.remove(at);
        }
        Action::AddSet(set) => add_set(state, set)?,
        Action::DeleteSet(set) => {
            let used = rules(state).any(|rule| rule.expressions.iter().any(|expr| expr.set() == Some(set)));
            if used {
                return Err(libc::EBUSY);
            }
            state.sets.remove(set).ok_or(libc::ENOENT)?;
        }
        Action::AddElements { set, elements } => add_elements(state, set, elements)?,
        Action::DeleteElements { set, elements } => {
            let set = state.sets.get_mut(set).ok_or(libc::ENOENT)?;
            for element in elements {
                set.elements.remove(&element.key).ok_or(libc::ENOENT)?;
            }
        }
    }
    Ok(())
}

fn rules(state: &TableState) -> impl Iterator<Item = &Rule> {
    state.chains.values().flat_map(|chain| chain.rules.iter().map(|(_, rule)| rule))
}

fn delete_chain(state: &mut TableState, chain: &Name) -> Result<(), Errno> {
    if !state.chains.contains_key(chain) {
        return Err(libc::ENOENT);
    }
    let by_rule = rules(state).flat_map(|rule| &rule.expressions).any(|expr| match expr {
        Expr::Verdict(verdict) => verdict.chain() == Some(chain),
        _ => false,
    });
    let by_element = state.sets.values().flat_map(|set| set.elements.values()).any(|element| match &element.data {
        Mapped::Verdict(verdict) => verdict.chain() == Some(chain),
        _ => false,
    });
    if by_rule || by_element {
        return Err(libc::EBUSY);
    }
    state.chains.remove(chain);
    Ok(())
}

fn add_rule(state: &mut TableState, chain: &Name, rule: &Rule, handle: u64) -> Result<(), Errno> {
    for expr in &rule.expressions {
        if let Expr::Verdict(verdict) = expr {
            known_target(state, verdict)?;
        } else if let Some(set) = expr.set() {
            fits(expr, &state.sets.get(set).ok_or(libc::ENOENT)?.set)?;
        }
    }
    state.chains.get_mut(chain).ok_or(libc::ENOENT)?.rules.push((handle, rule.clone()));
    Ok(())
}

/// Whether a set is one that the expression may use.
fn fits(expr: &Expr, set: &Set) -> Result<(), Errno> {
    let is_verdict = set.data == SetData::Verdict;
    match expr {
        Expr::InSet { .. } if set.data != SetData::None => Err(libc::EINVAL),
        Expr::VerdictMap { .. } if !is_verdict => Err(libc::EINVAL),
        Expr::Map { .. } | Expr::Update { .. } | Expr::Remove { .. } if is_verdict || set.data == SetData::None => {
            Err(libc::EINVAL)
        }
        Expr::Update { .. } | Expr::Remove { .. } if set.kind != SetKind::Dynamic => Err(libc::EOPNOTSUPP),
        _ => Ok(()),
    }
}

fn known_target(state: &TableState, verdict: &Verdict) -> Result<(), Errno> {
    match verdict.chain() {
        None => Ok(()),
        Some(chain) => match state.chains.get(chain) {
            None => Err(libc::ENOENT),
            Some(target) if target.chain.base.is_some() => Err(libc::EOPNOTSUPP),
            Some(_) => Ok(()),
        },
    }
}

fn add_set(state: &mut TableState, set: &Set) -> Result<(), Errno> {
    match state.sets.get_mut(&set.name) {
        // Rules could fill the kernel's memory.
        None if set.kind == SetKind::Dynamic && set.size.is_none() => return Err(libc::EINVAL),
        None => {
            state.sets.insert(set.name.clone(), SetState { set: set.clone(), elements: BTreeMap::new() });
        }
        Some(existing)
            if (&existing.set.key, &existing.set.data, existing.set.kind) != (&set.key, &set.data, set.kind) =>
        {
            return Err(libc::EEXIST);
        }
        Some(existing) => existing.set.size = existing.set.size.max(set.size),
    }
    Ok(())
}

/// Whether two ranges have a key in common: they do in every field.
fn overlap(fields: &[Field], a: &Element, b: &Element) -> bool {
    let (Some(a_end), Some(b_end)) = (a.end, b.end) else { return false };
    let split = |value: Value| value.split(fields).unwrap_or_default();
    let (a, a_end, b, b_end) = (split(a.key), split(a_end), split(b.key), split(b_end));
    let ends = a_end.iter().zip(&b_end);
    a.iter().zip(&b).zip(ends).all(|((a, b), (a_end, b_end))| a <= b_end && b <= a_end)
}

fn add_elements(state: &mut TableState, set: &Name, elements: &[Element]) -> Result<(), Errno> {
    for element in elements {
        if let Mapped::Verdict(verdict) = &element.data {
            known_target(state, verdict)?;
        }
    }
    let SetState { set, elements: held } = state.sets.get_mut(set).ok_or(libc::ENOENT)?;
    for element in elements {
        let data_fits = match (&set.data, &element.data) {
            (SetData::None, Mapped::Nothing) | (SetData::Verdict, Mapped::Verdict(_)) => true,
            (SetData::Fields(fields), Mapped::Value(value)) => value.as_bytes().len() == Field::total(fields),
            _ => false,
        };
        let ends = element.end.iter().all(|end| end.as_bytes().len() == Field::total(&set.key));
        let ends_fit = ends && element.end.is_some() == (set.kind == SetKind::Intervals);
        if !data_fits || !ends_fit || element.key.as_bytes().len() != Field::total(&set.key) {
            return Err(libc::EINVAL);
        }
        let overlaps = element.end.is_some() && held.values().any(|other| overlap(&set.key, other, element));
        if overlaps || held.contains_key(&element.key) {
            return Err(libc::EEXIST);
        }
        if set.size.is_some_and(|size| held.len() >= size as usize) {
            return Err(libc::ENFILE);
        }
        held.insert(element.key, element.clone());
    }
    Ok(())
}
