use std::{fmt, net::IpAddr};

use super::{Address, FdbEntry, Neighbour, RouteEntry, RouteKind};

/// One change of a table, to be made together with others ([`crate::route::Route::edit`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// As [`crate::route::Route::add_address`].
    AddAddress(Address),
    /// As [`crate::route::Route::delete_address`].
    DeleteAddress(Address),
    /// As [`crate::route::Route::replace_route`].
    ReplaceRoute(RouteEntry),
    /// As [`crate::route::Route::delete_route`].
    DeleteRoute(RouteEntry),
    /// As [`crate::route::Route::replace_neighbour`].
    ReplaceNeighbour(Neighbour),
    /// As [`crate::route::Route::delete_neighbour`].
    DeleteNeighbour(Neighbour),
    /// As [`crate::route::Route::replace_fdb`].
    ReplaceFdb(FdbEntry),
    /// As [`crate::route::Route::delete_fdb`].
    DeleteFdb(FdbEntry),
}

/// Completes the sentence "cannot …".
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(Address { net, device, .. }) => write!(f, "add address {net} to link #{device}"),
            Self::DeleteAddress(Address { net, device, .. }) => write!(f, "delete address {net} of link #{device}"),
            Self::ReplaceRoute(route) => write!(f, "set route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::ReplaceNeighbour(Neighbour { address, device, .. }) => {
                write!(f, "set neighbour {address} on link #{device}")
            }
            Self::DeleteNeighbour(Neighbour { address, device, .. }) => {
                write!(f, "delete neighbour {address} on link #{device}")
            }
            Self::ReplaceFdb(FdbEntry { mac, device, .. }) => {
                write!(f, "set forwarding entry {mac} of link #{device}")
            }
            Self::DeleteFdb(FdbEntry { mac, device, .. }) => {
                write!(f, "delete forwarding entry {mac} of link #{device}")
            }
        }
    }
}

/// Where the kernel would send a packet now: the answer to `ip route get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// What would happen to it; [`RouteKind::Local`] for an address of this machine.
    pub kind: RouteKind,
    /// Index of the interface that it would leave by.
    pub device: u32,
    /// The router it would go to; absent when the destination is on the link.
    pub gateway: Option<IpAddr>,
}
