//! What becomes of a packet, found by doing what the kernel does with rules, sets and virtual servers.
//!
//! For tests: the packet is the first of a connection. A rule that this machine does not know is an error, never a guess.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use podwire_kernel::{
    ipset::Entry,
    iptables::{AddressKind, CtStates, Is, Match, Rule, Table, TableState, Target},
    route::Route as _,
};
use podwire_model::{Family, IpNet};

use super::{DEVICE, kernel::Fake};
use crate::plan::Backend;

pub use crate::mode::trace::{Fate, Packet, Unknown};

/// Everything that may become of `packet` in `kernel`.
///
/// # Errors
/// [`Unknown`] for rules that the tracer cannot evaluate.
pub fn trace(kernel: &Fake, packet: Packet<'_>) -> Result<BTreeSet<Fate>, Unknown> {
    let mut route = kernel.route.clone();
    route.fail_every(0);
    let device = route.link(DEVICE).ok().flatten().map(|link| link.index);
    let addresses = route.addresses(None).unwrap_or_default();
    let (vips, own): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| Some(address.device) == device);
    let [vips, own] = [vips, own].map(|list| list.iter().map(|address| address.net.addr()).collect());
    Machine { kernel, packet, vips, own, mark: 0 }.fates()
}

/// How the rules of one hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    Rejected,
    Masqueraded,
}

struct Machine<'a> {
    kernel: &'a Fake,
    packet: Packet<'a>,
    /// The addresses of Services that are here.
    vips: Vec<IpAddr>,
    /// All others that are here.
    own: Vec<IpAddr>,
    mark: u32,
}

