//! What a table does with a packet, found by evaluating its rules as the kernel does.
//!
//! For tests: the rules are those of the strict fake, the packet is the first of a connection, and every random choice
//! is taken in every possible way. An expression that this machine does not know is an error, never a guess.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use podwire_kernel::nftables::{
    ChainState, Ct, Expr, Header, Hook, Is, Mapped, Meta, Reg, SetKind, Side, TableState, Value, Verdict,
};

use crate::plan::Backend;

pub use crate::mode::trace::Fate;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port it is sent to.
    pub port: u16,
}

/// A rule that this machine cannot evaluate: the table and the tracer have gone apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chain {chain}: {problem}")]
pub struct Unknown {
    /// Where.
    pub chain: String,
    /// What.
    pub problem: String,
}

/// Everything that may become of `packet` on a machine with the addresses `local`. A packet from one of them is one
/// that the machine made itself.
///
/// # Errors
/// [`Unknown`] for rules that the tracer cannot evaluate.
pub fn trace(table: &TableState, packet: Packet, local: &[IpAddr]) -> Result<BTreeSet<Fate>, Unknown> {
    trace_by(table, packet, local, "")
}

/// The same for a packet that comes in by the interface `input`.
///
/// # Errors
/// As [`trace`].
pub fn trace_by(table: &TableState, packet: Packet, local: &[IpAddr], input: &str) -> Result<BTreeSet<Fate>, Unknown> {
    let mut fates = BTreeSet::new();
    let mut choice = 0;
    loop {
        let mut machine = Machine { table, packet, local, input, registers: [0; 64], mark: 0, choice, choices: 1 };
        fates.insert(machine.fate()?);
        choice += 1;
        if choice >= machine.choices {
            return Ok(fates);
        }
    }
}

/// How the rules of one hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    Rejected,
    Translated(Backend),
    Masqueraded,
}

/// What follows an expression.
enum Next {
    /// The next expression.
    Expression,
    /// The next rule.
    Rule,
    /// The calling chain.
    Return,
    /// The end of the hook.
    End(End),
}

struct Machine<'a> {
    table: &'a TableState,
    packet: Packet,
    local: &'a [IpAddr],
    /// Where it came in; empty for what the machine sends.
    input: &'a str,
    registers: [u8; 64],
    mark: u32,
    /// The random number of this run; at most one is asked for.
    choice: u32,
    /// How many different numbers could have come.
    choices: u32,
}

