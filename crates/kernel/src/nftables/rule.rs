//! A builder of rules that spells the usual statements as expressions.

use podwire_model::{Family, IpNet, Name, Protocol};

use super::{Ct, Expr, Field, Header, Is, Meta, Reg, RejectWith, Side, Value, Verdict};

/// A field of a packet (or a number made for it) that a lookup key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// `ip saddr` or `ip6 saddr`.
    Source,
    /// `ip daddr` or `ip6 daddr`.
    Destination,
    /// `meta l4proto`.
    L4Proto,
    /// `th dport`.
    DestinationPort,
    /// `numgen random mod M offset O`.
    Random {
        /// The number is smaller than this, before the offset is added.
        modulus: u32,
        /// Added to the number.
        offset: u32,
    },
}

/// A rule: match statements in order, then what to do. Addresses are those of `family`, whatever the table's family is
/// (in an `inet` table begin with [`Rule::of_family`]).
///
/// ```
/// use podwire_kernel::nftables::{Is, Rule, nat_flags};
/// use podwire_model::Family;
///
/// // ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"
/// let rule = Rule::new(Family::V4)
///     .source(Is::Equal, "10.244.0.0/16".parse().unwrap())
///     .destination(Is::Not, "224.0.0.0/4".parse().unwrap())
///     .masquerade(nat_flags::FULLY_RANDOM)
///     .comment("flanneld masq");
/// assert_eq!(rule.expressions.len(), 7);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The expressions, evaluated in order.
    pub expressions: Vec<Expr>,
    /// Shown by `nft list`; at most 127 bytes.
    pub comment: Option<String>,
    family: Family,
}

impl Rule {
    /// An empty rule about packets of `family`.
    pub const fn new(family: Family) -> Self {
        Self { expressions: Vec::new(), comment: None, family }
    }

    /// Sets the comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Appends any expression.
    #[must_use]
    pub fn expr(mut self, expr: Expr) -> Self {
        self.expressions.push(expr);
        self
    }

    /// `meta nfproto ipv4` (or `ipv6`): for `inet` tables.
    #[must_use]
    pub fn of_family(self) -> Self {
        let number = super::Family::from(self.family).number();
        self.expr(Expr::Meta { key: Meta::NfProto, to: Reg(0) }).cmp(Is::Equal, &[number])
    }

    /// `ip saddr [!=] NET`. A network of the other family is a mistake that the kernel does not notice.
    #[must_use]
    pub fn source(self, is: Is, net: IpNet) -> Self {
        self.address(Side::Source, is, net)
    }

    /// `ip daddr [!=] NET`.
    #[must_use]
    pub fn destination(self, is: Is, net: IpNet) -> Self {
        self.address(Side::Destination, is, net)
    }

    /// `udp dport PORT` (or `tcp`, `sctp`; `sport` for [`Side::Source`]).
    #[must_use]
    pub fn port(self, protocol: Protocol, side: Side, port: u16) -> Self {
        let offset = match side {
            Side::Source => 0,
            Side::Destination => 2,
        };
        self.expr(Expr::Meta { key: Meta::L4Proto, to: Reg(0) })
            .cmp(Is::Equal, &[protocol.number()])
            .expr(Expr::Payload { header: Header::Transport, offset, length: 2, to: Reg(0) })
            .cmp(Is::Equal, &port.to_be_bytes())
    }

    /// `fib saddr type [!=] local` (or `daddr`): the address is one of this machine's.
    #[must_use]
    pub fn local(self, side: Side, is: Is) -> Self {
        const RTN_LOCAL: u32 = 2;
        self.expr(Expr::FibType { side, to: Reg(0) }).cmp(is, &RTN_LOCAL.to_ne_bytes())
    }

    /// `iifname [!=] NAME`.
    #[must_use]
    pub fn input_name(self, is: Is, name: &str) -> Self {
        self.expr(Expr::Meta { key: Meta::InputName, to: Reg(0) }).cmp(is, &interface(name))
    }

    /// `iifname [!=] "PREFIX*"`.
    #[must_use]
    pub fn input_prefix(self, is: Is, prefix: &str) -> Self {
        let prefix = prefix.as_bytes().get(..15).unwrap_or(prefix.as_bytes());
        self.expr(Expr::Meta { key: Meta::InputName, to: Reg(0) }).cmp(is, prefix)
    }

