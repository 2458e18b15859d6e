//! Putting the elements of an attachment into the kernel, and taking them out again.

use std::{net::IpAddr, path::Path};

use podwire_kernel::nftables::{Batch, Element, Nftables};
use podwire_model::Family;

use super::{
    config::{Config, Mapping},
    table::{self, SETS, key_of, keys_of, layout, table, target_of},
};
use crate::{
    Error, Result,
    elements::{ATTEMPTS, Elements, Held},
    owner,
    runtime::namespace_is_gone,
};

/// The table of one family.
pub struct Publisher<'a> {
    pub elements: Elements<'a>,
    family: Family,
    /// Where runtimes keep results: they tell whose namespace is gone.
    results: &'a Path,
}

impl<'a> Publisher<'a> {
    pub fn new(nftables: &'a mut dyn Nftables, family: Family, results: &'a Path) -> Self {
        Self { elements: Elements { nftables, table: table(family), sets: &SETS }, family, results }
    }

    /// Maps the ports of `config` to `target`, in one transaction. What is left of attachments that are gone gives way.
    ///
    /// # Errors
    /// [`Error::TryAgain`] when a port belongs to a container that is still there; nothing was changed then.
    pub fn publish(&mut self, config: &Config, target: IpAddr, owner: &str) -> Result<()> {
        let wanted = table::elements(config, target, owner);
        let mut batch = Batch::new();
        for _ in 0..ATTEMPTS {
            self.elements.add(&mut batch, &wanted);
            match self.elements.nftables.commit(&batch) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_not_found() => batch = layout(self.family),
                Err(error) if error.already_exists() => batch = Batch::new(),
                Err(error) => return Err(error.into()),
            }
            for (set, element) in &wanted {
                let Some(held) = self.elements.get(set, element.key)? else { continue };
                let holder = held.1.comment.as_deref().unwrap_or_default();
                if holder == owner {
                    self.elements.delete(&mut batch, &held);
                } else if self.is_stale(&held, target) {
                    self.elements.release_all(&|other| other == holder)?;
                } else {
                    return Err(Error::TryAgain(taken(config, &held)));
                }
            }
        }
        Err(Error::TryAgain(format!("the table {} is changing all the time", self.elements.table)))
    }

    /// Takes out what attachments left behind that had `target` before; for a container without mappings.
    pub fn disown(&mut self, target: IpAddr, owner: &str) -> Result<()> {
        let [(containers, key), ..] = keys_of(target);
        match self.elements.get(containers, key)? {
            Some((_, Element { comment: Some(holder), .. })) if &*holder != owner => {
                self.elements.release_all(&|other| other == &*holder)
            }
            _ => Ok(()),
        }
    }

    /// Takes out what `owner` has, without looking at what others have.
    pub fn release(&mut self, mappings: &[&Mapping], owner: &str) -> Result<()> {
        let family = self.family;
        self.elements.retry(|elements, batch| {
            let mut targets: Vec<IpAddr> = Vec::new();
            let mut keys: Vec<_> = mappings.iter().map(|mapping| key_of(mapping)).collect();
            keys.sort();
            keys.dedup();
            while let Some((set, key)) = keys.pop() {
                let Some(held) = elements.get(set, key)? else { continue };
                if held.1.comment.as_deref() != Some(owner) {
                    continue;
                }
                if let Some(target) = target_of(family, &held).filter(|target| !targets.contains(target)) {
                    targets.push(target);
                    keys.extend(keys_of(target));
                }
                elements.delete(batch, &held);
            }
            Ok(())
        })
    }

    /// Takes out what `owner` has, if it has something for `target`; for a caller that does not know the mappings.
    pub fn release_if_has(&mut self, target: IpAddr, owner: &str) -> Result<()> {
        let [(containers, key), ..] = keys_of(target);
        self.elements.release_if_has(containers, key, owner)
    }

    /// Whether what is in the way belongs to nobody any more: it is about an address that is now another's, or the
    /// runtime's file says that its namespace is gone. (What the runtime says nothing about may be there.)
    fn is_stale(&self, held: &Held, target: IpAddr) -> bool {
        let owner = held.1.comment.as_deref().and_then(owner::parts);
        target_of(self.family, held) == Some(target)
            || owner.is_some_and(|(network, id, ifname)| namespace_is_gone(self.results, network, id, ifname))
    }
}

fn taken(config: &Config, held: &Held) -> String {
    let mapping = config.mappings.iter().find(|mapping| key_of(mapping) == (held.0, held.1.key));
    let port = mapping.map_or_else(|| "a port".to_owned(), Mapping::name);
    let holder = held.1.comment.as_deref().unwrap_or("somebody unknown");
    format!("host port {port} belongs to {holder}")
}
