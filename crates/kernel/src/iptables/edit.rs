//! Changes of a table.

use std::fmt::Write as _;

use podwire_model::Family;

use super::{Rule, Table};

/// A change of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Makes a chain, or empties it, and fills it. What its rules lead to must be there.
    Replace {
        /// The chain.
        chain: String,
        /// All its rules.
        rules: Vec<Rule>,
    },
    /// Puts a rule before all others of a chain.
    Insert {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Removes the first rule that is just like this one.
    Delete {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Empties a chain and removes it. Nothing may lead to it.
    Remove {
        /// The chain.
        chain: String,
    },
    /// Changes nothing: what comes before is there, for every packet, before anything that comes after.
    Barrier,
}

impl Edit {
    /// The chain that it is about; empty for a barrier.
    pub fn chain(&self) -> &str {
        match self {
            Self::Replace { chain, .. }
            | Self::Insert { chain, .. }
            | Self::Delete { chain, .. }
            | Self::Remove { chain } => chain,
            Self::Barrier => "",
        }
    }
}

/// Edits of one table as text for `iptables-restore`; empty if there are none. Barriers leave no trace in it.
pub(super) fn text(family: Family, table: Table, edits: &mut dyn Iterator<Item = Edit>) -> String {
    let mut text = String::new();
    for edit in edits.filter(|edit| *edit != Edit::Barrier) {
        if text.is_empty() {
            text = format!("*{table}\n");
        }
        // Writing to a string does not fail.
        let _ = match edit {
            Edit::Replace { chain, rules } => writeln!(text, ":{chain} - [0:0]")
                .and_then(|()| rules.iter().try_for_each(|rule| writeln!(text, "-A {chain} {}", rule.display(family)))),
            Edit::Insert { chain, rule } => writeln!(text, "-I {chain} {}", rule.display(family)),
            Edit::Delete { chain, rule } => writeln!(text, "-D {chain} {}", rule.display(family)),
            Edit::Remove { chain } => writeln!(text, ":{chain} - [0:0]\n-X {chain}"),
            Edit::Barrier => Ok(()),
        };
    }
    if !text.is_empty() {
        text.push_str("COMMIT\n");
    }
    text
}
