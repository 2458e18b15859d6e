//! Elements of nftables sets that carry their owner as a comment (see [`crate::owner`]): what plugins share that keep
//! one element a container in a table whose rules never change.

use podwire_kernel::nftables::{Batch, Element, Nftables, Table, Value};

use crate::Result;

/// How often to begin again after somebody else changed what was looked at. Each time somebody got further.
pub const ATTEMPTS: usize = 8;

/// An element and the set that it is in.
pub type Held = (&'static str, Element);

/// The sets of one table.
pub struct Elements<'a> {
    pub nftables: &'a mut dyn Nftables,
    pub table: Table,
    pub sets: &'static [&'static str],
}

impl Elements<'_> {
    /// The element with this key; none where there is no such set or table either.
    pub fn get(&mut self, set: &'static str, key: Value) -> Result<Option<Held>> {
        match self.nftables.element(&self.table, set, &key) {
            Ok(element) => Ok(element.map(|element| (set, element))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Which elements of `wanted` are not there, or not as wanted.
    pub fn missing<'b>(&mut self, wanted: &'b [Held]) -> Result<Vec<&'b Held>> {
        let mut missing = Vec::new();
        for held in wanted {
            if self.get(held.0, held.1.key)?.as_ref() != Some(held) {
                missing.push(held);
            }
        }
        Ok(missing)
    }

    /// Takes out what belongs to owners of which `which` says so. Looks at everything.
    pub fn release_all(&mut self, which: &dyn Fn(&str) -> bool) -> Result<()> {
        self.retry(|this, batch| {
            for set in this.sets {
                let elements = match this.nftables.elements(&this.table, set) {
                    Err(error) if error.is_not_found() => continue,
                    elements => elements?,
                };
                let stale = elements.into_iter().filter(|element| element.comment.as_deref().is_some_and(which));
                stale.for_each(|element| this.delete(batch, &(set, element)));
            }
            Ok(())
        })
    }

    /// Takes out what `owner` has, if the element with this key is one of its own.
    pub fn release_if_has(&mut self, set: &'static str, key: Value, owner: &str) -> Result<()> {
        match self.get(set, key)? {
            Some((_, element)) if element.comment.as_deref() == Some(owner) => {
                self.release_all(&|other| other == owner)
            }
            _ => Ok(()),
        }
    }

    /// Collects a transaction and commits it; once more where something of it has gone meanwhile.
    pub fn retry(&mut self, collect: impl Fn(&mut Self, &mut Batch) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            let mut batch = Batch::new();
            collect(self, &mut batch)?;
            result = self.nftables.commit(&batch);
            if !result.as_ref().is_err_and(podwire_kernel::Error::is_not_found) {
                break;
            }
        }
        Ok(result?)
    }

    /// Appends the additions to `batch`.
    pub fn add(&self, batch: &mut Batch, wanted: &[Held]) {
        for (set, element) in wanted {
            batch.add_elements(&self.table, *set, vec![element.clone()]);
        }
    }

    /// Appends the deletion to `batch`.
    pub fn delete(&self, batch: &mut Batch, (set, element): &Held) {
        batch.delete_elements(&self.table, *set, vec![Element::key(element.key)]);
    }
}
