//! Rules as nf_tables expressions, just as iptables-nft 1.8.9 writes them and the kernel lists them.

use podwire_model::{Family, IpNet};

use super::attribute::Attributes;
use crate::iptables::{AddressKind, CtStates, Is, Jump, Match, Ports, Recent, Rule, Target};

/// Attribute and register numbers of `linux/netfilter/nf_tables.h`.
const LIST_ELEM: u16 = 1;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// Verdicts (`NFT_*`, `NF_*`).
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
const ACCEPT: i32 = 1;
const DROP: i32 = 0;

/// A rule, ready to be sent and to be compared with what the kernel lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The expressions (`NFTA_RULE_EXPRESSIONS`).
    pub expressions: Vec<u8>,
    /// The protocol that matches and targets of iptables may count on (`NFTA_RULE_COMPAT`); not listed.
    pub protocol: Option<u32>,
}

/// The rule in nf_tables' terms; `None` for what only the program can write.
pub fn encode(rule: &Rule, family: Family) -> Option<Encoded> {
    let mut list = Expressions::default();
    for (key, name) in [(META_IIFNAME, &rule.input), (META_OIFNAME, &rule.output)] {
        if let Some(name) = name {
            list.meta(key);
            list.compare(name.not, &interface(&name.value));
        }
    }
    let mut protocol = None;
    if let Some(name) = &rule.protocol {
        let number = number(&name.value)?;
        protocol = (!name.not).then_some(number.into());
        list.meta(META_L4PROTO);
        list.compare(name.not, &[number]);
    }
    for (net, is_source) in [(&rule.source, true), (&rule.destination, false)] {
        if let Some(net) = net {
            list.address(net, is_source, family)?;
        }
    }
    for more in &rule.matches {
        list.match_(more, family)?;
    }
    list.counter();
    if let Some(target) = &rule.target {
        list.target(target, family)?;
    }
    Some(Encoded { expressions: list.0.0, protocol })
}

/// What the kernel compares with: a name with its end, or a prefix.
fn interface(name: &str) -> Vec<u8> {
    match name.strip_suffix('+') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => [name.as_bytes(), &[0]].concat(),
    }
}

fn number(protocol: &str) -> Option<u8> {
    match protocol {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        _ => None,
    }
}

#[derive(Default)]
struct Expressions(Attributes);

impl Expressions {
    fn push(&mut self, name: &str, data: impl FnOnce(&mut Attributes)) {
        self.0.nest(LIST_ELEM, |element| {
            element.string(1, name);
            element.nest(2, data);
        });
    }

