//! Links, addresses, routes, neighbours and forwarding databases: typed rtnetlink.
//!
//! [`Route`] is what the rest of Podwire uses: [`RouteSocket`] is the kernel, [`FakeRoute`] a strict stand-in for tests
//! of what is built upon it. The two are held together by one suite that both must pass (`route/tests.rs`).

mod fake;
mod socket;
mod types;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

pub use fake::FakeRoute;
pub use socket::RouteSocket;
pub(crate) use socket::check_name;
pub use types::*;
pub use watch::{AddressWatch, Change, ChangeWatch, Removed};

use std::net::IpAddr;

use crate::{Error, Result};

/// What can be asked of one network namespace.
///
/// "Replace" creates what is missing and changes what is there, "add" fails with EEXIST for what is there
/// ([`crate::Error::already_exists`]), "delete" fails for what is not ([`crate::Error::is_not_found`]); see
/// [`crate::ResultExt`]. Every method can fail with [`crate::Error::Refused`], which carries the kernel's explanation.
pub trait Route: Send {
    /// Every link.
    ///
    /// # Errors
    /// The kernel refused.
    fn links(&mut self) -> Result<Vec<Link>>;

    /// The link called `name`, if there is one.
    ///
    /// # Errors
    /// The kernel refused; EINVAL or ERANGE for what cannot be a name.
    fn link(&mut self, name: &str) -> Result<Option<Link>>;

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// The kernel refused.
    fn link_by_index(&mut self, index: u32) -> Result<Option<Link>>;

    /// Creates a link (for a veth, both ends) and returns it as the kernel describes it.
    ///
    /// # Errors
    /// EEXIST for a taken name, or a vxlan of this id and port; EINVAL for a missing master, ENODEV for a missing lower
    /// device.
    fn create_link(&mut self, link: &NewLink<'_>) -> Result<Link>;

    /// Makes all `changes` to the link with this index.
    ///
    /// # Errors
    /// ENODEV for a missing link; EOPNOTSUPP for bridge port changes of a link that is no port. Some of the changes may
    /// have been made.
    fn change_link(&mut self, index: u32, changes: &[LinkChange<'_>]) -> Result<()>;

    /// Deletes the link with this index (for a veth, both ends).
    ///
    /// # Errors
    /// ENODEV for a missing link; EOPNOTSUPP for one that cannot be deleted.
    fn delete_link(&mut self, index: u32) -> Result<()>;

    /// Every address of one link, or of all.
    ///
    /// # Errors
    /// The kernel refused; ENODEV for a missing link.
    fn addresses(&mut self, device: Option<u32>) -> Result<Vec<Address>>;

    /// Adds an address.
    ///
    /// # Errors
    /// EEXIST when the link has it; ENODEV for a missing link.
    fn add_address(&mut self, address: &Address) -> Result<()>;

    /// Deletes the address with this device, address and prefix length.
    ///
    /// # Errors
    /// EADDRNOTAVAIL when the link does not have it; ENODEV for a missing link.
    fn delete_address(&mut self, address: &Address) -> Result<()>;

    /// The routes that `filter` admits.
    ///
    /// # Errors
    /// The kernel refused.
    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<RouteEntry>>;

    /// Adds a route.
    ///
    /// # Errors
    /// EEXIST when there is one to this destination with this metric in this table; ENODEV for a missing device,
    /// ENETDOWN for one that is down; ENETUNREACH (IPv4) or EHOSTUNREACH (IPv6) for a gateway that is not on the link;
    /// EINVAL for host bits in the destination or a source address that is not ours.
    fn add_route(&mut self, route: &RouteEntry) -> Result<()>;

    /// Adds a route in place of the one to this destination with this metric in this table.
    ///
    /// # Errors
    /// As [`Route::add_route`], except EEXIST.
    fn replace_route(&mut self, route: &RouteEntry) -> Result<()>;

    /// Deletes the route that has all these properties.
    ///
    /// # Errors
    /// ESRCH when there is none.
    fn delete_route(&mut self, route: &RouteEntry) -> Result<()>;

    /// The neighbours on one link, or on all.
    ///
    /// # Errors
    /// The kernel refused.
    fn neighbours(&mut self, device: Option<u32>) -> Result<Vec<Neighbour>>;

    /// Sets the neighbour with this device and address.
    ///
    /// # Errors
    /// ENODEV for a missing link.
    fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()>;

    /// Deletes the neighbour with this device and address.
    ///
    /// # Errors
    /// ENOENT when there is none; ENODEV for a missing link.
    fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()>;

    /// The VLANs of every port of every bridge that keeps them apart.
    ///
    /// # Errors
    /// The kernel refused.
    fn port_vlans(&mut self) -> Result<Vec<PortVlans>>;

    /// Puts a bridge port into VLANs, also into those that it is in.
    ///
    /// # Errors
    /// ENODEV for a missing link; EOPNOTSUPP for one that is no port; EINVAL for what is no VLAN, and for several native ones.
    fn add_port_vlans(&mut self, vlans: &PortVlans) -> Result<()>;

    /// Takes a bridge port out of VLANs, also out of those that it is not in.
    ///
    /// # Errors
    /// ENODEV for a missing link; EOPNOTSUPP for one that is no port.
    fn delete_port_vlans(&mut self, vlans: &PortVlans) -> Result<()>;

    /// The forwarding database entries of one bridge port or vxlan, or of all.
    ///
    /// # Errors
    /// The kernel refused.
    fn fdb(&mut self, device: Option<u32>) -> Result<Vec<FdbEntry>>;

    /// Sets the entry with this device, table and MAC.
    ///
    /// # Errors
    /// ENODEV for a missing link; EOPNOTSUPP for one without such a table.
    fn replace_fdb(&mut self, entry: &FdbEntry) -> Result<()>;

    /// Deletes the entry with this device, table, MAC and remote.
    ///
    /// # Errors
    /// ENOENT when there is none; ENODEV for a missing link.
    fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<()>;

    /// Where packets to each of `addresses` would go now, in their order; `None` for one that no route leads to.
    ///
    /// # Errors
    /// The kernel refused the question itself.
    fn next_hops(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<NextHop>>>;

    /// Makes `edits` in order, whether or not some of them are refused. Returns the refused ones by position.
    ///
    /// # Errors
    /// It is not known which of them were made.
    fn edit(&mut self, edits: &[Edit]) -> Result<Vec<(usize, Error)>> {
        let one = |edit: &Edit| match edit {
            Edit::AddAddress(address) => self.add_address(address),
            Edit::DeleteAddress(address) => self.delete_address(address),
            Edit::ReplaceRoute(route) => self.replace_route(route),
            Edit::DeleteRoute(route) => self.delete_route(route),
            Edit::ReplaceNeighbour(neighbour) => self.replace_neighbour(neighbour),
            Edit::DeleteNeighbour(neighbour) => self.delete_neighbour(neighbour),
            Edit::ReplaceFdb(entry) => self.replace_fdb(entry),
            Edit::DeleteFdb(entry) => self.delete_fdb(entry),
        };
        Ok(edits.iter().map(one).enumerate().filter_map(|(at, result)| Some((at, result.err()?))).collect())
    }
}
