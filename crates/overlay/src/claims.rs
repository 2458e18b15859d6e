//! Who asks for what: several peers may ask for the same object, and the first by name has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use podwire_model::{Name, delta::Delta};

use crate::plan::{Entry, Key, Tunnel};

/// What every owner asks for, and what of it there is.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    owners: HashMap<Name, Vec<Entry>>,
    claims: BTreeMap<Key, BTreeMap<Name, Entry>>,
    pub(crate) delta: Delta<Key, Entry>,
}

impl Claims {
    /// Replaces what `owner` asks for.
    pub(crate) fn replace(&mut self, owner: &Name, entries: Vec<Entry>) {
        let keys: BTreeSet<Key> = entries.iter().map(Entry::key).collect();
        for old in self.owners.remove(owner).into_iter().flatten() {
            let key = old.key();
            if !keys.contains(&key)
                && let Some(claims) = self.claims.get_mut(&key)
            {
                claims.remove(owner);
                self.award(key);
            }
        }
        for entry in &entries {
            self.claims.entry(entry.key()).or_default().insert(owner.clone(), entry.clone());
            self.award(entry.key());
        }
        if !entries.is_empty() {
            self.owners.insert(owner.clone(), entries);
        }
    }

    /// The tunnel devices that anyone asks for.
    pub(crate) fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        // Their keys sort first.
        let tunnels = self.claims.iter().take_while(|(key, _)| matches!(key, Key::Tunnel(_)));
        tunnels.filter_map(|(_, claims)| match claims.values().next() {
            Some(Entry::Tunnel(tunnel)) => Some(tunnel),
            _ => None,
        })
    }

    /// Whether anyone asks for a tunnel device of this name.
    pub(crate) fn wants_tunnel(&self, device: &Name) -> bool {
        self.tunnels().any(|tunnel| tunnel.device == *device)
    }

    fn award(&mut self, key: Key) {
        match self.claims.get(&key).and_then(|claims| claims.values().next()) {
            Some(entry) => self.delta.want(key, entry.clone()),
            None => {
                self.claims.remove(&key);
                self.delta.unwant(&key);
            }
        }
    }
}
