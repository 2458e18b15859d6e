//! Tables, chains, sets, elements: what a ruleset is made of, as values.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use podwire_model::Name;

use super::{Rule, compare::same_expressions, encode::expressions};

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6 (`NFPROTO_INET`).
    Inet,
    /// IPv4 (`NFPROTO_IPV4`).
    Ip,
    /// IPv6 (`NFPROTO_IPV6`).
    Ip6,
}

impl Family {
    /// The `NFPROTO_*` number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

impl From<podwire_model::Family> for Family {
    fn from(family: podwire_model::Family) -> Self {
        match family {
            podwire_model::Family::V4 => Self::Ip,
            podwire_model::Family::V6 => Self::Ip6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// Family and name of a table; prints as `nft` writes it, for example `ip podwire`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// The address family.
    pub family: Family,
    /// The name.
    pub name: Name,
}

impl Table {
    /// Joins a family and a name.
    pub fn new(family: Family, name: impl Into<Name>) -> Self {
        Self { family, name: name.into() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A table as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Family and name.
    pub table: Table,
    /// The comment it was made with.
    pub comment: Option<String>,
}

/// Where in the kernel's path of a packet a base chain is called (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every packet that arrives, before routing.
    Prerouting,
    /// Packets for this machine.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets that this machine sends.
    Output,
    /// Every packet that leaves, after routing.
    Postrouting,
}

impl Hook {
    /// The `NF_INET_*` number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    pub(super) const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Prerouting),
            1 => Some(Self::Input),
            2 => Some(Self::Forward),
            3 => Some(Self::Output),
            4 => Some(Self::Postrouting),
            _ => None,
        }
    }
}

/// What a base chain may do. A `nat` chain sees only the first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Accept or drop, every packet.
    Filter,
    /// Translate addresses, first packet of each connection.
    Nat,
}

impl ChainKind {
    /// The kernel's name of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// What makes a chain a base chain: the kernel calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it is called.
    pub hook: Hook,
    /// Order among the chains of a hook, lowest first; see [`priority`].
    pub priority: i32,
}

/// The usual priorities of base chains (`NF_IP_PRI_*`).
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Destination translation, in prerouting and output.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Source translation, in postrouting.
    pub const SRCNAT: i32 = 100;
}

/// A chain: a base chain (policy accept) or one that rules jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The name, unique in its table.
    pub name: Name,
    /// Present for a base chain.
    pub base: Option<Base>,
}

impl Chain {
    /// A chain that rules and verdict maps jump to.
    pub fn regular(name: impl Into<Name>) -> Self {
        Self { name: name.into(), base: None }
    }

    /// A chain that the kernel calls; its policy is accept.
    pub fn base(name: impl Into<Name>, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some(Base { kind, hook, priority }) }
    }
}

/// What happens to a packet next.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// End of this hook's chain; the packet goes on.
    Accept,
    /// The packet vanishes.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Call a chain, come back after it.
    Jump(Name),
    /// Continue in a chain, do not come back.
    Goto(Name),
}

impl Verdict {
    /// The kernel's code (`NF_*`, `NFT_*`).
    pub const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// The chain that it names.
    pub const fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// The type of one field of a set's key or data: how wide it is and how `nft` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `mark`, 4 bytes in the machine's byte order.
    Mark,
}

impl Field {
    /// The address field of a family.
    pub const fn address(family: podwire_model::Family) -> Self {
        match family {
            podwire_model::Family::V4 => Self::Ipv4Addr,
            podwire_model::Family::V6 => Self::Ipv6Addr,
        }
    }

    /// Bytes of a value.
    pub const fn length(self) -> usize {
        match self {
            Self::Ipv4Addr | Self::Mark => 4,
            Self::Ipv6Addr => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
        }
    }

    /// The number of the type in the `nft` tool (its `enum datatypes`); the kernel only stores it.
    pub(super) const fn datatype(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
        }
    }

    /// Bytes of a key or of data made of `fields`: each is padded to 4 bytes if there are several.
    pub fn total(fields: &[Self]) -> usize {
        match fields {
            [one] => one.length(),
            many => many.iter().map(|field| field.length().next_multiple_of(4)).sum(),
        }
    }
}

/// One field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Datum {
    /// An address of either family.
    Addr(IpAddr),
    /// An IP protocol number.
    Proto(u8),
    /// A port.
    Port(u16),
    /// A mark or another plain number.
    Mark(u32),
}

/// A key or a map's data as the kernel holds it: concatenated fields, at most [`Value::MAX`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    bytes: [u8; Self::MAX],
    length: u8,
}

impl Value {
    /// Room for two IPv6 addresses, a protocol and a port, each padded: the widest key in use.
    pub const MAX: usize = 40;

    /// The bytes as they are; longer ones are cut (no field combination in use is longer).
    pub fn from_bytes(raw: &[u8]) -> Self {
        let mut value = Self { bytes: [0; Self::MAX], length: 0 };
        value.push(raw);
        value
    }

