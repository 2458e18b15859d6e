//! Arithmetic on addresses of either family.

use std::net::IpAddr;

use podwire_kernel::route::Mac;
use podwire_model::IpNet;

/// The address as a number; those of different families do not compare.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of the family of `like` with this number; it wraps around at the end of the family.
pub fn from_number(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

/// The address `steps` after `ip`.
pub fn after(ip: IpAddr, steps: u128) -> IpAddr {
    from_number(ip, number(ip).wrapping_add(steps))
}

/// The first address of a network that a machine can have: by convention the router's.
pub fn first_host(net: IpNet) -> IpAddr {
    after(net.network(), 1)
}

/// The last address of a network that a machine can have: not the broadcast address of IPv4.
pub fn last_host(net: IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4((net.broadcast().to_bits() - 1).into()),
        IpNet::V6(net) => IpAddr::V6(net.broadcast()),
    }
}

/// A MAC address that follows from an IPv4 address (0a:58 and its four octets), so that whoever knew the address's
/// last holder need not ask again; `None` for IPv6.
pub fn mac_of(ip: IpAddr) -> Option<Mac> {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Some(Mac([0x0a, 0x58, a, b, c, d]))
        }
        IpAddr::V6(_) => None,
    }
}
