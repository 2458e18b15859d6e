//! One reconciler for every backend: desired against actual, then the difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use podwire_kernel::{
    ResultExt,
    route::{Removed, Route as Kernel},
};
use podwire_model::{
    Lease, Name,
    delta::{Delta, Step},
};

use crate::{
    Error,
    backend::Backend,
    kernel::Devices,
    plan::{self, Entry, Key, Site},
};

/// The overlay of one node, of one address family: who the peers are, what the kernel should hold and what it holds.
#[derive(Debug)]
pub struct Overlay {
    backend: Box<dyn Backend>,
    site: Site,
    peers: HashMap<Name, Vec<Entry>>,
    claims: HashMap<Key, BTreeMap<Name, Entry>>,
    delta: Delta<Key, Entry>,
    devices: Devices,
    /// The kernel must be dumped before the next change: at start, and after anything went wrong.
    stale: bool,
}

/// What one [`Overlay::apply`] did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that the kernel carried out.
    pub done: usize,
    /// What it refused. Not empty: call [`Overlay::apply`] again after a pause.
    pub errors: Vec<podwire_kernel::Error>,
}

impl Overlay {
    /// An overlay without peers. Nothing is written before [`Overlay::apply`].
    ///
    /// # Errors
    /// The facts of the site contradict each other.
    pub fn new(backend: Box<dyn Backend>, site: Site) -> Result<Self, Error> {
        site.check()?;
        let mut overlay = Self {
            peers: HashMap::new(),
            claims: HashMap::new(),
            delta: Delta::new(),
            devices: Devices::default(),
            stale: true,
            backend,
            site,
        };
        // The empty name sorts before every node's: no peer can take what this node itself needs.
        overlay.replace("".into(), overlay.backend.local(&overlay.site));
        Ok(overlay)
    }

    /// This node's facts.
    pub const fn site(&self) -> &Site {
        &self.site
    }

    /// What this node publishes.
    pub fn lease(&self) -> Lease {
        self.site.lease(self.backend.as_ref())
    }

    /// The MTU of pods in bytes.
    pub fn mtu(&self) -> u32 {
        self.backend.mtu(&self.site.uplink)
    }

    /// Replaces all peers. This node's own lease may be among them. Returns what is wrong with the peers left out.
    pub fn set_peers(&mut self, leases: impl IntoIterator<Item = Lease>) -> Vec<Error> {
        let mut gone: BTreeSet<Name> = self.peers.keys().filter(|name| !name.is_empty()).cloned().collect();
        let mut errors = Vec::new();
        for lease in leases {
            gone.remove(&lease.node);
            errors.extend(self.set_peer(&lease).err());
        }
        for node in gone {
            self.remove_peer(&node);
        }
        errors
    }

    /// Adds or changes a peer; this node's own lease is ignored.
    ///
    /// # Errors
    /// The lease cannot be used. Whatever the peer had before is dropped: it is no longer true.
    pub fn set_peer(&mut self, lease: &Lease) -> Result<(), Error> {
        if lease.node == self.site.node {
            return Ok(());
        }
        let entries = plan::peer(self.backend.as_ref(), &self.site, lease);
        let (entries, result) = entries.map_or_else(|error| (Vec::new(), Err(error)), |entries| (entries, Ok(())));
        self.replace(lease.node.clone(), entries);
        result
    }

    /// Drops a peer.
    pub fn remove_peer(&mut self, node: &Name) {
        if *node != self.site.node {
            self.replace(node.clone(), Vec::new());
        }
    }

    /// Takes in that something is gone from the kernel, whoever removed it. Returns whether it is missed here: then
    /// [`Overlay::apply`] puts it back.
    pub fn removed(&mut self, what: &Removed) -> bool {
        let reread = match what {
            Removed::Anything => true,
            Removed::Link(index) | Removed::LinkDown(index) => self.devices.contains(*index),
            Removed::Address(_) | Removed::Route(_) | Removed::Neighbour(_) | Removed::Fdb(_) => {
                let Some(key) = self.devices.key_of(what) else { return false };
                // What this overlay removed itself is known to be gone already.
                let missed = self.delta.actual(&key).is_some() && self.delta.desired(&key).is_some();
                self.delta.is_gone(&key);
                if !missed || !matches!(what, Removed::Address(_)) {
                    return missed;
                }
                // With its last IPv4 address a device loses its routes, and the kernel does not say which.
                true
            }
        };
        self.stale |= reread;
        reread
    }