    fn meta(&mut self, key: u32) {
        self.push("meta", |data| {
            data.be32(2, key);
            data.be32(1, REGISTER);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.push("payload", |data| {
            data.be32(1, REGISTER);
            data.be32(2, base);
            data.be32(3, offset);
            data.be32(4, length);
        });
    }

    fn compare(&mut self, not: bool, value: &[u8]) {
        self.push("cmp", |data| {
            data.be32(1, REGISTER);
            data.be32(2, if not { NOT_EQUAL } else { EQUAL });
            data.nest(3, |nest| nest.bytes(1, value));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.push("bitwise", |data| {
            data.be32(1, REGISTER);
            data.be32(2, REGISTER);
            data.be32(3, mask.len() as u32);
            data.be32(6, 0);
            data.nest(4, |nest| nest.bytes(1, mask));
            data.nest(5, |nest| nest.bytes(1, &vec![0; mask.len()]));
        });
    }

    /// A network of the packet's family: only the bytes that its prefix covers are loaded.
    fn address(&mut self, net: &Is<IpNet>, is_source: bool, family: Family) -> Option<()> {
        let (address, netmask, offset) = match (net.value, family) {
            (IpNet::V4(net), Family::V4) => {
                (net.network().octets().to_vec(), net.netmask().octets().to_vec(), if is_source { 12 } else { 16 })
            }
            (IpNet::V6(net), Family::V6) => {
                (net.network().octets().to_vec(), net.netmask().octets().to_vec(), if is_source { 8 } else { 24 })
            }
            _ => return None,
        };
        let bits = usize::from(net.value.prefix_len());
        if bits == 0 {
            return (!net.not).then_some(());
        }
        let whole = bits.is_multiple_of(8);
        let length = if whole { bits / 8 } else { address.len() };
        self.payload(NETWORK_HEADER, offset, length as u32);
        if !whole {
            self.mask(&netmask);
        }
        self.compare(net.not, address.get(..length)?);
        Some(())
    }

    /// A match of iptables itself, with its private structure.
    fn extension(&mut self, kind: &str, name: &str, revision: u32, info: &[u8]) {
        self.push(kind, |data| {
            data.string(1, name);
            data.be32(2, revision);
            let aligned = info.len().next_multiple_of(8);
            data.bytes(3, &[info, &vec![0; aligned - info.len()]].concat());
        });
    }

    fn match_(&mut self, more: &Match, family: Family) -> Option<()> {
        match more {
            Match::Comment(text) => {
                let mut info = [0; 256];
                info.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
                self.extension("match", "comment", 0, &info);
            }
            Match::Ports(ports) => self.ports(ports)?,
            Match::Mark(mark) => {
                let (value, mask) = mark.value;
                self.meta(META_MARK);
                if mask != u32::MAX {
                    self.mask(&mask.to_ne_bytes());
                }
                self.compare(mark.not, &value.to_ne_bytes());
            }
            Match::AddressType { source, destination } => {
                let kind = |is: &Option<Is<AddressKind>>| match is {
                    None => 0_u16,
                    Some(Is { value: AddressKind::Unicast, .. }) => 1 << 1,
                    Some(Is { value: AddressKind::Local, .. }) => 1 << 2,
                };
                let not = |is: &Option<Is<AddressKind>>| u32::from(is.is_some_and(|is| is.not));
                let flags = not(source) | not(destination) << 1;
                let kinds = [kind(source).to_ne_bytes(), kind(destination).to_ne_bytes()].concat();
                self.extension("match", "addrtype", 1, &[kinds, flags.to_ne_bytes().to_vec()].concat());
            }
            Match::Random(of_2_31) => {
                // Mode 0, no flags; the number; then what another mode would use, as the program happens to fill it.
                let words = [0, *of_2_31, 0, *of_2_31, 0, 0];
                self.extension("match", "statistic", 0, &words.map(u32::to_ne_bytes).concat());
            }
            Match::Recent(recent) => self.recent(recent, family)?,
            Match::CtState(states) => {
                let mut info = [0; 168];
                for (at, value) in [(146, 1_u16), (148, states.not.into()), (150, ct_states(states.value))] {
                    info.get_mut(at..at + 2)?.copy_from_slice(&value.to_ne_bytes());
                }
                self.extension("match", "conntrack", 3, &info);
            }
            Match::Set(_) => return None,
        }
        Some(())
    }

    fn ports(&mut self, ports: &Ports) -> Option<()> {
        let one = |range: Is<(u16, u16)>| (range.value.0 == range.value.1).then_some((range.not, range.value.0));
        let destination = match ports.destination {
            None => None,
            Some(range) => Some(one(range)?),
        };
        match (ports.protocol.as_str(), ports.source, destination) {
            (_, Some(_), _) => return None,
            ("tcp" | "udp", None, Some((not, port))) => {
                self.payload(TRANSPORT_HEADER, 2, 2);
                self.compare(not, &port.to_be_bytes());
            }
            (name @ ("tcp" | "udp"), None, None) => {
                let every = [0, u16::MAX, 0, u16::MAX, 0, 0].map(u16::to_ne_bytes).concat();
                self.extension("match", name, 0, &every);
            }
            ("sctp", None, destination) => {
                let (flags, invert, port) = match destination {
                    Some((not, port)) => (2_u32, if not { 2_u32 } else { 0 }, [port, port]),
                    None => (0, 0, [0, 0]),
                };
                let mut info = [0; 292];
                info[..4].copy_from_slice(&port.map(u16::to_ne_bytes).concat());
                for chunk in 0..4 {
                    info[268 + 3 * chunk] = 0xff;
                }
                info[284..288].copy_from_slice(&flags.to_ne_bytes());
                info[288..292].copy_from_slice(&invert.to_ne_bytes());
                self.extension("match", "sctp", 0, &info);
            }
            _ => return None,
        }
        Some(())
    }

    fn recent(&mut self, recent: &Recent, family: Family) -> Option<()> {
        const CHECK: u8 = 1;
        const SET: u8 = 1 << 1;
        const REAP: u8 = 1 << 5;
        let (name, seconds, flags) = match recent {
            Recent::Set { name } => (name, 0, SET),
            Recent::Check { name, seconds } => (name, *seconds, CHECK | REAP),
        };
        let mut info = [0; 228];
        info[..4].copy_from_slice(&seconds.to_ne_bytes());
        info[8] = flags;
        // 200 bytes with the zero at the end.
        info[10..209].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        let mask = if family == Family::V4 { 4 } else { 16 };
        info[212..212 + mask].fill(0xff);
        self.extension("match", "recent", 1, &info);
        Some(())
    }

    fn counter(&mut self) {
        self.push("counter", |data| {
            data.bytes(1, &[0; 8]);
            data.bytes(2, &[0; 8]);
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.push("immediate", |data| {
            data.be32(1, 0);
            data.nest(2, |nest| {
                nest.nest(2, |verdict| {
                    verdict.bytes(1, &code.to_be_bytes());
                    chain.into_iter().for_each(|chain| verdict.string(2, chain));
                });
            });
        });
    }

    fn target(&mut self, target: &Target, family: Family) -> Option<()> {
        match target {
            Target::Chain(Jump { chain, goto }) => self.verdict(if *goto { GOTO } else { JUMP }, Some(chain)),
            Target::Accept => self.verdict(ACCEPT, None),
            Target::Drop => self.verdict(DROP, None),
            Target::Return => self.verdict(RETURN, None),
            Target::Reject => {
                // Port unreachable, in each family's own list.
                let with: u32 = if family == Family::V4 { 3 } else { 4 };
                self.extension("target", "REJECT", 0, &with.to_ne_bytes());
            }
            Target::Mark { value, mask } => {
                self.extension("target", "MARK", 2, &[value.to_ne_bytes(), mask.to_ne_bytes()].concat());
            }
            Target::Masquerade { random_fully } => {
                let flags: u32 = if *random_fully { 1 << 4 } else { 0 };
                match family {
                    Family::V4 => {
                        let words = [1, flags, 0, 0, 0].map(u32::to_ne_bytes).concat();
                        self.extension("target", "MASQUERADE", 0, &words);
                    }
                    Family::V6 => {
                        let range = [flags.to_ne_bytes().to_vec(), vec![0; 36]].concat();
                        self.extension("target", "MASQUERADE", 0, &range);
                    }
                }
            }
            Target::Dnat(to) => {
                let to: std::net::SocketAddr = to.parse().ok()?;
                let address = match (to.ip(), family) {
                    (std::net::IpAddr::V4(address), Family::V4) => [&address.octets()[..], &[0; 12]].concat(),
                    (std::net::IpAddr::V6(address), Family::V6) => address.octets().to_vec(),
                    _ => return None,
                };
                // Address and port are given; one of each.
                let flags: u32 = 3;
                let port = to.port().to_be_bytes();
                let range = [&flags.to_ne_bytes()[..], &address, &address, &port, &port, &[0; 2]].concat();
                self.extension("target", "DNAT", 2, &range);
            }
            _ => return None,
        }
        Some(())
    }
}

/// `XT_CONNTRACK_STATE_*`.
fn ct_states(states: CtStates) -> u16 {
    let bits = [
        (CtStates::INVALID, 0),
        (CtStates::ESTABLISHED, 1),
        (CtStates::RELATED, 2),
        (CtStates::NEW, 3),
        (CtStates::SNAT, 6),
        (CtStates::DNAT, 7),
        (CtStates::UNTRACKED, 8),
    ];
    bits.iter().filter(|(state, _)| states.contains(*state)).fold(0, |mask, (_, bit)| mask | 1 << bit)
}

/// The expressions of a listed rule with its counters at zero, as [`encode`] makes them.
pub fn without_counts(expressions: &[u8]) -> Vec<u8> {
    /// The beginning of a counter expression: its length, and its name.
    const COUNTER: &[u8] = b"\x2c\x00\x01\x00\x0c\x00\x01\x00counter\x00";
    let mut bytes = expressions.to_vec();
    let mut at = 0;
    while let Some(length) = crate::netlink::u16_at(&bytes, at).filter(|length| *length >= 4) {
        if bytes.get(at..).is_some_and(|element| element.starts_with(COUNTER)) {
            for value in [at + 24, at + 36] {
                if let Some(count) = bytes.get_mut(value..value + 8) {
                    count.fill(0);
                }
            }
        }
        at += usize::from(length).next_multiple_of(4);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_listed_rule_are_taken_for_zero() {
        let encoded = encode(&"-m comment --comment x -j ACCEPT".parse().unwrap(), Family::V4).unwrap();
        let mut listed = encoded.expressions.clone();
        let counter = listed.windows(7).position(|bytes| bytes == b"counter").unwrap();
        listed[counter + 16] = 7;
        listed[counter + 30] = 9;
        assert_ne!(listed, encoded.expressions);
        assert_eq!(without_counts(&listed), encoded.expressions);
    }
}
