//! A transaction: everything in it happens at once, or nothing does.

use std::fmt;

use podwire_model::Name;

use super::{Chain, Element, Rule, Set, Table};

/// One step of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes the table if it does not exist.
    AddTable {
        /// Shown by `nft list`; kept from the first time.
        comment: Option<String>,
    },
    /// Deletes the table with all that is in it.
    DeleteTable,
    /// Makes a chain if it does not exist.
    AddChain(Chain),
    /// Deletes the rules of a chain.
    FlushChain(Name),
    /// Deletes a chain that nothing refers to, with its rules.
    DeleteChain(Name),
    /// Appends a rule to a chain.
    AddRule {
        /// The chain.
        chain: Name,
        /// The rule.
        rule: Rule,
    },
    /// Deletes one rule.
    DeleteRule {
        /// The chain.
        chain: Name,
        /// The kernel's number for the rule.
        handle: u64,
    },
    /// Makes a set or map if it does not exist, or changes its size.
    AddSet(Set),
    /// Deletes a set or map that no rule uses.
    DeleteSet(Name),
    /// Adds elements; one that exists fails the transaction.
    AddElements {
        /// The set or map.
        set: Name,
        /// Any number of them.
        elements: Vec<Element>,
    },
    /// Deletes elements by key; one that does not exist fails the transaction.
    DeleteElements {
        /// The set or map.
        set: Name,
        /// Any number of them; only the keys count.
        elements: Vec<Element>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { .. } => write!(f, "add the table"),
            Self::DeleteTable => write!(f, "delete the table"),
            Self::AddChain(chain) => write!(f, "add chain {}", chain.name),
            Self::FlushChain(chain) => write!(f, "flush chain {chain}"),
            Self::DeleteChain(chain) => write!(f, "delete chain {chain}"),
            Self::AddRule { chain, rule } => {
                write!(f, "add a rule to chain {chain}")?;
                rule.comment.as_ref().map_or(Ok(()), |comment| write!(f, " ({comment})"))
            }
            Self::DeleteRule { chain, handle } => write!(f, "delete rule {handle} of chain {chain}"),
            Self::AddSet(set) => write!(f, "add set {}", set.name),
            Self::DeleteSet(set) => write!(f, "delete set {set}"),
            Self::AddElements { set, elements } => write!(f, "add {} elements to set {set}", elements.len()),
            Self::DeleteElements { set, elements } => write!(f, "delete {} elements of set {set}", elements.len()),
        }
    }
}

/// The steps of one transaction, in order. Steps may use what earlier ones made.
///
/// ```
/// use podwire_kernel::nftables::*;
///
/// let table = Table::new(Family::Ip, "example");
/// let mut batch = Batch::new();
/// batch.replace_table(&table, Some("made by an example"));
/// batch.add_chain(&table, Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
/// batch.add_rule(&table, "postrouting", Rule::new(podwire_model::Family::V4).mark(Is::Equal, 0x4000, 0x4000).masquerade(0));
/// assert_eq!(batch.len(), 5);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) steps: Vec<(Table, Action)>,
}

impl Batch {
    /// No steps.
    pub const fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many steps there are.
    pub const fn len(&self) -> usize {
        self.steps.len()
    }

    /// The steps in order.
    pub fn steps(&self) -> impl Iterator<Item = &(Table, Action)> {
        self.steps.iter()
    }

    /// Appends any step.
    pub fn push(&mut self, table: &Table, action: Action) {
        self.steps.push((table.clone(), action));
    }

    /// See [`Action::AddTable`].
    pub fn add_table(&mut self, table: &Table, comment: Option<&str>) {
        self.push(table, Action::AddTable { comment: comment.map(str::to_owned) });
    }

    /// See [`Action::DeleteTable`].
    pub fn delete_table(&mut self, table: &Table) {
        self.push(table, Action::DeleteTable);
    }

    /// Makes the table empty, whether or not it exists: adds, deletes and adds it.
    pub fn replace_table(&mut self, table: &Table, comment: Option<&str>) {
        self.add_table(table, None);
        self.delete_table(table);
        self.add_table(table, comment);
    }

    /// See [`Action::AddChain`].
    pub fn add_chain(&mut self, table: &Table, chain: Chain) {
        self.push(table, Action::AddChain(chain));
    }

    /// See [`Action::FlushChain`].
    pub fn flush_chain(&mut self, table: &Table, chain: impl Into<Name>) {
        self.push(table, Action::FlushChain(chain.into()));
    }

    /// See [`Action::DeleteChain`].
    pub fn delete_chain(&mut self, table: &Table, chain: impl Into<Name>) {
        self.push(table, Action::DeleteChain(chain.into()));
    }

    /// See [`Action::AddRule`].
    pub fn add_rule(&mut self, table: &Table, chain: impl Into<Name>, rule: Rule) {
        self.push(table, Action::AddRule { chain: chain.into(), rule });
    }

    /// See [`Action::DeleteRule`].
    pub fn delete_rule(&mut self, table: &Table, chain: impl Into<Name>, handle: u64) {
        self.push(table, Action::DeleteRule { chain: chain.into(), handle });
    }

    /// See [`Action::AddSet`].
    pub fn add_set(&mut self, table: &Table, set: Set) {
        self.push(table, Action::AddSet(set));
    }

    /// See [`Action::DeleteSet`].
    pub fn delete_set(&mut self, table: &Table, set: impl Into<Name>) {
        self.push(table, Action::DeleteSet(set.into()));
    }

    /// See [`Action::AddElements`]. Nothing happens if there are none.
    pub fn add_elements(&mut self, table: &Table, set: impl Into<Name>, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(table, Action::AddElements { set: set.into(), elements });
        }
    }

    /// See [`Action::DeleteElements`]. Nothing happens if there are none.
    pub fn delete_elements(&mut self, table: &Table, set: impl Into<Name>, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.push(table, Action::DeleteElements { set: set.into(), elements });
        }
    }
}