    /// `oifname [!=] NAME`.
    #[must_use]
    pub fn output_name(self, is: Is, name: &str) -> Self {
        self.expr(Expr::Meta { key: Meta::OutputName, to: Reg(0) }).cmp(is, &interface(name))
    }

    /// `meta mark & MASK == VALUE` (or `!=`).
    #[must_use]
    pub fn mark(self, is: Is, mask: u32, value: u32) -> Self {
        self.expr(Expr::Meta { key: Meta::Mark, to: Reg(0) })
            .bitwise(&mask.to_ne_bytes(), &[0; 4])
            .cmp(is, &value.to_ne_bytes())
    }

    /// `meta mark set meta mark | BITS`.
    #[must_use]
    pub fn set_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, bits)
    }

    /// `meta mark set meta mark & ~BITS`.
    #[must_use]
    pub fn clear_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, 0)
    }

    /// `ct state` has one of `bits` (see [`Ct::State`]).
    #[must_use]
    pub fn ct_state(self, bits: u32) -> Self {
        self.expr(Expr::Ct { key: Ct::State, to: Reg(0) }).bitwise(&bits.to_ne_bytes(), &[0; 4]).cmp(Is::Not, &[0; 4])
    }

    /// `ct status` has one of `bits` (see [`ct_status`](super::ct_status)).
    #[must_use]
    pub fn ct_status(self, bits: u32) -> Self {
        self.expr(Expr::Ct { key: Ct::Status, to: Reg(0) }).bitwise(&bits.to_ne_bytes(), &[0; 4]).cmp(Is::Not, &[0; 4])
    }

    /// Goes on only if the key made of `fields` is (not) in `set`.
    #[must_use]
    pub fn in_set(self, is: Is, fields: &[Key], set: impl Into<Name>) -> Self {
        self.key(fields).expr(Expr::InSet { set: set.into(), key: Reg(0), is })
    }

    /// `FIELDS vmap @MAP`.
    #[must_use]
    pub fn verdict_map(self, fields: &[Key], map: impl Into<Name>) -> Self {
        self.key(fields).expr(Expr::VerdictMap { map: map.into(), key: Reg(0) })
    }

    /// `KEY map @MAP`, where the map's data is one number: loads it, for use in a key or as data. The rule ends if the
    /// key maps to nothing.
    ///
    /// The number is put into the packet mark, read from there, and the mark put back: the `nft` tool (at least to 1.0.6)
    /// ends with an assertion where a mapped value is part of a key. It prints
    /// `meta mark set KEY map @MAP meta mark set meta mark`, and the number as `meta mark`.
    #[must_use]
    pub fn number(self, map: impl Into<Name>, key: Reg, to: Reg) -> Self {
        let saved = Reg::SAVED_MARK;
        self.expr(Expr::Map { map: map.into(), key, to })
            .expr(Expr::Meta { key: Meta::Mark, to: saved })
            .expr(Expr::SetMark { from: to })
            .expr(Expr::Meta { key: Meta::Mark, to })
            .expr(Expr::SetMark { from: saved })
    }

    /// `FIELDS map @NUMBERS vmap @VERDICTS`: the verdict that the number stands for that the fields map to; see
    /// [`Rule::number`] for what the `nft` tool prints.
    #[must_use]
    pub fn numbered_verdict(self, fields: &[Key], numbers: impl Into<Name>, verdicts: impl Into<Name>) -> Self {
        self.key(fields).number(numbers, Reg(0), Reg(0)).expr(Expr::VerdictMap { map: verdicts.into(), key: Reg(0) })
    }

    /// `dnat to KEY map @MAP`, where the key is in registers from `key` on and the map's data is an address and a port.
    #[must_use]
    pub fn dnat_by(self, map: impl Into<Name>, key: Reg) -> Self {
        let family = self.family;
        let port = key.after(Field::address(family));
        self.expr(Expr::Map { map: map.into(), key, to: key }).expr(Expr::Dnat { family, address: key, port })
    }

    /// `dnat to FIELDS map @MAP`, where the map's data is an address and a port.
    #[must_use]
    pub fn dnat_map(self, fields: &[Key], map: impl Into<Name>) -> Self {
        self.key(fields).dnat_by(map, Reg(0))
    }

    /// `masquerade`, with [`nat_flags`].
    #[must_use]
    pub fn masquerade(self, flags: u32) -> Self {
        self.expr(Expr::Masquerade { flags })
    }

    /// `reject`: port unreachable.
    #[must_use]
    pub fn reject(self) -> Self {
        let family = self.family;
        self.expr(Expr::Reject(RejectWith::PortUnreachable(family)))
    }

    /// `notrack`.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.expr(Expr::Notrack)
    }

    /// `accept`.
    #[must_use]
    pub fn accept(self) -> Self {
        self.expr(Expr::Verdict(Verdict::Accept))
    }

    /// `drop`.
    #[must_use]
    pub fn drop(self) -> Self {
        self.expr(Expr::Verdict(Verdict::Drop))
    }

    /// `return`.
    #[must_use]
    pub fn return_(self) -> Self {
        self.expr(Expr::Verdict(Verdict::Return))
    }

    /// `jump CHAIN`.
    #[must_use]
    pub fn jump(self, chain: impl Into<Name>) -> Self {
        self.expr(Expr::Verdict(Verdict::Jump(chain.into())))
    }

    /// `goto CHAIN`.
    #[must_use]
    pub fn goto(self, chain: impl Into<Name>) -> Self {
        self.expr(Expr::Verdict(Verdict::Goto(chain.into())))
    }

    fn address(self, side: Side, is: Is, net: IpNet) -> Self {
        let (network, mask) = match net {
            IpNet::V4(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
            IpNet::V6(net) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
        };
        let zeroes = vec![0; mask.len()];
        let loaded = self.load_address(side, Reg(0));
        let masked = if net.prefix_len() == net.max_prefix_len() { loaded } else { loaded.bitwise(&mask, &zeroes) };
        masked.cmp(is, &network)
    }

    fn load_address(self, side: Side, to: Reg) -> Self {
        let offset = match (self.family, side) {
            (Family::V4, Side::Source) => 12,
            (Family::V4, Side::Destination) => 16,
            (Family::V6, Side::Source) => 8,
            (Family::V6, Side::Destination) => 24,
        };
        let length = address_length(self.family) as u32;
        self.expr(Expr::Payload { header: Header::Network, offset, length, to })
    }

    fn key(self, fields: &[Key]) -> Self {
        self.load(fields, Reg(0))
    }

    /// Loads `fields` one after the other from register `to` on: the key of a lookup.
    #[must_use]
    pub fn load(mut self, fields: &[Key], mut to: Reg) -> Self {
        for field in fields {
            let next = match field {
                Key::Source | Key::Destination => to.after(Field::address(self.family)),
                _ => to.after(Field::Mark),
            };
            self = match *field {
                Key::Source => self.load_address(Side::Source, to),
                Key::Destination => self.load_address(Side::Destination, to),
                Key::L4Proto => self.expr(Expr::Meta { key: Meta::L4Proto, to }),
                Key::DestinationPort => {
                    self.expr(Expr::Payload { header: Header::Transport, offset: 2, length: 2, to })
                }
                Key::Random { modulus, offset } => self.expr(Expr::Random { modulus, offset, to }),
            };
            to = next;
        }
        self
    }

    fn change_mark(self, keep: u32, set: u32) -> Self {
        self.expr(Expr::Meta { key: Meta::Mark, to: Reg(0) })
            .bitwise(&keep.to_ne_bytes(), &set.to_ne_bytes())
            .expr(Expr::SetMark { from: Reg(0) })
    }

    fn bitwise(self, mask: &[u8], xor: &[u8]) -> Self {
        let (mask, xor) = (Value::from_bytes(mask), Value::from_bytes(xor));
        self.expr(Expr::Bitwise { from: Reg(0), to: Reg(0), mask, xor })
    }

    fn cmp(self, is: Is, value: &[u8]) -> Self {
        self.expr(Expr::Cmp { is, register: Reg(0), value: Value::from_bytes(value) })
    }
}

const fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// An interface name as the kernel compares it: 16 bytes, zero padded.
fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    padded
}
