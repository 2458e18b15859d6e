use std::{collections::BTreeMap, fmt::Display};

use podwire_model::Name;

use super::{
    Ipset,
    types::{Element, Entry, Found, Set, errors},
};
use crate::{Error, Result};

/// The sets of one network namespace in memory: refuses what the kernel refuses.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    sets: BTreeMap<Name, (Set, BTreeMap<Entry, Option<u32>>)>,
    operations: usize,
    reads: usize,
    written: usize,
    fail_every: Option<usize>,
}

impl Fake {
    /// No sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on lets every `n`-th change fail with EAGAIN, before it changes anything. Zero: none.
    pub fn fail_every(&mut self, n: usize) {
        self.fail_every = Some(n).filter(|n| *n > 0);
    }

    /// How many messages with changes were sent so far, and how many elements were in them.
    pub fn changes(&self) -> (usize, usize) {
        (self.operations, self.written)
    }

    /// How many listings were asked for so far.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// The sets with their entries and the marks of those.
    pub fn table(&self) -> &BTreeMap<Name, (Set, BTreeMap<Entry, Option<u32>>)> {
        &self.sets
    }

    fn step(&mut self, what: impl Display) -> Result<()> {
        self.operations += 1;
        match self.fail_every {
            Some(n) if self.operations.is_multiple_of(n) => Err(Error::refused(what, libc::EAGAIN)),
            _ => Ok(()),
        }
    }

    fn at(&mut self, set: &str, what: impl Display) -> Result<&mut (Set, BTreeMap<Entry, Option<u32>>)> {
        self.sets.get_mut(set).ok_or_else(|| Error::refused(what, libc::ENOENT))
    }
}

impl Ipset for Fake {
    fn sets(&mut self) -> Result<Vec<Found>> {
        self.reads += 1;
        let found = |(set, entries): &(Set, BTreeMap<_, _>)| Found {
            set: set.clone(),
            entries: Some(entries.len() as u32),
            references: 0,
        };
        Ok(self.sets.values().map(found).collect())
    }

    fn entries(&mut self, set: &str) -> Result<Vec<Element>> {
        self.reads += 1;
        let (_, entries) = self.at(set, format_args!("list ipset {set}"))?;
        Ok(entries.iter().map(|(entry, mark)| Element { entry: *entry, mark: *mark }).collect())
    }

    fn create(&mut self, set: &Set) -> Result<()> {
        let what = format_args!("create ipset {} of type {}", set.name, set.kind.name());
        self.step(what)?;
        if !(1..=31).contains(&set.name.len()) {
            return Err(Error::refused(what, errors::PROTOCOL));
        }
        match self.sets.get(&set.name) {
            None => _ = self.sets.insert(set.name.clone(), (set.clone(), BTreeMap::new())),
            Some((old, _)) if old == set => {}
            Some(_) => return Err(Error::refused(what, libc::EEXIST)),
        }
        Ok(())
    }

    fn destroy(&mut self, set: &str) -> Result<()> {
        let what = format_args!("destroy ipset {set}");
        self.step(what)?;
        self.sets.remove(set).map(drop).ok_or_else(|| Error::refused(what, libc::ENOENT))
    }

    fn swap(&mut self, one: &str, other: &str) -> Result<()> {
        let what = format_args!("swap ipsets {one} and {other}");
        self.step(what)?;
        let first = self.at(one, what)?.clone();
        let Some(second) = self.sets.get_mut(other) else {
            return Err(Error::refused(what, errors::EXIST_SETNAME2));
        };
        if (first.0.kind, first.0.family) != (second.0.kind, second.0.family) {
            return Err(Error::refused(what, errors::TYPE_MISMATCH));
        }
        let entries = std::mem::replace(&mut second.1, first.1);
        self.at(one, what)?.1 = entries;
        Ok(())
    }

    fn add(&mut self, set: &str, elements: &[Element]) -> Result<()> {
        if elements.is_empty() {
            return Ok(());
        }
        let what = format_args!("add {} entries to ipset {set}", elements.len());
        self.step(what)?;
        self.written += elements.len();
        let (set, entries) = self.at(set, what)?;
        for element in elements {
            if !set.fits(&element.entry) || element.mark.is_some() && !set.marks {
                return Err(Error::refused(what, errors::PROTOCOL));
            }
            entries.insert(element.entry, element.mark.filter(|mark| *mark != 0));
        }
        Ok(())
    }

    fn remove(&mut self, set: &str, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let what = format_args!("remove {} entries from ipset {set}", entries.len());
        self.step(what)?;
        self.written += entries.len();
        let (set, held) = self.at(set, what)?;
        for entry in entries {
            if !set.fits(entry) {
                return Err(Error::refused(what, errors::PROTOCOL));
            }
            held.remove(entry);
        }
        Ok(())
    }
}
