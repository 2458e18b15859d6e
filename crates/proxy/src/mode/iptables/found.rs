//! What the kernel holds, as it was read, and what of it is missing or too much.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use podwire_kernel::{
    Result,
    iptables::{Edit, Iptables, Match, Rule, Table, TableState, Target},
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
    nat: TableState,
    filter: TableState,
    mangle: TableState,
}

impl Found {
    /// Reads them.
    ///
    /// # Errors
    /// As [`Iptables::save`].
    pub fn read(iptables: &mut impl Iptables, family: Family) -> Result<Self> {
        let mut save = |table| iptables.save(family, table);
        Ok(Self { family, nat: save(Table::Nat)?, filter: save(Table::Filter)?, mangle: save(Table::Mangle)? })
    }

    fn table(&self, table: Table) -> &TableState {
        match table {
            Table::Nat => &self.nat,
            Table::Mangle => &self.mangle,
            _ => &self.filter,
        }
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
        chains.filter_map(|(name, state)| Some((Chain::parse(name)?, hash(state.rules.iter())))).collect()
    }

    /// Makes right the chains that are always the same.
    pub fn constants(&self, settings: &Settings, edits: &mut Edits) {
        for (table, chain, rules) in layout::constant(settings) {
            let right = self.table(table).chains.get(chain).is_some_and(|found| found.rules == self.printed(&rules));
            if !right {
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
            match self.filter.chains.get(&chain) {
                // Kubelet may have rules there as well.
                Some(found) if found.rules.contains(&self.print(&guard)) => {}
                Some(_) => edits.filter_first.push(Edit::Insert { chain, rule: guard }),
                None => edits.filter_first.push(Edit::Replace { chain, rules: vec![guard] }),
            }
        }
    }

    /// Makes right a chain that all Services have rules in: by single rules where that is less.
    pub fn shared(&self, shared: Shared, wanted: BTreeMap<String, Rule>, settings: &Settings, edits: &mut Edits) {
        let chain = shared.name();
        let tail = layout::tail(shared, self.family, settings);
        let state = self.table(shared.table()).chains.get(chain);
        if let Some(singles) = state.and_then(|state| self.singles(&state.rules, &wanted, &tail))
            && singles.len() <= wanted.len()
        {
            for (insert, rule) in singles {
                if insert { edits.insert(shared, rule) } else { edits.delete(shared, rule) }
            }
            return;
        }
        let edit = Edit::Replace { chain: chain.to_owned(), rules: wanted.into_values().chain(tail).collect() };
        if shared.table() == Table::Nat { edits.nat_last.push(edit) } else { edits.filter_first.push(edit) }
    }

    /// The rules to insert (`true`) and to delete, unless the chain has to be written anew: its last rules are not
    /// as they should be, or it holds a rule twice or one that cannot be read.
    fn singles(&self, found: &[String], wanted: &BTreeMap<String, Rule>, tail: &[Rule]) -> Option<Vec<(bool, Rule)>> {
        let found = found.strip_suffix(self.printed(tail).as_slice())?;
        let held: BTreeSet<&String> = found.iter().collect();
        if held.len() != found.len() {
            return None;
        }
        let insert = wanted.iter().filter(|(text, _)| !held.contains(text)).map(|(_, rule)| Some((true, rule.clone())));
        let delete =
            held.iter().filter(|text| !wanted.contains_key(**text)).map(|text| Some((false, text.parse().ok()?)));
        insert.chain(delete).collect()
    }

    /// Inserts the missing jumps from the kernel's chains.
    pub fn jumps(&self, settings: &Settings, edits: &mut Edits) {
        // Each becomes the first: the last one goes in first.
        for (table, chain, rule) in layout::jumps(self.family, settings).into_iter().rev() {
            if !self.table(table).rules(chain).contains(&self.print(&rule)) {
                let edit = Edit::Insert { chain: chain.to_owned(), rule };
                if table == Table::Nat { edits.nat_last.push(edit) } else { edits.filter_first.push(edit) }
            }
        }
    }

    /// Where UDP frontends lead.
    pub fn udp_backends(&self) -> HashMap<Frontend, Vec<Backend>> {
        let mut found = HashMap::new();
        for (shared, node_port) in [(Shared::Addresses, false), (Shared::NodePorts, true)] {
            let udp = self.nat.rules(shared.name()).iter().filter(|text| text.contains("-p udp"));
            for rule in udp.filter_map(|text| text.parse::<Rule>().ok()) {
                if let Some(frontend) = self.frontend(&rule, node_port)
                    && let Some(chain) = rule.chain()
                {
                    let mut to = BTreeSet::new();
                    self.backends(chain, &mut to, 4);
                    found.insert(frontend, to.into_iter().collect());
                }
            }
        }
        found
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

    /// Every endpoint that a chain leads to, over so many jumps at most.
    fn backends(&self, chain: &str, to: &mut BTreeSet<Backend>, jumps: usize) {
        for rule in self.nat.rules(chain).iter().filter_map(|text| text.parse::<Rule>().ok()) {
            match &rule.target {
                Some(Target::Chain(jump)) if jumps > 0 => self.backends(&jump.chain, to, jumps - 1),
                Some(Target::Dnat(address)) => to.extend(
                    address.parse::<std::net::SocketAddr>().map(|to| Backend { address: to.ip(), port: to.port() }),
                ),
                _ => {}
            }
        }
    }

    /// The edits that remove everything of ours: first of table nat, then of table filter, then of table mangle.
    pub fn removal(&self) -> [(Table, Vec<Edit>); 3] {
        let kubelet = self.mangle.chains.contains_key("KUBE-KUBELET-CANARY");
        let is_ours = |name: &str| {
            Chain::parse(name).is_some()
                || layout::NAMES.contains(&name)
                || (name == layout::FIREWALL && !kubelet)
                || Shared::ALL.iter().any(|shared| shared.name() == name)
        };
        [Table::Nat, Table::Filter, Table::Mangle].map(|table| {
            let chains = &self.table(table).chains;
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
            (table, edits)
        })
    }

    fn print(&self, rule: &Rule) -> String {
        rule.display(self.family).to_string()
    }

    fn printed(&self, rules: &[Rule]) -> Vec<String> {
        rules.iter().map(|rule| self.print(rule)).collect()
    }
}
