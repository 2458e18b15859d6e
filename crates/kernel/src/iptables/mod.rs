//! iptables: rules as values and as text, `iptables-restore` and `iptables-save` of the machine, and a strict fake.
//!
//! The one place where Podwire runs another program: the kernel's interface to iptables is private to these programs
//! (legacy: one binary blob a table) or defined by what they write (nft).
//!
//! A [`Rule`] prints itself just as `iptables-save` would, so that what is there can be compared with what should be.
//!
//! ```no_run
//! use podwire_kernel::iptables::{Iptables, Real, Table};
//! use podwire_model::Family::V4;
//!
//! # fn main() -> podwire_kernel::Result<()> {
//! let mut iptables = Real::open(None)?;
//! iptables.restore(V4, "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n")?;
//! assert_eq!(iptables.save(V4, Table::Nat)?.chains["KUBE-MARK-MASQ"].rules, ["-j MARK --set-xmark 0x4000/0x4000"]);
//! # Ok(())
//! # }
//! ```

mod edit;
mod fake;
mod native;
mod parse;
mod real;
mod rule;
mod saved;
mod watch;

use std::fmt;

use podwire_model::Family;

pub use edit::Edit;
pub use fake::Fake;
pub use real::{BACKEND_VARIABLE, Backend, Real};
pub use rule::{AddressKind, CtStates, Is, Jump, Match, Ports, Recent, Rule, Target};
pub use saved::{ChainState, Digest, Listing, TableState};

use crate::Result;

/// The tables of iptables that Podwire uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Lets packets pass or not.
    Filter,
    /// Changes addresses, once a connection.
    Nat,
    /// Changes anything else.
    Mangle,
    /// Before connection tracking.
    Raw,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Filter, Self::Nat, Self::Mangle, Self::Raw];

    /// As `iptables -t` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Raw => "raw",
        }
    }

    /// The chains that the kernel itself calls.
    pub const fn builtin_chains(self) -> &'static [&'static str] {
        match self {
            Self::Filter => &["INPUT", "FORWARD", "OUTPUT"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Raw => &["PREROUTING", "OUTPUT"],
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The iptables of one network namespace, both address families, or a fake of it.
pub trait Iptables: Send {
    /// Does what `text` says, as `iptables-restore --noflush --wait --counters` (or `ip6tables-restore`) does: tables
    /// (`*nat` … `COMMIT`) one after the other, each as a whole or not at all. `:CHAIN - [0:0]` makes a chain or empties it; `-A`, `-I`, `-D`
    /// and `-X` are as on the command line; everything else in the table stays. Does nothing if `text` is empty.
    ///
    /// # Errors
    /// [`Error::Program`](crate::Error::Program) with the program's own message and the line it points at. Tables before
    /// the one that failed were changed.
    fn restore(&mut self, family: Family, text: &str) -> Result<()>;

    /// Changes a table. Edits are made in order. Every chain is changed at once, but a packet may find some of them
    /// changed and others not yet, unless an [`Edit::Barrier`] is between: the kernel's ip_tables replaces a table as a
    /// whole, nf_tables only chain by chain.
    ///
    /// # Errors
    /// As [`Iptables::restore`]; a part of the edits may have been made.
    fn edit(&mut self, family: Family, table: Table, edits: &mut dyn Iterator<Item = Edit>) -> Result<()> {
        self.restore(family, &edit::text(family, table, edits))
    }

    /// What a table holds, as `iptables-save -t TABLE` prints it; empty when the kernel does not have the table yet.
    ///
    /// # Errors
    /// [`Error::Program`](crate::Error::Program), also when a table holds what iptables cannot express.
    fn save(&mut self, family: Family, table: Table) -> Result<TableState>;

    /// What a table holds, in short: what can be had quickly of a large one.
    ///
    /// # Errors
    /// As [`Iptables::save`].
    fn list(&mut self, family: Family, table: Table) -> Result<Listing> {
        self.save(family, table).map(|state| state.listing())
    }

    /// The digests that [`Iptables::list`] tells.
    fn digest(&self) -> Digest {
        saved::text_digest
    }

    /// Whether a table may have been changed by someone else since this was last asked or [`Iptables::restore`] or
    /// [`Iptables::save`] was last called: `true` at times without need, `false` only when nothing that has `KUBE-` in its name or in
    /// what it jumps to was touched. Cheap.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn disturbed(&mut self) -> Result<bool>;
}

impl<T: Iptables + ?Sized> Iptables for Box<T> {
    fn restore(&mut self, family: Family, text: &str) -> Result<()> {
        (**self).restore(family, text)
    }

    fn edit(&mut self, family: Family, table: Table, edits: &mut dyn Iterator<Item = Edit>) -> Result<()> {
        (**self).edit(family, table, edits)
    }

    fn save(&mut self, family: Family, table: Table) -> Result<TableState> {
        (**self).save(family, table)
    }

    fn list(&mut self, family: Family, table: Table) -> Result<Listing> {
        (**self).list(family, table)
    }

    fn digest(&self) -> Digest {
        (**self).digest()
    }

    fn disturbed(&mut self) -> Result<bool> {
        (**self).disturbed()
    }
}

/// The names of programs begin so.
const fn prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

#[cfg(test)]
mod tests;
