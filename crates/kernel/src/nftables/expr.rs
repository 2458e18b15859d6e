//! Expressions over registers: what a rule is made of, and the attributes of each (`NFTA_*` of its kind).

use std::time::Duration;

use podwire_model::{Family, Name};

use super::{
    Field, Value, Verdict,
    encode::{Writer, nfproto, push_verdict},
};

/// One of the sixteen 4-byte registers that a rule's expressions work with, 0 to 15. A wider value takes several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(pub u8);

impl Reg {
    /// Where the packet mark is kept while another value takes its way through it.
    pub(super) const SAVED_MARK: Self = Self(15);

    /// The register after a value of `field` that begins here.
    #[must_use]
    pub const fn after(self, field: Field) -> Self {
        Self(self.0 + field.length().div_ceil(4) as u8)
    }
}

/// Which header a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// What can be read about a packet besides its bytes (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meta {
    /// The packet mark, 4 bytes, machine order.
    Mark,
    /// Name of the interface it came in by, 16 bytes, zero padded.
    InputName,
    /// Name of the interface it leaves by, 16 bytes, zero padded.
    OutputName,
    /// Protocol family, 1 byte.
    NfProto,
    /// Transport protocol, 1 byte.
    L4Proto,
}

/// What can be read about a packet's connection (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ct {
    /// State bits: 1 invalid, 2 established, 4 related, 8 new.
    State,
    /// Status bits (`IPS_*`), for example 0x20 for "destination translated".
    Status,
}

/// Whether a comparison asks for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Is {
    /// Equal, in.
    Equal,
    /// Not equal, not in.
    Not,
}

/// An address of the packet, for expressions that look at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
}

/// Status bits of connections (`IPS_*`).
pub mod ct_status {
    /// The destination is translated.
    pub const DST_NAT: u32 = 0x20;
}

/// Flags of address translation (`NF_NAT_RANGE_*`).
pub mod nat_flags {
    /// Choose ports at random where needed (`random`).
    pub const RANDOM: u32 = 0x4;
    /// Choose ports at random always (`fully-random`).
    pub const FULLY_RANDOM: u32 = 0x10;
}

/// How a refused packet is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectWith {
    /// ICMP or ICMPv6 port unreachable: the caller sees "connection refused" at once.
    PortUnreachable(Family),
    /// TCP reset; for TCP packets only.
    TcpReset,
}

