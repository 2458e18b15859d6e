//! One family: what should be there, what the kernel holds, and the edits that lead from one to the other.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use podwire_kernel::{
    Result,
    iptables::{Digest, Edit, Iptables, Is, Rule, Table, Target},
    stable_hash,
};
use podwire_model::{Family, Name, Protocol};

use super::{
    found::Found,
    names::{Chain, Shared},
    render::{ServicePort, backends},
    unused::Unused,
};
use crate::{
    mode::{Applied, Settings},
    plan::{Entry, Frontend, Treatment},
};

/// One port of a Service: `namespace/name:port` and its protocol.
type PortKey = (Name, Protocol);

/// A Service port: its frontends now, and what was brought into the kernel for it.
#[derive(Debug, Default)]
struct Port {
    frontends: BTreeSet<Frontend>,
    chains: Vec<Chain>,
    /// Rules in shared chains, as text.
    shared: Vec<(Shared, String)>,
}

/// Services of one family.
#[derive(Debug)]
pub struct FamilyState {
    family: Family,
    treatments: BTreeMap<Frontend, Treatment>,
    cluster_ips: HashSet<IpAddr>,
    ports: BTreeMap<PortKey, Port>,
    /// The chains of Service ports that the kernel holds, with a hash of their rules.
    held: HashMap<Chain, u64>,
    unused: Unused,
    dirty: BTreeSet<PortKey>,
    dirty_ips: BTreeSet<IpAddr>,
    /// The last look found nothing of ours, and nothing was wanted.
    bare: bool,
}

/// Edits around those of the chains of Service ports.
#[derive(Debug, Default)]
pub struct Edits {
    /// Table mangle.
    pub mangle: Vec<Edit>,
    /// Table filter, as long as table nat is as it was: more is refused then, of what table nat lets through.
    pub filter_first: Vec<Edit>,
    /// What chains of Service ports lead to.
    pub nat_first: Vec<Edit>,
    /// What leads to chains of Service ports.
    pub nat_last: Vec<Edit>,
    /// Table filter, once table nat is as it should be: less is refused.
    pub filter_last: Vec<Edit>,
}

impl Edits {
    /// Adds a rule of a shared chain.
    pub fn insert(&mut self, shared: Shared, rule: Rule) {
        let edits = if shared.table() == Table::Nat { &mut self.nat_last } else { &mut self.filter_first };
        edits.push(Edit::Insert { chain: shared.name().to_owned(), rule });
    }

    /// Takes a rule out of a shared chain.
    pub fn delete(&mut self, shared: Shared, rule: Rule) {
        let edits = if shared.table() == Table::Nat { &mut self.nat_last } else { &mut self.filter_last };
        edits.push(Edit::Delete { chain: shared.name().to_owned(), rule });
    }
}

/// What the chains of Service ports became, to be remembered once the kernel has them.
#[derive(Default)]
struct Outcome {
    ports: Vec<(PortKey, Vec<Chain>)>,
    hashes: Vec<(Chain, u64)>,
    /// Ports of which chains that the kernel holds are other ones now.
    changed: BTreeSet<PortKey>,
    gone: BTreeSet<Chain>,
}

