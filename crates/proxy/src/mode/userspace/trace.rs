//! What the rules and the pools do with a packet: for tests. A rule that is not understood is an error.

use std::{collections::BTreeSet, net::IpAddr};

use podwire_kernel::iptables::{AddressKind, CtStates, Is, Match, Rule, TableState, Target};
use podwire_model::{Family, IpNet, Protocol};

use super::relay::FakePorts;
use crate::plan::Backend;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sends it.
    pub source: IpAddr,
    /// Where to.
    pub destination: (IpAddr, u16),
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// By which interface it comes in; ignored for what this machine sends.
    pub input: &'a str,
}

/// What may become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of ours concerns it.
    Untouched,
    /// Refused with an answer.
    Rejected,
    /// Vanishes.
    Dropped,
    /// Goes to one of these, with this machine's address as its source.
    Relayed(BTreeSet<Backend>),
}

/// A machine: its tables of one family, its addresses, its local ports.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Table `nat`.
    pub nat: &'a TableState,
    /// Table `filter`.
    pub filter: &'a TableState,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// Its local ports.
    pub ports: &'a FakePorts,
}

/// How the rules of one chain ended.
enum End {
    Accepted,
    Dropped,
    Rejected,
    Redirected(u16),
}

/// A packet on its way.
struct Walk<'a> {
    machine: &'a Machine<'a>,
    packet: Packet<'a>,
    /// Made by this machine, and has not come in by an interface since.
    leaving: bool,
    redirected: bool,
}

/// What becomes of `packet`. One from an address of the machine is one that it made itself.
///
/// # Errors
/// In words: a rule that is not understood, or a packet that is redirected to a port where nobody listens.
pub fn trace(machine: &Machine<'_>, packet: Packet<'_>) -> Result<Fate, String> {
    let leaving = machine.addresses.contains(&packet.source);
    let mut walk = Walk { machine, packet, leaving, redirected: false };
    let mut chains = Vec::new();
    match walk.chain(machine.nat, if leaving { "OUTPUT" } else { "PREROUTING" })? {
        Some(End::Redirected(port)) => {
            let loopback = match Family::of(&packet.source) {
                Family::V4 => IpAddr::from([127, 0, 0, 1]),
                Family::V6 => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
            };
            let of_interface = machine.addresses.iter().find(|address| address.is_ipv4() == loopback.is_ipv4());
            let address = if leaving { loopback } else { *of_interface.ok_or("no address to redirect to")? };
            walk.packet.destination = (address, port);
            walk.redirected = true;
        }
        Some(End::Dropped | End::Rejected) => return Err("dropped in table nat".to_owned()),
        Some(End::Accepted) | None => {}
    }
    let to_us = walk.redirected || walk.is_local(packet.destination.0);
    if leaving {
        chains.push("OUTPUT");
    }
    if to_us {
        chains.push("INPUT");
    } else if !leaving {
        chains.push("FORWARD");
    }
    for chain in chains {
        walk.leaving = chain == "OUTPUT";
        match walk.chain(machine.filter, chain)? {
            Some(End::Dropped) => return Ok(Fate::Dropped),
            Some(End::Rejected) => return Ok(Fate::Rejected),
            Some(End::Redirected(_)) => return Err("redirected in table filter".to_owned()),
            Some(End::Accepted) | None => {}
        }
    }
    if !walk.redirected {
        return Ok(Fate::Untouched);
    }
    let key = (packet.protocol, Family::of(&packet.source), walk.packet.destination.1);
    let pool = machine.ports.open_ports().get(&key).ok_or_else(|| format!("nobody listens on {key:?}"))?;
    Ok(Fate::Relayed(pool.lock().backends().iter().copied().collect()))
}

impl Walk<'_> {
    /// Follows a chain; `None` when it came to its end or returned.
    fn chain(&self, table: &TableState, name: &str) -> Result<Option<End>, String> {
        for text in table.rules(name) {
            let unknown = |problem: String| format!("chain {name}: {problem}: {text}");
            let rule: Rule = text.parse().map_err(unknown)?;
            if !self.matches(&rule).map_err(unknown)? {
                continue;
            }
            match rule.target {
                None => {}
                Some(Target::Return) => return Ok(None),
                Some(Target::Accept) => return Ok(Some(End::Accepted)),
                Some(Target::Drop) => return Ok(Some(End::Dropped)),
                Some(Target::Reject) => return Ok(Some(End::Rejected)),
                Some(Target::Redirect(port)) => return Ok(Some(End::Redirected(port))),
                Some(Target::Chain(jump)) if !jump.goto => {
                    if let Some(end) = self.chain(table, &jump.chain)? {
                        return Ok(Some(end));
                    }
                }
                Some(_) => return Err(unknown("unknown target".to_owned())),
            }
        }
        Ok(None)
    }

    fn matches(&self, rule: &Rule) -> Result<bool, String> {
        let Packet { source, destination: (destination, port), protocol, input } = self.packet;
        let net = |wanted: &Option<Is<IpNet>>, address| {
            wanted.as_ref().is_none_or(|net| net.value.contains(&address) != net.not)
        };
        let comes_by = |wanted: &Is<String>| {
            let found = match wanted.value.strip_suffix('+') {
                Some(prefix) => input.starts_with(prefix),
                None => input == wanted.value,
            };
            (found && !self.leaving) != wanted.not
        };
        let mut all = net(&rule.source, source)
            && net(&rule.destination, destination)
            && rule.input.as_ref().is_none_or(comes_by)
            && rule.protocol.as_ref().is_none_or(|wanted| (wanted.value == protocol.lower()) != wanted.not);
        if rule.output.is_some() {
            return Err("unknown match -o".to_owned());
        }
        for more in &rule.matches {
            all &= match more {
                Match::Comment(_) => true,
                Match::Ports(ports) if ports.source.is_none() => {
                    let to = |wanted: &Is<(u16, u16)>| (wanted.value.0..=wanted.value.1).contains(&port) != wanted.not;
                    ports.protocol == protocol.lower() && ports.destination.as_ref().is_none_or(to)
                }
                Match::AddressType { source: None, destination: Some(kind) } if kind.value == AddressKind::Local => {
                    self.is_local(destination) != kind.not
                }
                Match::CtState(wanted) => {
                    let new = wanted.value.contains(CtStates::NEW);
                    let redirected = self.redirected && wanted.value.contains(CtStates::DNAT);
                    (new || redirected) != wanted.not
                }
                other => return Err(format!("unknown match {other:?}")),
            };
        }
        Ok(all)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.machine.addresses.contains(&address) || address.is_loopback()
    }
}
