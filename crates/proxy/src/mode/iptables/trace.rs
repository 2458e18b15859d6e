//! What rules do with a packet, found by evaluating them as the kernel does.
//!
//! For tests: the packet is the first of a connection, and every choice that is left to chance is taken both ways. A rule
//! that this machine does not know is an error, never a guess.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use podwire_kernel::iptables::{AddressKind, CtStates, Is, Match, Rule, TableState, Target};
use podwire_model::IpNet;

use crate::plan::Backend;

pub use crate::mode::trace::{Fate, Packet, Unknown};

/// The tables that decide.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Table nat.
    pub nat: &'a TableState,
    /// Table filter.
    pub filter: &'a TableState,
}

/// Everything that may become of `packet` on a machine with the addresses `local`.
///
/// # Errors
/// [`Unknown`] for rules that the tracer cannot evaluate.
pub fn trace(tables: Tables<'_>, packet: Packet<'_>, local: &[IpAddr]) -> Result<BTreeSet<Fate>, Unknown> {
    let mut fates = BTreeSet::new();
    let mut choices = Vec::new();
    loop {
        let mut machine = Machine { tables, packet, local, mark: 0, translated: false, choices, next: 0 };
        fates.insert(machine.fate()?);
        // The next way through: what was decided last and can be decided otherwise is.
        choices = machine.choices;
        while choices.pop_if(|taken| *taken).is_some() {}
        match choices.last_mut() {
            Some(last) => *last = true,
            None => return Ok(fates),
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

/// What follows a rule.
enum Next {
    /// The next rule.
    Rule,
    /// The calling chain.
    Return,
    /// The end of the hook.
    End(End),
}

struct Machine<'a> {
    tables: Tables<'a>,
    packet: Packet<'a>,
    local: &'a [IpAddr],
    mark: u32,
    /// The destination was replaced.
    translated: bool,
    /// What was left to chance, as it was decided: the first are given.
    choices: Vec<bool>,
    next: usize,
}

impl Machine<'_> {
    fn fate(&mut self) -> Result<Fate, Unknown> {
        let made_here = self.packet.input.is_none();
        let mut sent = None;
        if let End::Translated(to) = self.hook(self.tables.nat, if made_here { "OUTPUT" } else { "PREROUTING" })? {
            (self.packet.destination, self.packet.port, self.translated) = (to.address, to.port, true);
            sent = Some(to);
        }
        let arrives = self.is_local(&self.packet.destination);
        let mut hooks = Vec::new();
        if made_here {
            hooks.push("OUTPUT");
        }
        match (arrives, made_here) {
            (true, _) => hooks.push("INPUT"),
            (false, false) => hooks.push("FORWARD"),
            (false, true) => {}
        }
        for hook in hooks {
            match self.hook(self.tables.filter, hook)? {
                End::Dropped => return Ok(Fate::Dropped),
                End::Rejected => return Ok(Fate::Rejected),
                _ => {}
            }
        }
        let masqueraded = self.hook(self.tables.nat, "POSTROUTING")? == End::Masqueraded;
        Ok(sent.map_or(Fate::Untouched, |to| Fate::Sent { to, masqueraded }))
    }

    fn hook(&mut self, table: &TableState, chain: &str) -> Result<End, Unknown> {
        Ok(self.chain(table, chain)?.unwrap_or(End::Accepted))
    }

    /// Evaluates a chain; `None` when it came to its end or returned.
    fn chain(&mut self, table: &TableState, chain: &str) -> Result<Option<End>, Unknown> {
        for text in table.rules(chain) {
            let unknown = |problem: String| Unknown { chain: chain.to_owned(), rule: text.clone(), problem };
            let rule: Rule = text.parse().map_err(unknown)?;
            if !self.matches(&rule).map_err(unknown)? {
                continue;
            }
            let next = match &rule.target {
                Some(Target::Chain(jump)) if table.chains.contains_key(&jump.chain) => {
                    match self.chain(table, &jump.chain)? {
                        Some(end) => Next::End(end),
                        None if jump.goto => Next::Return,
                        None => Next::Rule,
                    }
                }
                target => self.act(target.as_ref()).map_err(unknown)?,
            };
            match next {
                Next::Rule => {}
                Next::Return => return Ok(None),
                Next::End(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    fn act(&mut self, target: Option<&Target>) -> Result<Next, String> {
        Ok(match target {
            None => Next::Rule,
            Some(Target::Accept) => Next::End(End::Accepted),
            Some(Target::Drop) => Next::End(End::Dropped),
            Some(Target::Return) => Next::Return,
            Some(Target::Reject) => Next::End(End::Rejected),
            Some(Target::Mark { value, mask }) => {
                self.mark = self.mark & !mask ^ value;
                Next::Rule
            }
            Some(Target::Masquerade { .. }) => Next::End(End::Masqueraded),
            Some(Target::Dnat(to)) => {
                let to: SocketAddr = to.parse().map_err(|_| "not an address and a port".to_owned())?;
                Next::End(End::Translated(Backend { address: to.ip(), port: to.port() }))
            }
            Some(Target::Chain(jump)) => return Err(format!("there is no chain {}", jump.chain)),
            Some(Target::Redirect(_) | Target::MapMark { .. }) => {
                return Err("the tracer does not know this target".to_owned());
            }
        })
    }

    fn matches(&mut self, rule: &Rule) -> Result<bool, String> {
        if rule.output.is_some() {
            return Err("the tracer does not know -o".to_owned());
        }
        let packet = self.packet;
        let within = |address: IpAddr| move |net: &IpNet| net.contains(&address);
        let by = |name: &String| {
            let input = packet.input.unwrap_or_default();
            name.strip_suffix('+').map_or(input == name, |prefix| input.starts_with(prefix) && packet.input.is_some())
        };
        let simple = is(rule.source.as_ref(), within(packet.source))
            && is(rule.destination.as_ref(), within(packet.destination))
            && is(rule.input.as_ref(), by)
            && is(rule.protocol.as_ref(), |name| name == packet.protocol.lower());
        // In order: what comes after a match that fails is not asked.
        for more in &rule.matches {
            if !simple || !self.is_match(more)? {
                return Ok(false);
            }
        }
        Ok(simple)
    }

    fn is_match(&mut self, more: &Match) -> Result<bool, String> {
        Ok(match more {
            Match::Comment(_) => true,
            Match::Ports(ports) => {
                if ports.source.is_some() {
                    return Err("the tracer does not know --sport".to_owned());
                }
                is(ports.destination.as_ref(), |(first, last)| (*first..=*last).contains(&self.packet.port))
            }
            Match::Mark(mark) => is(Some(mark), |(value, mask)| self.mark & mask == *value),
            Match::AddressType { source, destination } => {
                is(source.as_ref(), |kind| self.is_kind(&self.packet.source, *kind))
                    && is(destination.as_ref(), |kind| self.is_kind(&self.packet.destination, *kind))
            }
            Match::CtState(states) => {
                let has = CtStates::NEW.or(if self.translated { CtStates::DNAT } else { CtStates::NEW });
                let any = |wanted: &CtStates| {
                    CtStates::NAMES.iter().any(|(state, _)| has.contains(*state) && wanted.contains(*state))
                };
                is(Some(states), any)
            }
            // The client may have been here before.
            Match::Recent(podwire_kernel::iptables::Recent::Set { .. }) => true,
            Match::Random(_) | Match::Recent(_) => self.chance(),
            Match::Set(_) => return Err("the tracer does not know ipsets".to_owned()),
        })
    }

    fn chance(&mut self) -> bool {
        if self.next == self.choices.len() {
            self.choices.push(false);
        }
        self.next += 1;
        self.choices.get(self.next - 1).copied().unwrap_or_default()
    }

    fn is_local(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.local.contains(address)
    }

    fn is_kind(&self, address: &IpAddr, kind: AddressKind) -> bool {
        self.is_local(address) == (kind == AddressKind::Local)
    }
}

/// Whether a condition holds; it does if there is none.
fn is<T>(condition: Option<&Is<T>>, test: impl Fn(&T) -> bool) -> bool {
    condition.is_none_or(|is| test(&is.value) != is.not)
}