    /// Number of peers that are part of the plan.
    pub fn peer_count(&self) -> usize {
        self.peers.len() - 1
    }

    /// Whether the kernel holds what it should, as far as is known.
    pub fn is_settled(&self) -> bool {
        !self.stale && self.delta.is_settled()
    }

    /// Brings the kernel to what it should hold: dumps it if need be, then creates in the order device, address,
    /// neighbour, FDB entry, route, after removing in the opposite order what should not be there.
    ///
    /// A refused operation does not stop the others, except that nothing is done on a device that could not be made.
    ///
    /// # Errors
    /// The kernel could not be dumped. Refused operations are in the [`Outcome`].
    pub fn apply(&mut self, kernel: &mut dyn Kernel) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        // A device that is made again takes its addresses and entries with it, so the second round starts from a dump.
        for _ in 0..2 {
            if self.stale {
                let delta = &self.delta;
                let wanted = |name: &Name| delta.desired(&Key::Tunnel(name.clone())).is_some();
                let (devices, found) = Devices::dump(kernel, &self.site, wanted)?;
                self.devices = devices;
                self.delta.found(found.into_iter().map(|entry| (entry.key(), entry)));
                self.stale = false;
            }
            self.remove(kernel, &mut outcome);
            let remade = self.create(kernel, &mut outcome);
            self.stale = remade || !outcome.errors.is_empty();
            if !remade {
                break;
            }
        }
        Ok(outcome)
    }

    fn remove(&mut self, kernel: &mut dyn Kernel, outcome: &mut Outcome) {
        let doomed: Vec<Entry> = self
            .delta
            .pending()
            .filter_map(|step| match step {
                Step::Delete(_, entry) => Some(entry.clone()),
                Step::Create(..) | Step::Replace(..) => None,
            })
            .collect();
        for entry in doomed.into_iter().rev() {
            match self.devices.delete(kernel, &entry).or_gone() {
                Ok(()) => {
                    outcome.done += 1;
                    self.delta.is_gone(&entry.key());
                }
                Err(error) => outcome.errors.push(error),
            }
        }
    }

    /// Creates and changes. Returns true, early, when a device was made in place of another.
    fn create(&mut self, kernel: &mut dyn Kernel, outcome: &mut Outcome) -> bool {
        let wanted: Vec<(bool, Entry)> = self
            .delta
            .pending()
            .filter_map(|step| match step {
                Step::Create(_, to) => Some((false, to.clone())),
                Step::Replace(_, _, to) => Some((true, to.clone())),
                Step::Delete(..) => None,
            })
            .collect();
        for (existed, entry) in wanted {
            if self.devices.lacks(&entry) {
                continue;
            }
            match self.devices.put(kernel, &entry) {
                Ok(()) => {
                    outcome.done += 1;
                    let remade = existed && matches!(entry, Entry::Tunnel(_));
                    self.delta.is(entry.key(), entry);
                    if remade {
                        return true;
                    }
                }
                Err(error) => outcome.errors.push(error),
            }
        }
        false
    }

    /// Replaces what `owner` asks for; of several owners of one object, the first by name has it.
    fn replace(&mut self, owner: Name, entries: Vec<Entry>) {
        let keys: BTreeSet<Key> = entries.iter().map(Entry::key).collect();
        for old in self.peers.remove(&owner).into_iter().flatten() {
            let key = old.key();
            if !keys.contains(&key)
                && let Some(claims) = self.claims.get_mut(&key)
            {
                claims.remove(&owner);
                self.award(key);
            }
        }
        for entry in &entries {
            self.claims.entry(entry.key()).or_default().insert(owner.clone(), entry.clone());
            self.award(entry.key());
        }
        if !entries.is_empty() {
            self.peers.insert(owner, entries);
        }
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