    /// Concatenates fields, each padded to 4 bytes if there are several.
    pub fn concat(fields: &[Datum]) -> Self {
        let mut value = Self { bytes: [0; Self::MAX], length: 0 };
        for field in fields {
            match field {
                Datum::Addr(IpAddr::V4(address)) => value.push(&address.octets()),
                Datum::Addr(IpAddr::V6(address)) => value.push(&address.octets()),
                Datum::Proto(number) => value.push(&[*number]),
                Datum::Port(port) => value.push(&port.to_be_bytes()),
                Datum::Mark(mark) => value.push(&mark.to_ne_bytes()),
            }
            if fields.len() > 1 {
                value.length = value.length.next_multiple_of(4);
            }
        }
        value
    }

    /// Splits the value into fields; `None` if the lengths disagree.
    pub fn split(&self, fields: &[Field]) -> Option<Vec<Datum>> {
        if self.as_bytes().len() != Field::total(fields) {
            return None;
        }
        let mut rest = self.as_bytes();
        let mut data = Vec::with_capacity(fields.len());
        for field in fields {
            data.push(match field {
                Field::Ipv4Addr => Datum::Addr(Ipv4Addr::from(*rest.first_chunk::<4>()?).into()),
                Field::Ipv6Addr => Datum::Addr(Ipv6Addr::from(*rest.first_chunk::<16>()?).into()),
                Field::InetProto => Datum::Proto(*rest.first()?),
                Field::InetService => Datum::Port(u16::from_be_bytes(*rest.first_chunk()?)),
                Field::Mark => Datum::Mark(u32::from_ne_bytes(*rest.first_chunk()?)),
            });
            rest = rest.get(field.length().next_multiple_of(4)..).unwrap_or_default();
        }
        Some(data)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    fn push(&mut self, raw: &[u8]) {
        let at = usize::from(self.length);
        let room = self.bytes.get_mut(at..).unwrap_or_default();
        let length = raw.len().min(room.len());
        for (to, from) in room.iter_mut().zip(raw) {
            *to = *from;
        }
        self.length += length as u8;
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// What the elements of a set map to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetData {
    /// Nothing: a plain set.
    None,
    /// A verdict: a verdict map (`vmap`).
    Verdict,
    /// A value: a map.
    Fields(Vec<Field>),
}

/// How a set keeps its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SetKind {
    /// By exact key, until they are deleted.
    #[default]
    Plain,
    /// Elements are ranges in each field of the key ([`Element::end`]).
    Intervals,
    /// Rules add elements ([`Expr::Update`](super::Expr::Update)), each for a time. Such a set must have a size.
    Dynamic,
}

/// A named set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The name, unique in its table.
    pub name: Name,
    /// The fields of the key.
    pub key: Vec<Field>,
    /// What elements map to.
    pub data: SetData,
    /// How it keeps them.
    pub kind: SetKind,
    /// The most elements that fit; with a size the kernel uses a fixed hash table, several times faster to fill.
    /// Adding a set again with a larger size raises it in place.
    pub size: Option<u32>,
    /// Shown by `nft list`.
    pub comment: Option<String>,
}

/// A set as the kernel lists it: types are only informational there, so lengths are what can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// The name.
    pub name: Name,
    /// The most elements that fit.
    pub size: Option<u32>,
    /// How many there are, where the kernel tells (`NFTA_SET_COUNT`: Linux 6.18 does, 6.1 does not).
    pub count: Option<u32>,
    /// The comment it was made with.
    pub comment: Option<String>,
}

/// What one element maps to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mapped {
    /// Nothing: an element of a plain set.
    Nothing,
    /// An element of a map.
    Value(Value),
    /// An element of a verdict map.
    Verdict(Verdict),
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key; of a range the first one.
    pub key: Value,
    /// The last key of a range, in sets of [`SetKind::Intervals`] (and there always).
    pub end: Option<Value>,
    /// What it maps to.
    pub data: Mapped,
    /// Shown by `nft list`; costs memory, so not for large maps.
    pub comment: Option<Name>,
}

impl Element {
    /// An element of a plain set, or a key to delete.
    pub const fn key(key: Value) -> Self {
        Self { key, end: None, data: Mapped::Nothing, comment: None }
    }

    /// An element of a map.
    pub const fn map(key: Value, data: Mapped) -> Self {
        Self { key, end: None, data, comment: None }
    }
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain that it is in.
    pub chain: Name,
    /// The kernel's number for it, unique in the table.
    pub handle: u64,
    /// The comment it was made with.
    pub comment: Option<String>,
    /// Names of its expressions in order, for example `payload`, `cmp`, `masq`.
    pub expressions: Vec<String>,
    /// The list of expressions as the kernel encodes it.
    pub(super) encoded: Vec<u8>,
}

impl RuleInfo {
    /// Whether it is what `rule` makes: every expression is of the same kind and has every attribute that `rule` gives
    /// it, with the same value. (The kernel lists a few more, which have their defaults.)
    pub fn does(&self, rule: &Rule) -> bool {
        same_expressions(&self.encoded, &expressions(rule))
    }
}
