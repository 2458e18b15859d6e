//! What `iptables-save` prints.

use std::collections::BTreeMap;

use podwire_model::Family;

use super::Rule;
use crate::stable_hash;

/// Tells rules apart: a number that depends on what the rule is and nothing else.
pub type Digest = fn(Family, &Rule) -> u64;

/// A table in short, for comparing it with what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Chains of the kernel and those whose names begin with `KUBE-`; the digest of each rule, in order.
    pub chains: BTreeMap<String, Vec<u64>>,
    /// Rules of them that match UDP, as far as they say where from and where to, and the chains they are in.
    pub udp: Vec<(String, Rule)>,
}

/// The digest of a rule by its text.
pub(super) fn text_digest(family: Family, rule: &Rule) -> u64 {
    stable_hash(rule.display(family).to_string().bytes())
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainState {
    /// `ACCEPT` or `DROP` for chains that the kernel calls; `None` for others.
    pub policy: Option<String>,
    /// The rules in order, as printed after `-A CHAIN `.
    pub rules: Vec<String>,
}

/// A table: chains by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableState {
    /// The chains.
    pub chains: BTreeMap<String, ChainState>,
}

impl TableState {
    /// Reads the output of `iptables-save -t`. Rules stay text: others may have rules of any kind.
    ///
    /// # Errors
    /// What is wrong, in words, and in which line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for (number, line) in text.lines().enumerate() {
            let problem = |what: &str| format!("line {}: {what}: {line}", number + 1);
            if line.ends_with("is incompatible, use 'nft' tool.") {
                return Err(problem("the table holds rules that iptables cannot express"));
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let (Some(name), Some(policy)) = (words.next(), words.next()) else {
                    return Err(problem("a chain without a policy"));
                };
                let policy = (policy != "-").then(|| policy.to_owned());
                table.chains.insert(name.to_owned(), ChainState { policy, rules: Vec::new() });
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                let chain = table.chains.get_mut(chain).ok_or_else(|| problem("a rule in no chain"))?;
                chain.rules.push(rule.to_owned());
            } else if !(line.is_empty() || line.starts_with(['#', '*']) || line == "COMMIT") {
                return Err(problem("not understood"));
            }
        }
        Ok(table)
    }

    /// The table in short, with digests of the rules' texts.
    pub(super) fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for (name, chain) in
            self.chains.iter().filter(|(name, chain)| name.starts_with("KUBE-") || chain.policy.is_some())
        {
            let digests = chain.rules.iter().map(|rule| stable_hash(rule.bytes())).collect();
            listing.chains.insert(name.clone(), digests);
            let udp = chain.rules.iter().filter(|rule| rule.contains("-p udp"));
            listing.udp.extend(udp.filter_map(|rule| Some((name.clone(), rule.parse().ok()?))));
        }
        listing
    }

    /// The rules of a chain; none if there is no such chain.
    pub fn rules(&self, chain: &str) -> &[String] {
        self.chains.get(chain).map_or(&[], |chain| &chain.rules)
    }
}
