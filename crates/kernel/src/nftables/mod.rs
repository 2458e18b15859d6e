//! nftables by netlink: transactions out, listings in. No `nft` is executed and no text is parsed.
//!
//! Build a [`Batch`] from [`Chain`]s, [`Rule`]s, [`Set`]s and [`Element`]s and give it to [`Nftables::commit`]: all of
//! it happens at once, or nothing does. Whatever is made carries the notes that let `nft list ruleset` print it as it
//! would print its own. [`Kernel`] is the real thing, [`Fake`] a strict one for tests.
//!
//! ```no_run
//! use podwire_kernel::nftables::*;
//! use podwire_model::Family::V4;
//!
//! # fn main() -> podwire_kernel::Result<()> {
//! let table = Table::new(Family::Ip, "example");
//! let mut batch = Batch::new();
//! batch.replace_table(&table, Some("pod traffic to the outside"));
//! batch.add_chain(&table, Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
//! let pods = "10.244.0.0/16".parse().unwrap();
//! let rule = Rule::new(V4).source(Is::Equal, pods).destination(Is::Not, pods).masquerade(nat_flags::FULLY_RANDOM);
//! batch.add_rule(&table, "postrouting", rule);
//! Kernel::open()?.commit(&batch)
//! # }
//! ```

mod batch;
mod compare;
mod decode;
mod encode;
mod ensure;
mod expr;
mod fake;
mod object;
mod real;
mod rule;
mod uapi;
mod watch;

pub use batch::{Action, Batch};
pub use expr::{Ct, Expr, Header, Is, Meta, Reg, RejectWith, Side, ct_status, nat_flags};
pub use fake::{ChainState, Fake, Ruleset, SetState, TableState};
pub use object::{
    Base, Chain, ChainKind, Datum, Element, Family, Field, Hook, Mapped, RuleInfo, Set, SetData, SetInfo, SetKind,
    Table, TableInfo, Value, Verdict, priority,
};
pub use real::Kernel;
pub use rule::{Key, Rule};

use crate::Result;

/// The kernel's nf_tables, or a fake of it.
pub trait Nftables: Send {
    /// Does all steps of `batch` at once. Does nothing if there are none.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) names the step that the kernel refused; then nothing was changed.
    fn commit(&mut self, batch: &Batch) -> Result<()>;

    /// Every table of a family that [`Family`] knows, whoever made it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn tables(&mut self) -> Result<Vec<TableInfo>>;

    /// The chains of a table.
    ///
    /// # Errors
    /// When the kernel cannot be asked. For a table that does not exist: not found, or an empty list.
    fn chains(&mut self, table: &Table) -> Result<Vec<Chain>>;

    /// The rules of a table, in order within each chain.
    ///
    /// # Errors
    /// As [`Nftables::chains`].
    fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>>;

    /// The named sets and maps of a table, without their elements.
    ///
    /// # Errors
    /// As [`Nftables::chains`].
    fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>>;

    /// Hands every element of a set or map to `each`, in no particular order: for large ones, which need not all be in
    /// memory then.
    ///
    /// # Errors
    /// Not found when there is no such set or table; otherwise when the kernel cannot be asked.
    fn each_element(&mut self, table: &Table, set: &str, each: &mut dyn FnMut(Element)) -> Result<()>;

    /// The elements of a set or map, in no particular order.
    ///
    /// # Errors
    /// As [`Nftables::each_element`].
    fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Element>> {
        let mut elements = Vec::new();
        self.each_element(table, set, &mut |element| elements.push(element))?;
        Ok(elements)
    }

    /// The elements with exactly these keys, in this order; `None` when one of them is not there. The kernel looks each up,
    /// however many others there are.
    ///
    /// # Errors
    /// Not found when there is no such set or table; otherwise when the kernel cannot be asked.
    fn elements_at(&mut self, table: &Table, set: &str, keys: &[Value]) -> Result<Option<Vec<Element>>>;

    /// The element with exactly this key, if there is one.
    ///
    /// # Errors
    /// As [`Nftables::elements_at`].
    fn element(&mut self, table: &Table, set: &str, key: &Value) -> Result<Option<Element>> {
        Ok(self.elements_at(table, set, std::slice::from_ref(key))?.and_then(|found| found.into_iter().next()))
    }

    /// Whether somebody else changed one of `tables` since the last call, or may have: what rules themselves do to
    /// elements does not count. The first call only begins to watch. Does not block.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn changed_by_others(&mut self, tables: &[Table]) -> Result<bool>;
}

#[cfg(test)]
mod tests;