/// One expression, as the kernel evaluates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Where the offset counts from.
        header: Header,
        /// Bytes from there.
        offset: u32,
        /// How many bytes.
        length: u32,
        /// Where to.
        to: Reg,
    },
    /// Loads a fact about the packet.
    Meta {
        /// Which.
        key: Meta,
        /// Where to.
        to: Reg,
    },
    /// Sets the packet mark.
    SetMark {
        /// From where.
        from: Reg,
    },
    /// Loads a fact about the connection.
    Ct {
        /// Which.
        key: Ct,
        /// Where to.
        to: Reg,
    },
    /// Loads the kind of an address in this machine's routing tables (`RTN_*`, 2 is local), 4 bytes, machine order.
    FibType {
        /// Which address.
        side: Side,
        /// Where to.
        to: Reg,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// From where.
        from: Reg,
        /// Where to.
        to: Reg,
        /// As long as the value.
        mask: Value,
        /// As long as the value.
        xor: Value,
    },
    /// Goes on only if the register compares so with the value.
    Cmp {
        /// The comparison.
        is: Is,
        /// Which register.
        register: Reg,
        /// The value.
        value: Value,
    },
    /// Loads a random number.
    Random {
        /// The number is smaller than this, before the offset is added.
        modulus: u32,
        /// Added to the number.
        offset: u32,
        /// Where to.
        to: Reg,
    },
    /// Goes on only if the key is (not) in the set.
    InSet {
        /// The set.
        set: Name,
        /// Where the key begins.
        key: Reg,
        /// In, or not in.
        is: Is,
    },
    /// Loads what the key maps to; the rule ends if it maps to nothing.
    Map {
        /// The map.
        map: Name,
        /// Where the key begins.
        key: Reg,
        /// Where to.
        to: Reg,
    },
    /// Adds what the key maps to, or, where it maps to something already, begins that one's time anew; the rule ends if
    /// the map is full.
    Update {
        /// The map; one of [`SetKind::Dynamic`](super::SetKind::Dynamic).
        map: Name,
        /// Where the key begins.
        key: Reg,
        /// Where the value begins.
        value: Reg,
        /// How long the element stays.
        timeout: Duration,
    },
    /// Deletes what the key maps to, if anything.
    Remove {
        /// The map; one of [`SetKind::Dynamic`](super::SetKind::Dynamic).
        map: Name,
        /// Where the key begins.
        key: Reg,
        /// Where a value is: the kernel asks for one, and does not use it.
        value: Reg,
    },
    /// Takes the verdict that the key maps to; the rule ends if it maps to nothing.
    VerdictMap {
        /// The verdict map.
        map: Name,
        /// Where the key begins.
        key: Reg,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Translates the destination.
    Dnat {
        /// Family of the new address.
        family: Family,
        /// Where the new address is.
        address: Reg,
        /// Where the new port is.
        port: Reg,
    },
    /// Translates the source to the address of the outgoing interface.
    Masquerade {
        /// See [`nat_flags`].
        flags: u32,
    },
    /// Refuses the packet with an answer.
    Reject(RejectWith),
    /// Counts packets and bytes.
    Counter,
    /// Keeps the packet out of connection tracking, and so of address translation; for chains before it
    /// ([`priority::RAW`](super::priority::RAW)).
    Notrack,
}

impl Expr {
    /// The kernel's name of the expression.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::SetMark { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::FibType { .. } => "fib",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Random { .. } => "numgen",
            Self::InSet { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Update { .. } | Self::Remove { .. } => "dynset",
            Self::Verdict(_) => "immediate",
            Self::Dnat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::Notrack => "notrack",
        }
    }

    /// The set or map that it looks into.
    pub const fn set(&self) -> Option<&Name> {
        match self {
            Self::InSet { set, .. } => Some(set),
            Self::Map { map, .. }
            | Self::VerdictMap { map, .. }
            | Self::Update { map, .. }
            | Self::Remove { map, .. } => Some(map),
            _ => None,
        }
    }
}

const VERDICT_REGISTER: u32 = 0;

/// The kernel's number of a register, as the kernel itself writes it: every fourth has a number from the time when
/// registers had 16 bytes (`NFT_REG_1`…), the others count from `NFT_REG32_00`.
const fn number(register: Reg) -> u32 {
    let index = register.0 as u32;
    if index.is_multiple_of(4) { 1 + index / 4 } else { 8 + index }
}

/// Writes the attributes of `expr`.
pub(super) fn push_expr(w: &mut Writer, expr: &Expr) {
    match expr {
        Expr::Payload { header, offset, length, to } => {
            w.be32(1, number(*to));
            w.be32(
                2,
                match header {
                    Header::Network => 1,
                    Header::Transport => 2,
                },
            );
            w.be32(3, *offset);
            w.be32(4, *length);
        }
        Expr::Meta { key, to } => {
            w.be32(2, meta(*key));
            w.be32(1, number(*to));
        }
        Expr::SetMark { from } => {
            w.be32(2, meta(Meta::Mark));
            w.be32(3, number(*from));
        }
        Expr::Ct { key, to } => {
            w.be32(1, number(*to));
            w.be32(
                2,
                match key {
                    Ct::State => 0,
                    Ct::Status => 2,
                },
            );
        }
        Expr::FibType { side, to } => push_fib(w, *side, *to),
        Expr::Bitwise { from, to, mask, xor } => {
            w.be32(1, number(*from));
            w.be32(2, number(*to));
            w.be32(3, mask.as_bytes().len() as u32);
            w.value(4, mask);
            w.value(5, xor);
        }
        Expr::Cmp { is, register, value } => {
            w.be32(1, number(*register));
            w.be32(
                2,
                match is {
                    Is::Equal => 0,
                    Is::Not => 1,
                },
            );
            w.value(3, value);
        }
        Expr::Random { modulus, offset, to } => push_random(w, *modulus, *offset, *to),
        Expr::InSet { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } => push_lookup(w, expr),
        Expr::Update { map, key, value, timeout } => push_update(w, map, (*key, *value), Some(*timeout)),
        Expr::Remove { map, key, value } => push_update(w, map, (*key, *value), None),
        Expr::Verdict(verdict) => push_immediate(w, verdict),
        Expr::Dnat { family, address, port } => push_dnat(w, *family, *address, *port),
        Expr::Masquerade { flags: 0 } | Expr::Counter | Expr::Notrack => {}
        Expr::Masquerade { flags } => w.be32(1, *flags),
        Expr::Reject(with) => push_reject(w, *with),
    }
}

