//! What the kernel holds, as it was read, and what of it is missing or too much.

use std::collections::{BTreeMap, HashMap, HashSet};

use podwire_kernel::{
    Result,
    iptables::{Digest, Edit, Iptables, Listing, Match, Rule, Table, Target},
};
use podwire_model::{Family, Protocol};

use super::{
    layout,
    names::{Chain, Shared},
    state::{Edits, hash},
};
use crate::{
    mode::Settings,
    plan::{Backend, Entry, Frontend},
};

/// The tables of one family.
pub struct Found {
    family: Family,
    digest: Digest,
    nat: Listing,
    filter: Listing,
    mangle: Listing,
}

impl Found {
    /// Reads them.
    ///
    /// # Errors
    /// As [`Iptables::list`].
    pub fn read(iptables: &mut impl Iptables, family: Family) -> Result<Self> {
        let digest = iptables.digest();
        let mut list = |table| iptables.list(family, table);
        Ok(Self { family, digest, nat: list(Table::Nat)?, filter: list(Table::Filter)?, mangle: list(Table::Mangle)? })
    }

    fn table(&self, table: Table) -> &Listing {
        match table {
            Table::Nat => &self.nat,
            Table::Mangle => &self.mangle,
            _ => &self.filter,
        }
    }

    fn chain(&self, table: Table, chain: &str) -> Option<&Vec<u64>> {
        self.table(table).chains.get(chain)
    }

    /// Whether this mode, or kube-proxy, was here.
    pub fn has_ours(&self) -> bool {
        self.nat.chains.keys().any(|name| Chain::parse(name).is_some() || name == Shared::Addresses.name())
            || self.filter.chains.contains_key(Shared::Unserved.name())
            || self.mangle.chains.contains_key(layout::CANARY)
    }

    /// The chains of Service ports and hashes of their rules.
    pub fn own_chains(&self) -> HashMap<Chain, u64> {
        let chains = self.nat.chains.iter();
        chains.filter_map(|(name, digests)| Some((Chain::parse(name)?, hash(digests.iter().copied())))).collect()
    }

    /// Makes right the chains that are always the same.
    pub fn constants(&self, settings: &Settings, edits: &mut Edits) {
        for (table, chain, rules) in layout::constant(settings) {
            if self.chain(table, chain) != Some(&self.digests(&rules)) {
                let edit = Edit::Replace { chain: chain.to_owned(), rules };
                match table {
                    Table::Nat => edits.nat_first.push(edit),
                    Table::Mangle => edits.mangle.push(edit),
                    _ => edits.filter_first.push(edit),
                }
            }
        }
        if self.family == Family::V4
            && layout::answers_at_localhost(settings)
            && let Some(guard) = layout::localhost_guard()
        {
            let chain = layout::FIREWALL.to_owned();
            match self.chain(Table::Filter, &chain) {
                // Kubelet may have rules there as well.
                Some(found) if found.contains(&self.digest(&guard)) => {}
                Some(_) => edits.filter_first.push(Edit::Insert { chain, rule: guard }),
                None => edits.filter_first.push(Edit::Replace { chain, rules: vec![guard] }),
            }
        }
    }

    /// Makes right a chain that all Services have rules in: by single rules if only some are missing.
    pub fn shared(&self, shared: Shared, wanted: BTreeMap<String, Rule>, settings: &Settings, edits: &mut Edits) {
        let chain = shared.name();
        let tail = layout::tail(shared, self.family, settings);
        let found = self.chain(shared.table(), chain);
        if let Some(missing) = found.and_then(|found| self.missing(found, &wanted, &tail)) {
            missing.into_iter().for_each(|rule| edits.insert(shared, rule));
            return;
        }
        let edit = Edit::Replace { chain: chain.to_owned(), rules: wanted.into_values().chain(tail).collect() };
        if shared.table() == Table::Nat { edits.nat_last.push(edit) } else { edits.filter_first.push(edit) }
    }

    /// The rules to insert, unless the chain has to be written anew: its last rules are not as they should be, or it
    /// holds a rule twice or one that nobody wants.
    fn missing(&self, found: &[u64], wanted: &BTreeMap<String, Rule>, tail: &[Rule]) -> Option<Vec<Rule>> {
        let found = found.strip_suffix(self.digests(tail).as_slice())?;
        let held: HashSet<u64> = found.iter().copied().collect();
        let missing: Vec<_> = wanted.values().filter(|rule| !held.contains(&self.digest(rule))).cloned().collect();
        (missing.len() + found.len() == wanted.len() && held.len() == found.len()).then_some(missing)
    }