impl Machine<'_> {
    fn fate(&mut self) -> Result<Fate, Unknown> {
        let made_here = self.local.contains(&self.packet.source);
        let sent = match self.hook(if made_here { Hook::Output } else { Hook::Prerouting })? {
            End::Dropped => return Ok(Fate::Dropped),
            End::Rejected => return Ok(Fate::Rejected),
            End::Translated(backend) => {
                self.packet.destination = backend.address;
                self.packet.port = backend.port;
                Some(backend)
            }
            End::Accepted | End::Masqueraded => None,
        };
        if !made_here && !self.local.contains(&self.packet.destination) {
            match self.hook(Hook::Forward)? {
                End::Dropped => return Ok(Fate::Dropped),
                End::Rejected => return Ok(Fate::Rejected),
                _ => {}
            }
        }
        let masqueraded = self.hook(Hook::Postrouting)? == End::Masqueraded;
        Ok(sent.map_or(Fate::Untouched, |to| Fate::Sent { to, masqueraded }))
    }

    fn hook(&mut self, hook: Hook) -> Result<End, Unknown> {
        let is_ours = |chain: &&ChainState| chain.chain.base.is_some_and(|base| base.hook == hook);
        let mut chains: Vec<_> = self.table.chains.values().filter(is_ours).collect();
        chains.sort_by_key(|chain| chain.chain.base.map(|base| base.priority));
        for chain in chains {
            match self.chain(&chain.chain.name)? {
                Some(End::Accepted) | None => {}
                Some(end) => return Ok(end),
            }
        }
        Ok(End::Accepted)
    }

    /// Evaluates a chain; `None` when it came to its end or returned.
    fn chain(&mut self, name: &str) -> Result<Option<End>, Unknown> {
        let unknown = |problem: String| Unknown { chain: name.to_owned(), problem };
        let chain = self.table.chains.get(name).ok_or_else(|| unknown("there is no such chain".to_owned()))?;
        for (_, rule) in &chain.rules {
            for expr in &rule.expressions {
                let next = match self.verdict_of(expr).map_err(unknown)? {
                    Some(verdict) => self.follow(&verdict)?,
                    None => self.evaluate(expr).map_err(unknown)?,
                };
                match next {
                    Next::Expression => {}
                    Next::Rule => break,
                    Next::Return => return Ok(None),
                    Next::End(end) => return Ok(Some(end)),
                }
            }
        }
        Ok(None)
    }

    fn follow(&mut self, verdict: &Verdict) -> Result<Next, Unknown> {
        Ok(match verdict {
            Verdict::Accept => Next::End(End::Accepted),
            Verdict::Drop => Next::End(End::Dropped),
            Verdict::Return => Next::Return,
            Verdict::Jump(chain) => self.chain(chain)?.map_or(Next::Rule, Next::End),
            Verdict::Goto(chain) => self.chain(chain)?.map_or(Next::Return, Next::End),
        })
    }

    /// The verdict of an expression that gives one; `None` for all others and for a verdict map without the key.
    fn verdict_of(&self, expr: &Expr) -> Result<Option<Verdict>, String> {
        match expr {
            Expr::Verdict(verdict) => Ok(Some(verdict.clone())),
            Expr::VerdictMap { map, key } => match self.find(map, *key)? {
                Some(Mapped::Verdict(verdict)) => Ok(Some(verdict.clone())),
                Some(other) => Err(format!("map {map} holds {other:?}")),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    fn evaluate(&mut self, expr: &Expr) -> Result<Next, String> {
        match expr {
            Expr::Payload { header, offset, length, to } => {
                let bytes = self.payload(*header, *offset, *length).ok_or_else(|| format!("unknown {expr:?}"))?;
                self.load(*to, &bytes);
            }
            Expr::Meta { key: Meta::Mark, to } => self.load(*to, &self.mark.to_ne_bytes()),
            Expr::Meta { key: Meta::L4Proto, to } => self.load(*to, &[self.packet.protocol]),
            Expr::Meta { key: Meta::InputName, to } => {
                let mut padded = [0; 16];
                padded.iter_mut().zip(self.input.bytes().take(15)).for_each(|(to, from)| *to = from);
                self.load(*to, &padded);
            }
            Expr::SetMark { from } => {
                self.mark = self.stored(*from, 4).first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            }
            Expr::Ct { key: Ct::State, to } => {
                const NEW: u32 = 8;
                self.load(*to, &NEW.to_ne_bytes());
            }
            Expr::FibType { side, to } => self.load(*to, &self.address_type(*side).to_ne_bytes()),
            Expr::Bitwise { from, to, mask, xor } => {
                let (mask, xor) = (mask.as_bytes(), xor.as_bytes());
                let value = self.stored(*from, mask.len()).to_vec();
                let new: Vec<u8> = value.iter().zip(mask).zip(xor).map(|((v, m), x)| v & m ^ x).collect();
                self.load(*to, &new);
            }
            Expr::Cmp { is, register, value } => {
                let equal = self.stored(*register, value.as_bytes().len()) == value.as_bytes();
                return Ok(if equal == (*is == Is::Equal) { Next::Expression } else { Next::Rule });
            }
            Expr::Random { modulus, offset, to } => {
                // Other numbers are constants: random below one.
                self.choices = self.choices.max(*modulus);
                self.load(*to, &(self.choice % modulus + offset).to_ne_bytes());
            }
            // The tracer's packet is the first of its client, or the test has put into the map what came before.
            Expr::Update { .. } | Expr::Remove { .. } => {}
            Expr::InSet { set, key, is } => {
                let found = self.find(set, *key)?.is_some();
                return Ok(if found == (*is == Is::Equal) { Next::Expression } else { Next::Rule });
            }
            Expr::Map { map, key, to } => match self.find(map, *key)?.cloned() {
                Some(Mapped::Value(value)) => self.load(*to, value.as_bytes()),
                Some(other) => return Err(format!("map {map} holds {other:?}")),
                None => return Ok(Next::Rule),
            },
            Expr::VerdictMap { .. } => return Ok(Next::Rule),
            Expr::Dnat { family, address, port } => {
                let address = match family {
                    podwire_model::Family::V4 => {
                        self.stored(*address, 4).first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into())
                    }
                    podwire_model::Family::V6 => {
                        self.stored(*address, 16).first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into())
                    }
                };
                let port = self.stored(*port, 2).first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                let backend = address.zip(port).map(|(address, port)| Backend { address, port });
                return backend.map(|backend| Next::End(End::Translated(backend))).ok_or_else(|| "bad dnat".to_owned());
            }
            Expr::Masquerade { .. } => return Ok(Next::End(End::Masqueraded)),
            Expr::Reject(_) => return Ok(Next::End(End::Rejected)),
            Expr::Counter => {}
            Expr::Meta { .. } | Expr::Ct { .. } | Expr::Verdict(_) | Expr::Notrack => {
                return Err(format!("unknown {expr:?}"));
            }
        }
        Ok(Next::Expression)
    }

    fn find(&self, set: &str, key: Reg) -> Result<Option<&Mapped>, String> {
        let state = self.table.sets.get(set).ok_or_else(|| format!("there is no set {set}"))?;
        let length = podwire_kernel::nftables::Field::total(&state.set.key);
        let key = Value::from_bytes(self.stored(key, length));
        let element = match state.set.kind {
            SetKind::Intervals => {
                let split = |value: &Value| value.split(&state.set.key).unwrap_or_default();
                let fields = split(&key);
                state.elements.values().find(|element| {
                    let (first, last) = (split(&element.key), element.end.as_ref().map(split).unwrap_or_default());
                    let ranges = first.iter().zip(&last);
                    fields.iter().zip(ranges).all(|(field, (first, last))| first <= field && field <= last)
                })
            }
            SetKind::Plain | SetKind::Dynamic => state.elements.get(&key),
        };
        Ok(element.map(|element| &element.data))
    }

    fn payload(&self, header: Header, offset: u32, length: u32) -> Option<Vec<u8>> {
        let (source, destination) = (octets(self.packet.source), octets(self.packet.destination));
        match (header, offset, length, source.len()) {
            (Header::Network, 12, 4, 4) | (Header::Network, 8, 16, 16) => Some(source),
            (Header::Network, 16, 4, 4) | (Header::Network, 24, 16, 16) => Some(destination),
            (Header::Transport, 2, 2, _) => Some(self.packet.port.to_be_bytes().to_vec()),
            _ => None,
        }
    }

    fn address_type(&self, side: Side) -> u32 {
        const UNICAST: u32 = 1;
        const LOCAL: u32 = 2;
        let address = match side {
            Side::Source => self.packet.source,
            Side::Destination => self.packet.destination,
        };
        if self.local.contains(&address) || address.is_loopback() { LOCAL } else { UNICAST }
    }

    /// Writes to registers; the rest of the last 4-byte register is zeroed, as the kernel does.
    fn load(&mut self, to: Reg, bytes: &[u8]) {
        let begin = usize::from(to.0) * 4;
        let padded = bytes.iter().copied().chain(std::iter::repeat(0)).take(bytes.len().next_multiple_of(4));
        for (register, byte) in self.registers.iter_mut().skip(begin).zip(padded) {
            *register = byte;
        }
    }

    fn stored(&self, from: Reg, length: usize) -> &[u8] {
        let begin = usize::from(from.0) * 4;
        self.registers.get(begin..begin + length).unwrap_or_default()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