const fn meta(key: Meta) -> u32 {
    match key {
        Meta::Mark => 3,
        Meta::InputName => 6,
        Meta::OutputName => 7,
        Meta::NfProto => 15,
        Meta::L4Proto => 16,
    }
}

fn push_fib(w: &mut Writer, side: Side, to: Reg) {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    w.be32(1, number(to));
    w.be32(2, RESULT_ADDRESS_TYPE);
    w.be32(
        3,
        match side {
            Side::Source => 1,
            Side::Destination => 2,
        },
    );
}

fn push_random(w: &mut Writer, modulus: u32, offset: u32, to: Reg) {
    const RANDOM: u32 = 1;
    w.be32(1, number(to));
    w.be32(2, modulus);
    w.be32(3, RANDOM);
    w.be32(4, offset);
}

fn push_lookup(w: &mut Writer, expr: &Expr) {
    const INVERT: u32 = 1;
    let (set, key, to, is) = match expr {
        Expr::InSet { set, key, is } => (set, key, None, *is),
        Expr::Map { map, key, to } => (map, key, Some(number(*to)), Is::Equal),
        Expr::VerdictMap { map, key } => (map, key, Some(VERDICT_REGISTER), Is::Equal),
        _ => return,
    };
    w.string(1, set);
    w.be32(2, number(*key));
    if let Some(to) = to {
        w.be32(3, to);
    }
    if is == Is::Not {
        w.be32(5, INVERT);
    }
}

/// An update with a timeout; a deletion without one.
fn push_update(w: &mut Writer, map: &str, (key, value): (Reg, Reg), timeout: Option<Duration>) {
    const UPDATE: u32 = 1;
    const DELETE: u32 = 2;
    w.string(1, map);
    w.be32(3, if timeout.is_some() { UPDATE } else { DELETE });
    w.be32(4, number(key));
    w.be32(5, number(value));
    if let Some(timeout) = timeout {
        w.bytes(6, &(timeout.as_millis() as u64).to_be_bytes());
    }
}

fn push_immediate(w: &mut Writer, verdict: &Verdict) {
    w.be32(1, VERDICT_REGISTER);
    w.nest(2, |w| push_verdict(w, verdict));
}

fn push_dnat(w: &mut Writer, family: Family, address: Reg, port: Reg) {
    const DESTINATION: u32 = 1;
    w.be32(1, DESTINATION);
    w.be32(2, nfproto(family));
    w.be32(3, number(address));
    w.be32(5, number(port));
}

fn push_reject(w: &mut Writer, with: RejectWith) {
    const ICMP: u32 = 0;
    const TCP_RESET: u32 = 1;
    // Codes of ICMP (RFC 792) and ICMPv6 (RFC 4443) for "port unreachable".
    let (kind, code) = match with {
        RejectWith::PortUnreachable(Family::V4) => (ICMP, 3),
        RejectWith::PortUnreachable(Family::V6) => (ICMP, 4),
        RejectWith::TcpReset => (TCP_RESET, 0),
    };
    w.be32(1, kind);
    w.bytes(2, &[code]);
}
