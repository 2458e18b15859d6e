//! Sets of addresses and ports for iptables rules to look up (ipset), by netlink. No `ipset` is executed.
//!
//! [`Kernel`] is the real thing, [`Fake`] a strict one for tests.
//!
//! ```no_run
//! use podwire_kernel::ipset::{Element, Entry, Ipset, Kernel, Kind, Set};
//! use podwire_model::{Family, Protocol};
//!
//! # fn main() -> podwire_kernel::Result<()> {
//! let mut kernel = Kernel::open()?;
//! kernel.create(&Set::new("KUBE-CLUSTER-IP", Kind::HashIpPort, Family::V4))?;
//! let entry = Entry::AddressPort([10, 96, 0, 10].into(), Protocol::Tcp, 80);
//! kernel.add("KUBE-CLUSTER-IP", &[Element::new(entry)])
//! # }
//! ```

mod fake;
mod real;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use fake::Fake;
pub use real::Kernel;
pub use types::{Element, Entry, Found, Kind, Set, errors};

use crate::Result;

/// The kernel's sets in one network namespace, or a fake of them.
pub trait Ipset: Send {
    /// Every set of a kind that [`Kind`] knows, without its entries.
    ///
    /// # Errors
    /// When the kernel has no ipset.
    fn sets(&mut self) -> Result<Vec<Found>>;

    /// The entries of a set, in no particular order.
    ///
    /// # Errors
    /// ENOENT for a missing set.
    fn entries(&mut self, set: &str) -> Result<Vec<Element>>;

    /// Makes an empty set. Does nothing for one that is there, of the same kind.
    ///
    /// # Errors
    /// EEXIST for a name that a set of another kind has.
    fn create(&mut self, set: &Set) -> Result<()>;

    /// Deletes a set.
    ///
    /// # Errors
    /// ENOENT for a missing set; [`errors::BUSY`] for one that iptables rules use.
    fn destroy(&mut self, set: &str) -> Result<()>;

    /// Exchanges the entries of two sets of one kind, at once for every packet.
    ///
    /// # Errors
    /// ENOENT for a missing first set, [`errors::EXIST_SETNAME2`] for a missing second one, [`errors::TYPE_MISMATCH`] for
    /// two kinds.
    fn swap(&mut self, one: &str, other: &str) -> Result<()>;

    /// Adds elements, many in one message; one that is there gets the new mark.
    ///
    /// # Errors
    /// ENOENT for a missing set; elements that do not fit the set. Those before the refused one are added.
    fn add(&mut self, set: &str, elements: &[Element]) -> Result<()>;

    /// Removes entries, many in one message; those that are not there are none too many.
    ///
    /// # Errors
    /// As [`Ipset::add`].
    fn remove(&mut self, set: &str, entries: &[Entry]) -> Result<()>;
}