impl FamilyState {
    /// Nothing, and nothing known of the kernel.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            treatments: BTreeMap::new(),
            cluster_ips: HashSet::new(),
            ports: BTreeMap::new(),
            held: HashMap::new(),
            unused: Unused::default(),
            dirty: BTreeSet::new(),
            dirty_ips: BTreeSet::new(),
            bare: true,
        }
    }

    /// From now on this happens at a frontend. Returns what happened before.
    pub fn route(&mut self, frontend: Frontend, treatment: Option<Treatment>) -> Option<Treatment> {
        let key = |treatment: &Treatment| (treatment.label.clone(), frontend.protocol);
        let after = treatment.as_ref().map(key);
        let before = match treatment {
            Some(treatment) => self.treatments.insert(frontend, treatment),
            None => self.treatments.remove(&frontend),
        };
        if let Some(key) = before.as_ref().map(key) {
            self.ports.entry(key.clone()).or_default().frontends.remove(&frontend);
            self.dirty.insert(key);
        }
        if let Some(key) = after {
            self.ports.entry(key.clone()).or_default().frontends.insert(frontend);
            self.dirty.insert(key);
        }
        before
    }

    /// From now on an address is a cluster IP, or is none.
    pub fn use_cluster_ip(&mut self, address: IpAddr, used: bool) {
        let changed = if used { self.cluster_ips.insert(address) } else { self.cluster_ips.remove(&address) };
        if changed {
            self.dirty_ips.insert(address);
            let at = |protocol, port| Frontend { entry: Entry::Address(address), protocol, port };
            let here = self.treatments.range(at(Protocol::Tcp, 0)..=at(Protocol::Sctp, u16::MAX));
            self.dirty.extend(here.map(|(frontend, treatment)| (treatment.label.clone(), frontend.protocol)));
        }
    }

    fn is_idle(&self) -> bool {
        self.treatments.is_empty() && self.cluster_ips.is_empty()
    }

    /// Whether the kernel lacks even what all Services need, and it is needed now: then [`FamilyState::sync`] makes it.
    pub fn must_be_made(&self) -> bool {
        self.bare && !self.is_idle()
    }

    /// Brings into the kernel what changed; returns the number of edits. After an error call [`FamilyState::sync`].
    ///
    /// # Errors
    /// What iptables refused.
    pub fn write(&mut self, iptables: &mut impl Iptables, settings: &Settings) -> Result<usize> {
        let (dirty, dirty_ips) = (std::mem::take(&mut self.dirty), std::mem::take(&mut self.dirty_ips));
        let mut edits = Edits::default();
        for key in &dirty {
            let wanted = self.port(key).shared(settings);
            let wanted: Vec<_> = wanted.into_iter().map(|(at, rule)| (at, self.print(&rule), rule)).collect();
            let Some(port) = self.ports.get_mut(key) else { continue };
            for (at, text, rule) in &wanted {
                if !port.shared.iter().any(|had| had.0 == *at && had.1 == *text) {
                    edits.insert(*at, rule.clone());
                }
            }
            for (at, text) in &port.shared {
                if !wanted.iter().any(|rule| rule.0 == *at && rule.1 == *text) {
                    // What was printed can be read.
                    text.parse().into_iter().for_each(|rule| edits.delete(*at, rule));
                }
            }
            port.shared = wanted.into_iter().map(|(at, text, _)| (at, text)).collect();
        }
        for address in dirty_ips {
            let rule = cluster_ip_rule(address);
            if self.cluster_ips.contains(&address) {
                edits.insert(Shared::ClusterIps, rule);
            } else {
                edits.delete(Shared::ClusterIps, rule);
            }
        }
        self.commit((iptables, settings), edits, dirty, BTreeSet::new())
    }

    /// Compares everything with what the kernel holds and writes what differs; returns the number of edits.
    ///
    /// # Errors
    /// What iptables refused; then call this again.
    pub fn sync(&mut self, iptables: &mut impl Iptables, settings: &Settings, applied: &mut Applied) -> Result<usize> {
        let found = Found::read(iptables, self.family)?;
        self.dirty.clear();
        self.dirty_ips.clear();
        self.held = found.own_chains();
        self.unused = Unused::default();
        self.ports.retain(|_, port| !port.frontends.is_empty());
        self.bare = self.is_idle() && !found.has_ours();
        if self.bare {
            return Ok(0);
        }
        self.note_stale(&found, applied);
        let mut edits = Edits::default();
        found.constants(settings, &mut edits);
        let mut wanted = Shared::ALL.map(|shared| (shared, BTreeMap::new()));
        let keys: BTreeSet<PortKey> = self.ports.keys().cloned().collect();
        for key in &keys {
            let rules = self.port(key).shared(settings);
            let texts: Vec<_> = rules.iter().map(|(at, rule)| (*at, self.print(rule))).collect();
            for ((at, text), (_, rule)) in texts.iter().zip(rules) {
                wanted[*at as usize].1.insert(text.clone(), rule);
            }
            self.ports.entry(key.clone()).or_default().shared = texts;
        }
        for address in &self.cluster_ips {
            let rule = cluster_ip_rule(*address);
            wanted[Shared::ClusterIps as usize].1.insert(self.print(&rule), rule);
        }
        for (shared, rules) in wanted {
            found.shared(shared, rules, settings, &mut edits);
        }
        found.jumps(settings, &mut edits);
        let strangers = self.held.keys().copied().collect();
        self.commit((iptables, settings), edits, keys, strangers)
    }

    /// Makes the edits, with those of the chains of the Service ports `dirty` in between. Of the chains `gone` those
    /// are unused now that no port has.
    ///
    /// Chains that are new are there before anything leads to them (docs/adr/0005).
    fn commit(
        &mut self,
        (iptables, settings): (&mut impl Iptables, &Settings),
        edits: Edits,
        dirty: BTreeSet<PortKey>,
        gone: BTreeSet<Chain>,
    ) -> Result<usize> {
        let outcome = RefCell::new(Outcome { gone, ..Outcome::default() });
        let Edits { mangle, filter_first, nat_first, mut nat_last, filter_last } = edits;
        // Rules go in before all others of a chain and count from then on: what they take the place of goes afterwards.
        nat_last.sort_by_key(|edit| matches!(edit, Edit::Delete { .. }));
        let around = mangle.len() + filter_first.len() + nat_first.len() + nat_last.len() + filter_last.len();
        let family = self.family;
        iptables.edit(family, Table::Mangle, &mut mangle.into_iter())?;
        iptables.edit(family, Table::Filter, &mut filter_first.into_iter())?;
        // Chains are rendered when it is their turn: there can be hundreds of thousands.
        let how = (settings, iptables.digest());
        let constants = !nat_first.is_empty();
        let prepare = dirty.into_iter().flat_map(|key| self.new_chains(key, how, &mut outcome.borrow_mut()));
        let barrier = || (constants || !outcome.borrow().hashes.is_empty()).then_some(Edit::Barrier);
        let changed = || std::mem::take(&mut outcome.borrow_mut().changed);
        let switch = std::iter::once_with(changed).flatten();
        let switch = switch.flat_map(|key| self.changed_chains(&key, how, &mut outcome.borrow_mut()));
        let prepare = nat_first.into_iter().chain(prepare).chain(std::iter::once_with(barrier).flatten());
        iptables.edit(family, Table::Nat, &mut prepare.chain(switch).chain(nat_last))?;
        let outcome = outcome.into_inner();
        self.remember(&outcome);
        iptables.edit(family, Table::Filter, &mut filter_last.into_iter())?;
        Ok(around + outcome.hashes.len())
    }

    /// The chains of one Service port that the kernel does not have; takes note of those that are to change.
    fn new_chains(&self, key: PortKey, (settings, digest): (&Settings, Digest), outcome: &mut Outcome) -> Vec<Edit> {
        let chains = self.port(&key).chains(settings);
        let had = self.ports.get(&key).map_or(&[][..], |port| &port.chains);
        outcome.gone.extend(had.iter().filter(|chain| self.held.contains_key(chain)));
        chains.keys().for_each(|chain| {
            outcome.gone.remove(chain);
        });
        let names = chains.keys().copied().collect();
        let mut edits = Vec::new();
        for (chain, rules) in chains {
            let hash = self.hash(&rules, digest);
            match self.held.get(&chain) {
                None => {
                    outcome.hashes.push((chain, hash));
                    edits.push(Edit::Replace { chain: chain.to_string(), rules });
                }
                Some(held) if *held != hash => {
                    outcome.changed.insert(key.clone());
                }
                Some(_) => {}
            }
        }
        outcome.ports.push((key, names));
        edits
    }

    /// The chains of one Service port that the kernel has with other rules.
    fn changed_chains(
        &self,
        key: &PortKey,
        (settings, digest): (&Settings, Digest),
        outcome: &mut Outcome,
    ) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (chain, rules) in self.port(key).chains(settings) {
            let hash = self.hash(&rules, digest);
            if self.held.get(&chain).is_some_and(|held| *held != hash) {
                outcome.hashes.push((chain, hash));
                edits.push(Edit::Replace { chain: chain.to_string(), rules });
            }
        }
        edits
    }

    /// The kernel has it now.
    fn remember(&mut self, outcome: &Outcome) {
        self.unused.changed(outcome.hashes.iter().map(|(chain, _)| chain));
        for (key, chains) in &outcome.ports {
            chains.iter().for_each(|chain| self.unused.remove(chain));
            match self.ports.get_mut(key) {
                Some(port) if port.frontends.is_empty() => {
                    self.ports.remove(key);
                }
                Some(port) => port.chains.clone_from(chains),
                None => {}
            }
        }
        self.held.extend(outcome.hashes.iter().copied());
        self.unused.extend(&outcome.gone);
    }

    /// Removes chains that were unused already at the last call.
    ///
    /// # Errors
    /// What iptables refused; then call [`FamilyState::sync`].
    pub fn tidy(&mut self, iptables: &mut impl Iptables) -> Result<()> {
        let aged = self.unused.grow_older();
        let mut edits = aged.iter().map(|chain| Edit::Remove { chain: chain.to_string() });
        iptables.edit(self.family, Table::Nat, &mut edits)?;
        aged.iter().for_each(|chain| {
            self.held.remove(chain);
        });
        Ok(())
    }

    /// Whether there are chains that nothing leads to.
    pub fn is_untidy(&self) -> bool {
        !self.unused.is_empty()
    }

    fn port<'a>(&'a self, key: &'a PortKey) -> ServicePort<'a> {
        let frontends = self.ports.get(key).into_iter().flat_map(|port| &port.frontends);
        ServicePort {
            label: &key.0,
            protocol: key.1,
            frontends: frontends.filter_map(|frontend| Some((*frontend, self.treatments.get(frontend)?))).collect(),
            cluster_ips: &self.cluster_ips,
        }
    }

    fn hash(&self, rules: &[Rule], digest: Digest) -> u64 {
        hash(rules.iter().map(|rule| digest(self.family, rule)))
    }

    fn print(&self, rule: &Rule) -> String {
        rule.display(self.family).to_string()
    }

    /// UDP flows of what the kernel holds and no longer should, or did not hold and now will.
    fn note_stale(&self, found: &Found, applied: &mut Applied) {
        let mut old = found.udp_backends();
        for (frontend, treatment) in &self.treatments {
            if frontend.protocol == Protocol::Udp {
                let had = old.remove(frontend).unwrap_or_default();
                applied.note_stale(*frontend, &had, &backends(Some(treatment)));
            }
        }
        old.iter().for_each(|(frontend, had)| applied.note_stale(*frontend, had, &[]));
    }
}

/// What comes to table filter with a cluster IP as its destination has a port that no Service has.
fn cluster_ip_rule(address: IpAddr) -> Rule {
    let refuse = Rule::to(Target::Reject).comment("no service has this port");
    Rule { destination: Some(Is::equal(address.into())), ..refuse }
}

/// A hash of the rules of a chain, from the digest of each.
pub fn hash(digests: impl Iterator<Item = u64>) -> u64 {
    stable_hash(digests.flat_map(u64::to_ne_bytes))
}