impl Machine<'_> {
    fn fates(&mut self) -> Result<BTreeSet<Fate>, Unknown> {
        let made_here = self.packet.input.is_none();
        let begin = if made_here { "OUTPUT" } else { "PREROUTING" };
        for table in [Table::Mangle, Table::Nat] {
            if let Some(fate) = self.hook(table, begin)? {
                return Ok([fate].into());
            }
        }
        let arrives = self.is_local(&self.packet.destination);
        // IPVS is asked before the filter of what is made here, and after the one of what arrives.
        if !made_here {
            if let Some(fate) = self.hook(Table::Filter, if arrives { "INPUT" } else { "FORWARD" })? {
                return Ok([fate].into());
            }
            if !arrives {
                return Ok([Fate::Untouched].into());
            }
        }
        let to = SocketAddr::new(self.packet.destination, self.packet.port);
        let Some((_, destinations)) = self.kernel.ipvs.find(self.mark, self.packet.protocol, to) else {
            let refused = if made_here { self.hook(Table::Filter, "OUTPUT")? } else { None };
            return Ok([refused.unwrap_or(Fate::Untouched)].into());
        };
        let mut fates = BTreeSet::new();
        for destination in destinations.iter().filter(|destination| destination.weight > 0) {
            (self.packet.destination, self.packet.port) = (destination.address.ip(), destination.address.port());
            let to = Backend { address: self.packet.destination, port: self.packet.port };
            let before = self.mark;
            let masqueraded = self.chain(Table::Nat, "POSTROUTING")? == Some(End::Masqueraded);
            self.mark = before;
            fates.insert(Fate::Sent { to, masqueraded });
        }
        if fates.is_empty() {
            fates.insert(Fate::Rejected);
        }
        Ok(fates)
    }

    /// The rules of one hook: what they decided, unless the packet goes on.
    fn hook(&mut self, table: Table, chain: &str) -> Result<Option<Fate>, Unknown> {
        Ok(match self.chain(table, chain)? {
            Some(End::Dropped) => Some(Fate::Dropped),
            Some(End::Rejected) => Some(Fate::Rejected),
            Some(End::Accepted | End::Masqueraded) | None => None,
        })
    }

    /// Evaluates a chain; `None` when it came to its end or returned.
    fn chain(&mut self, table: Table, chain: &str) -> Result<Option<End>, Unknown> {
        let state: TableState = self.kernel.iptables.table(Family::of(&self.packet.source), table);
        for text in state.rules(chain) {
            let unknown = |problem: String| Unknown { chain: chain.to_owned(), rule: text.clone(), problem };
            let rule: Rule = text.parse().map_err(unknown)?;
            if !self.matches(&rule).map_err(unknown)? {
                continue;
            }
            match &rule.target {
                None => {}
                Some(Target::Chain(jump)) if !jump.goto && state.chains.contains_key(&jump.chain) => {
                    if let Some(end) = self.chain(table, &jump.chain)? {
                        return Ok(Some(end));
                    }
                }
                Some(Target::Return) => return Ok(None),
                Some(Target::Accept) => return Ok(Some(End::Accepted)),
                Some(Target::Drop) => return Ok(Some(End::Dropped)),
                Some(Target::Reject) => return Ok(Some(End::Rejected)),
                Some(Target::Masquerade { .. }) => return Ok(Some(End::Masqueraded)),
                Some(Target::Mark { value, mask }) => self.mark = self.mark & !mask ^ value,
                Some(Target::MapMark { set, directions }) => {
                    self.mark = self.look_up(set, directions).map_err(unknown)?.flatten().unwrap_or(self.mark);
                }
                Some(_) => return Err(unknown("the tracer does not know this target".to_owned())),
            }
        }
        Ok(None)
    }

    fn matches(&self, rule: &Rule) -> Result<bool, String> {
        if rule.output.is_some() {
            return Err("the tracer does not know -o".to_owned());
        }
        let packet = self.packet;
        let within = |address: IpAddr| move |net: &IpNet| net.contains(&address);
        let by = |name: &String| {
            let input = packet.input.unwrap_or_default();
            name.strip_suffix('+').map_or(input == name, |prefix| packet.input.is_some() && input.starts_with(prefix))
        };
        let mut all = is(rule.source.as_ref(), within(packet.source))
            && is(rule.destination.as_ref(), within(packet.destination))
            && is(rule.input.as_ref(), by)
            && is(rule.protocol.as_ref(), |name| name == packet.protocol.lower());
        for more in &rule.matches {
            all = all && self.is_match(more)?;
        }
        Ok(all)
    }

    fn is_match(&self, more: &Match) -> Result<bool, String> {
        Ok(match more {
            Match::Comment(_) => true,
            Match::Mark(mark) => is(Some(mark), |(value, mask)| self.mark & mask == *value),
            Match::AddressType { source, destination } => {
                let kind = |address: IpAddr| {
                    move |kind: &AddressKind| self.is_local(&address) == (*kind == AddressKind::Local)
                };
                is(source.as_ref(), kind(self.packet.source)) && is(destination.as_ref(), kind(self.packet.destination))
            }
            Match::CtState(states) => is(Some(states), |states| states.contains(CtStates::NEW)),
            Match::Set(set) => {
                let (name, directions) = &set.value;
                self.look_up(name, directions)?.is_some() != set.not
            }
            Match::Ports(_) | Match::Random(_) | Match::Recent(_) => {
                return Err("the tracer does not know this match".to_owned());
            }
        })
    }

    /// The mark of what the set holds for the packet, if it holds something.
    fn look_up(&self, set: &str, directions: &str) -> Result<Option<Option<u32>>, String> {
        let (set, entries) = self.kernel.ipset.table().get(set).ok_or_else(|| format!("there is no set {set}"))?;
        let Packet { source, destination, protocol, port, .. } = self.packet;
        let found = entries.iter().find(|(entry, _)| match **entry {
            Entry::Address(address) => directions == "dst" && address == destination,
            Entry::Port(held) => directions == "dst" && held == port,
            Entry::AddressPort(address, of, held) => {
                directions == "dst,dst" && (address, of, held) == (destination, protocol, port)
            }
            Entry::AddressPortNet(address, of, held, net) => {
                directions == "dst,dst,src"
                    && (address, of, held) == (destination, protocol, port)
                    && net.contains(&source)
            }
        });
        let dimensions = set.kind.name().matches(',').count();
        if directions.matches(',').count() != dimensions {
            return Err(format!("{directions} does not fit {}", set.kind.name()));
        }
        Ok(found.map(|(_, mark)| *mark))
    }

    fn is_local(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.own.contains(address) || self.vips.contains(address)
    }
}

/// Whether a condition holds; it does if there is none.
fn is<T>(condition: Option<&Is<T>>, test: impl Fn(&T) -> bool) -> bool {
    condition.is_none_or(|is| test(&is.value) != is.not)
}