    /// Inserts the missing jumps from the kernel's chains.
    pub fn jumps(&self, settings: &Settings, edits: &mut Edits) {
        // Each becomes the first: the last one goes in first.
        for (table, chain, rule) in layout::jumps(self.family, settings).into_iter().rev() {
            if !self.chain(table, chain).is_some_and(|found| found.contains(&self.digest(&rule))) {
                let edit = Edit::Insert { chain: chain.to_owned(), rule };
                if table == Table::Nat { edits.nat_last.push(edit) } else { edits.filter_first.push(edit) }
            }
        }
    }

    /// Where UDP frontends lead. A Service port's endpoints are told by the comment that all its rules have.
    pub fn udp_backends(&self) -> HashMap<Frontend, Vec<Backend>> {
        let mut backends: HashMap<&str, Vec<Backend>> = HashMap::new();
        for (_, rule) in &self.nat.udp {
            if let Some(Target::Dnat(to)) = &rule.target
                && let Ok(to) = to.parse::<std::net::SocketAddr>()
            {
                let backend = Backend { address: to.ip(), port: to.port() };
                backends.entry(label(rule)).or_default().push(backend);
            }
        }
        let shared = |chain: &str| [Shared::Addresses, Shared::NodePorts].iter().any(|shared| shared.name() == chain);
        let rules = self.nat.udp.iter().filter(|(chain, _)| shared(chain));
        rules
            .filter_map(|(chain, rule)| {
                let frontend = self.frontend(rule, chain == Shared::NodePorts.name())?;
                Some((frontend, backends.get(label(rule)).cloned().unwrap_or_default()))
            })
            .collect()
    }

    fn frontend(&self, rule: &Rule, node_port: bool) -> Option<Frontend> {
        let port = rule.matches.iter().find_map(|more| match more {
            Match::Ports(ports) => Some(ports.destination?.value.0),
            _ => None,
        })?;
        let entry = match rule.destination {
            Some(net) => Entry::Address(net.value.addr()),
            None if node_port => Entry::NodePort(self.family),
            None => return None,
        };
        Some(Frontend { entry, protocol: Protocol::Udp, port })
    }

    fn digest(&self, rule: &Rule) -> u64 {
        (self.digest)(self.family, rule)
    }

    fn digests(&self, rules: &[Rule]) -> Vec<u64> {
        rules.iter().map(|rule| self.digest(rule)).collect()
    }
}

/// The Service port that a rule is for: its comment's first word.
fn label(rule: &Rule) -> &str {
    let comment = rule.matches.iter().find_map(|more| match more {
        Match::Comment(text) => text.split(' ').next(),
        _ => None,
    });
    comment.unwrap_or_default()
}

/// The edits that remove everything of ours in a family, each table's: that of nat first.
///
/// # Errors
/// As [`Iptables::save`].
pub fn removal(iptables: &mut impl Iptables, family: Family) -> Result<Vec<(Table, Vec<Edit>)>> {
    let kubelet = iptables.save(family, Table::Mangle)?.chains.contains_key("KUBE-KUBELET-CANARY");
    let is_ours = |name: &str| {
        Chain::parse(name).is_some()
            || layout::NAMES.contains(&name)
            || (name == layout::FIREWALL && !kubelet)
            || Shared::ALL.iter().any(|shared| shared.name() == name)
    };
    let mut removal = Vec::new();
    for table in [Table::Nat, Table::Filter, Table::Mangle] {
        let chains = iptables.save(family, table)?.chains;
        let mut edits = Vec::new();
        for (name, state) in chains.iter().filter(|(name, _)| !is_ours(name)) {
            for rule in state.rules.iter().filter_map(|text| text.parse::<Rule>().ok()) {
                if rule.chain().is_some_and(|to| is_ours(to) && chains.contains_key(to)) {
                    edits.push(Edit::Delete { chain: name.clone(), rule });
                }
            }
        }
        let ours: Vec<&String> = chains.keys().filter(|name| is_ours(name)).collect();
        // Emptied first, whichever leads to which.
        edits.extend(ours.iter().map(|name| Edit::Replace { chain: (*name).clone(), rules: Vec::new() }));
        edits.extend(ours.iter().map(|name| Edit::Remove { chain: (*name).clone() }));
        removal.push((table, edits));
    }
    Ok(removal)
}
