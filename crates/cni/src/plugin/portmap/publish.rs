//! Putting the elements of an attachment into the kernel, and taking them out again.

use std::{net::IpAddr, path::Path};

use podwire_kernel::nftables::{Batch, Element, Nftables};
use podwire_model::Family;

use super::{
    config::{Config, Mapping},
    table::{self, Held, SETS, key_of, keys_of, layout, table, target_of},
};
use crate::{Error, Result, owner, runtime::namespace_is_gone};

/// How often to begin again after somebody else changed what was looked at. Each time somebody got further.
const ATTEMPTS: usize = 8;

/// The table of one family.
pub struct Publisher<'a> {
    pub nftables: &'a mut dyn Nftables,
    pub family: Family,
    /// Where runtimes keep results: they tell whose namespace is gone.
    pub results: &'a Path,
}

impl Publisher<'_> {
    /// Maps the ports of `config` to `target`, in one transaction. What is left of attachments that are gone gives way.
    ///
    /// # Errors
    /// [`Error::TryAgain`] when a port belongs to a container that is still there; nothing was changed then.
    pub fn publish(&mut self, config: &Config, target: IpAddr, owner: &str) -> Result<()> {
        let wanted = table::elements(config, target, owner);
        let mut batch = Batch::new();
        for _ in 0..ATTEMPTS {
            self.add(&mut batch, &wanted);
            match self.nftables.commit(&batch) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_not_found() => batch = layout(self.family),
                Err(error) if error.already_exists() => batch = Batch::new(),
                Err(error) => return Err(error.into()),
            }
            for held in self.in_the_way(&wanted)? {
                let holder = held.1.comment.as_deref().unwrap_or_default();
                if holder == owner {
                    self.delete(&mut batch, &held);
                } else if self.is_stale(&held, target) {
                    self.release_all(&|other| other == holder)?;
                } else {
                    return Err(Error::TryAgain(taken(config, &held)));
                }
            }
        }
        Err(Error::TryAgain(format!("the table {} is changing all the time", table(self.family))))
    }

    /// Takes out what attachments left behind that had `target` before; for a container without mappings.
    pub fn disown(&mut self, target: IpAddr, owner: &str) -> Result<()> {
        let [(containers, key), ..] = keys_of(target);
        match self.get(containers, key)? {
            Some((_, Element { comment: Some(holder), .. })) if &*holder != owner => {
                self.release_all(&|other| other == &*holder)
            }
            _ => Ok(()),
        }
    }

    /// Takes out what `owner` has, without looking at what others have.
    pub fn release(&mut self, mappings: &[&Mapping], owner: &str) -> Result<()> {
        self.retry(|this, batch| {
            let mut targets: Vec<IpAddr> = Vec::new();
            let mut keys: Vec<_> = mappings.iter().map(|mapping| key_of(mapping)).collect();
            while let Some((set, key)) = keys.pop() {
                let Some(held) = this.get(set, key)? else { continue };
                if held.1.comment.as_deref() != Some(owner) {
                    continue;
                }
                if let Some(target) = target_of(this.family, &held).filter(|target| !targets.contains(target)) {
                    targets.push(target);
                    keys.extend(keys_of(target));
                }
                if !has(batch, &held) {
                    this.delete(batch, &held);
                }
            }
            Ok(())
        })
    }

    /// Takes out what `owner` has, if it has something for `target`; for a caller that does not know the mappings.
    pub fn release_if_has(&mut self, target: IpAddr, owner: &str) -> Result<()> {
        let [(containers, key), ..] = keys_of(target);
        match self.get(containers, key)? {
            Some((_, element)) if element.comment.as_deref() == Some(owner) => {
                self.release_all(&|other| other == owner)
            }
            _ => Ok(()),
        }
    }

    /// Takes out what belongs to owners of which `which` says so. Looks at everything.
    pub fn release_all(&mut self, which: &dyn Fn(&str) -> bool) -> Result<()> {
        self.retry(|this, batch| {
            for set in SETS {
                let elements = match this.nftables.elements(&table(this.family), set) {
                    Err(error) if error.is_not_found() => continue,
                    elements => elements?,
                };
                let stale = elements.into_iter().filter(|element| element.comment.as_deref().is_some_and(which));
                stale.for_each(|element| this.delete(batch, &(set, element)));
            }
            Ok(())
        })
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

    fn retry(&mut self, collect: impl Fn(&mut Self, &mut Batch) -> Result<()>) -> Result<()> {
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

    fn in_the_way(&mut self, wanted: &[Held]) -> Result<Vec<Held>> {
        let mut found = Vec::new();
        for (set, element) in wanted {
            found.extend(self.get(set, element.key)?);
        }
        Ok(found)
    }

    fn get(&mut self, set: &'static str, key: podwire_kernel::nftables::Value) -> Result<Option<Held>> {
        match self.nftables.element(&table(self.family), set, &key) {
            Ok(element) => Ok(element.map(|element| (set, element))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn add(&self, batch: &mut Batch, wanted: &[Held]) {
        for (set, element) in wanted {
            batch.add_elements(&table(self.family), *set, vec![element.clone()]);
        }
    }

    fn delete(&self, batch: &mut Batch, (set, element): &Held) {
        batch.delete_elements(&table(self.family), *set, vec![Element::key(element.key)]);
    }

    /// Whether what is in the way belongs to nobody any more: it is about an address that is now another's, or the
    /// runtime's file says that its namespace is gone. (What the runtime says nothing about may be there.)
    fn is_stale(&self, held: &Held, target: IpAddr) -> bool {
        let owner = held.1.comment.as_deref().and_then(owner::parts);
        target_of(self.family, held) == Some(target)
            || owner.is_some_and(|(network, id, ifname)| namespace_is_gone(self.results, network, id, ifname))
    }
}

fn has(batch: &Batch, (set, element): &Held) -> bool {
    use podwire_kernel::nftables::Action::DeleteElements;
    let same = |action: &_| matches!(action, DeleteElements { set: in_set, elements } if **in_set == **set && elements.iter().any(|other| other.key == element.key));
    batch.steps().any(|(_, action)| same(action))
}

fn taken(config: &Config, held: &Held) -> String {
    let mapping = config.mappings.iter().find(|mapping| key_of(mapping) == (held.0, held.1.key));
    let port = mapping.map_or_else(|| "a port".to_owned(), Mapping::name);
    let holder = held.1.comment.as_deref().unwrap_or("somebody unknown");
    format!("host port {port} belongs to {holder}")
}
