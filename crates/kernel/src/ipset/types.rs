use std::{fmt, net::IpAddr};

use podwire_model::{Family, IpNet, Name, Protocol};

/// Error numbers of ipset's own (`linux/netfilter/ipset/ip_set.h`), as [`crate::Error::errno`] gives them.
pub mod errors {
    /// No such kind of set, or not in this revision.
    pub const FIND_TYPE: i32 = 4098;
    /// The set is in use by rules.
    pub const BUSY: i32 = 4100;
    /// The second set of a swap does not exist.
    pub const EXIST_SETNAME2: i32 = 4101;
    /// Two sets of different kinds.
    pub const TYPE_MISMATCH: i32 = 4102;
    /// A protocol error, for example an entry that does not fit the kind of set.
    pub const PROTOCOL: i32 = 4097;

    /// What such a number means.
    pub const fn explain(errno: i32) -> Option<&'static str> {
        Some(match errno {
            PROTOCOL => "the message does not fit the kind of set",
            FIND_TYPE => "the kernel has no such kind of set (a module ip_set_* is missing)",
            4099 => "there are too many sets",
            BUSY => "the set is in use by iptables rules",
            EXIST_SETNAME2 => "there is no such second set",
            TYPE_MISMATCH => "the sets are of different kinds",
            4104 => "invalid prefix length",
            4106 => "wrong address family",
            4109 => "an IPv4 address was expected",
            4110 => "an IPv6 address was expected",
            4114 => "the set keeps no marks",
            4352 => "the set is full",
            _ => return None,
        })
    }
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `hash:ip`: addresses.
    HashIp,
    /// `hash:ip,port`: addresses, each with a protocol and port.
    HashIpPort,
    /// `hash:ip,port,ip`: the same with a second address.
    HashIpPortIp,
    /// `hash:ip,port,net`: the same with a network.
    HashIpPortNet,
    /// `bitmap:port`: ports 0 to 65535 of any protocol.
    BitmapPort,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HashIp, Self::HashIpPort, Self::HashIpPortIp, Self::HashIpPortNet, Self::BitmapPort];

    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// The revision of the kind that is asked for: the first that keeps marks (Linux 3.19).
    pub(super) const fn revision(self) -> u8 {
        match self {
            Self::HashIp => 4,
            Self::HashIpPort | Self::HashIpPortIp => 5,
            Self::HashIpPortNet => 7,
            Self::BitmapPort => 3,
        }
    }
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name, 1 to 31 bytes.
    pub name: Name,
    /// What it holds.
    pub kind: Kind,
    /// The family of its addresses; `None` for [`Kind::BitmapPort`].
    pub family: Option<Family>,
    /// Whether its elements carry packet marks (`skbinfo`).
    pub marks: bool,
}

impl Set {
    /// A set without marks.
    pub fn new(name: impl Into<Name>, kind: Kind, family: Family) -> Self {
        let family = (kind != Kind::BitmapPort).then_some(family);
        Self { name: name.into(), kind, family, marks: false }
    }

    /// Whether an entry is of the set's kind and family.
    pub fn fits(&self, entry: &Entry) -> bool {
        let family = |address: &IpAddr| self.family == Some(Family::of(address));
        match (self.kind, entry) {
            (Kind::HashIp, Entry::Address(address)) | (Kind::HashIpPort, Entry::AddressPort(address, ..)) => {
                family(address)
            }
            (Kind::HashIpPortIp, Entry::AddressPortNet(address, _, _, net)) => {
                family(address) && family(&net.addr()) && net.prefix_len() == net.max_prefix_len()
            }
            (Kind::HashIpPortNet, Entry::AddressPortNet(address, _, _, net)) => {
                family(address) && family(&net.addr()) && net.prefix_len() > 0
            }
            (Kind::BitmapPort, Entry::Port(_)) => true,
            _ => false,
        }
    }
}

/// What is in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// An address.
    Address(IpAddr),
    /// An address, a protocol and a port.
    AddressPort(IpAddr, Protocol, u16),
    /// The same with a network, or with a second address as the network of it alone.
    AddressPortNet(IpAddr, Protocol, u16, IpNet),
    /// A port.
    Port(u16),
}

impl fmt::Display for Entry {
    /// As `ipset list` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::AddressPort(address, protocol, port) => write!(f, "{address},{}:{port}", protocol.lower()),
            Self::AddressPortNet(address, protocol, port, net) => {
                write!(f, "{address},{}:{port},", protocol.lower())?;
                if net.prefix_len() == net.max_prefix_len() { write!(f, "{}", net.addr()) } else { write!(f, "{net}") }
            }
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

/// An entry with what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// The entry.
    pub entry: Entry,
    /// The packet mark that `-j SET --map-set … --map-mark` gives, all 32 bits of it. Of sets with marks only; a zero
    /// there is read as none.
    pub mark: Option<u32>,
}

impl Element {
    /// An entry without a mark.
    pub const fn new(entry: Entry) -> Self {
        Self { entry, mark: None }
    }
}

/// A set as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The set.
    pub set: Set,
    /// How many entries it has. Kernels before 4.10 do not say.
    pub entries: Option<u32>,
    /// How many rules use it.
    pub references: u32,
}
