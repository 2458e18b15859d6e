//! The rules of a table. Pure.

use std::time::Duration;

use podwire_kernel::nftables::{
    Batch, Chain, ChainKind, Expr, Field, Hook, Is, Key, Reg, Rule, Side, Table, nat_flags, priority,
};
use podwire_model::{Family, IpNet, Name};

use super::{
    kind::{Kind, Numbers, Pick},
    map::{Map, OUTSIDE_OFFSET},
};
use crate::{
    mode::{DetectLocal, NodePortAddresses, Settings},
    plan::Masquerade,
};

/// The table's name, in the families ip and ip6. Whatever is in it is ours.
pub const TABLE: &str = "podwire";

/// The chain of [`Kind::Reject`].
pub const REJECT: &str = "reject-it";
/// The chain of [`Kind::RejectAllowed`].
pub const REJECT_ALLOWED: &str = "reject-allowed";

const MARK: &str = "mark-for-masquerade";
const SERVICES: &str = "services";
const FROM_OUTSIDE: &str = "from-outside";

/// What a rule finds a Service address by, and a node port.
const ADDRESS_KEY: [Key; 3] = [Key::Destination, Key::L4Proto, Key::DestinationPort];
const PORT_KEY: [Key; 2] = [Key::L4Proto, Key::DestinationPort];

/// The chains that others lead to. They do not depend on Services; it is also what a later run compares, so they must
/// not depend on anything but `family` and `settings`.
pub fn inner_chains(batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
    for chain in [MARK, REJECT, REJECT_ALLOWED, FROM_OUTSIDE, SERVICES] {
        batch.add_chain(table, Chain::regular(chain));
    }
    let rule = || Rule::new(family);
    batch.add_rule(table, MARK, rule().set_mark_bits(settings.masquerade_mark));
    batch.add_rule(table, REJECT, rule().reject());
    batch.add_rule(table, REJECT_ALLOWED, not_allowed(family).drop());
    batch.add_rule(table, REJECT_ALLOWED, rule().reject());

    let what_to_do = |rule: Rule, key: &[Key], map: Map| rule.numbered_verdict(key, map.name(), Map::Kinds.name());
    batch.add_rule(table, FROM_OUTSIDE, what_to_do(rule(), &ADDRESS_KEY, Map::ServicesOutside));
    for to_node in to_node(family, settings) {
        batch.add_rule(table, FROM_OUTSIDE, what_to_do(to_node, &PORT_KEY, Map::NodePortsOutside));
    }

    for outside in not_a_pod(family, settings).unwrap_or_else(|| vec![rule()]) {
        batch.add_rule(table, SERVICES, outside.local(Side::Source, Is::Not).jump(FROM_OUTSIDE));
    }
    batch.add_rule(table, SERVICES, what_to_do(rule(), &ADDRESS_KEY, Map::Services));
    let unknown_port = rule().in_set(Is::Equal, &[Key::Destination], Map::ClusterIps.name());
    batch.add_rule(table, SERVICES, unknown_port.goto(REJECT).comment("a port that no Service has"));
    for range in settings.service_ranges.iter().filter(|range| Family::of(&range.addr()) == family) {
        let unknown = rule().destination(Is::Equal, *range);
        batch.add_rule(table, SERVICES, unknown.drop().comment("an address that no Service has"));
    }
    for to_node in to_node(family, settings) {
        batch.add_rule(table, SERVICES, what_to_do(to_node, &PORT_KEY, Map::NodePorts));
    }
}

/// The chains that the kernel calls.
pub fn base_chains(batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
    let rule = || Rule::new(family);
    let mark = settings.masquerade_mark;
    for (name, hook) in [("nat-prerouting", Hook::Prerouting), ("nat-output", Hook::Output)] {
        batch.add_chain(table, Chain::base(name, ChainKind::Nat, hook, priority::DSTNAT));
        batch.add_rule(table, name, rule().jump(SERVICES));
    }
    let chain = "nat-postrouting";
    batch.add_chain(table, Chain::base(chain, ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
    let hairpin = rule().in_set(Is::Equal, &[Key::Source, Key::Destination], Map::Hairpin.name());
    batch.add_rule(table, chain, hairpin.masquerade(nat_flags::FULLY_RANDOM).comment("a pod that reaches itself"));
    batch.add_rule(table, chain, rule().mark(Is::Equal, mark, 0).return_());
    batch.add_rule(table, chain, rule().clear_mark_bits(mark));
    batch.add_rule(table, chain, rule().masquerade(nat_flags::FULLY_RANDOM));

    if settings.drop_invalid {
        const INVALID: u32 = 1;
        let chain = "filter-forward";
        batch.add_chain(table, Chain::base(chain, ChainKind::Filter, Hook::Forward, priority::FILTER));
        batch.add_rule(table, chain, rule().ct_state(INVALID).drop());
    }
}

impl Pick {
    /// Makes the chain.
    pub fn add(&self, batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
        let chain: Name = self.to_string().into();
        batch.add_chain(table, Chain::regular(chain.clone()));
        let mut add = |rule| batch.add_rule(table, chain.clone(), rule);
        if self.restricted {
            add(not_allowed(family).drop());
        }
        match self.masquerade {
            Masquerade::Never => {}
            Masquerade::Always => add(Rule::new(family).jump(MARK)),
            Masquerade::OffCluster => {
                not_a_pod(family, settings).into_iter().flatten().for_each(|rule| add(rule.jump(MARK)));
            }
        }
        if self.sticky > 0 {
            self.sticky_rules(family).into_iter().for_each(add);
        } else {
            let number = Key::Random { modulus: u32::from(self.count), offset: self.offset() };
            let map = if self.node_port { Map::NodePortEndpoints } else { Map::Endpoints };
            add(Rule::new(family).dnat_map(&self.key_with(number), map.name()));
        }
    }

    const fn offset(&self) -> u32 {
        if self.outside { OUTSIDE_OFFSET } else { 0 }
    }

    fn key_with(&self, number: Key) -> Vec<Key> {
        let key: &[Key] = if self.node_port { &PORT_KEY } else { &ADDRESS_KEY };
        key.iter().copied().chain([number]).collect()
    }

    /// A client that is known goes where it went, and its time begins anew; if that endpoint is gone it is forgotten.
    /// Then it is one that is not known, and goes anywhere; the next rule is for when no more clients can be remembered.
    fn sticky_rules(&self, family: Family) -> [Rule; 4] {
        // In registers: client, number of the set, name of the endpoint; then the endpoint itself.
        let client = Reg(0);
        let set = client.after(Field::address(family));
        let name = set.after(Field::Mark);
        let (affinity, value) = (Name::from(Map::Affinity.name()), name);
        let update = || Expr::Update {
            map: affinity.clone(),
            key: client,
            value,
            timeout: Duration::from_secs(u64::from(self.sticky)),
        };
        let sticky = if self.node_port { Map::NodePortSticky } else { Map::Sticky };
        let number = self.key_with(Key::Random { modulus: 1, offset: self.offset() });
        let begin =
            || Rule::new(family).load(&[Key::Source], client).load(&number, set).number(sticky.name(), set, set);
        let to_endpoint = |rule: Rule, before: Option<Expr>| {
            let address = name.after(Field::Mark);
            let port = address.after(Field::address(family));
            let found = rule.expr(Expr::Map { map: Map::StickyEndpoints.name().into(), key: set, to: address });
            before.into_iter().fold(found, Rule::expr).expr(Expr::Dnat { family, address, port })
        };
        let known = || begin().number(affinity.clone(), client, name);
        let random = Key::Random { modulus: u32::from(self.count), offset: 0 };
        let any = || begin().load(&[random], name).number(Map::StickyNumbers.name(), set, name);
        [
            to_endpoint(known(), Some(update())),
            known().expr(Expr::Remove { map: affinity.clone(), key: client, value }),
            to_endpoint(any(), Some(update())),
            to_endpoint(any(), None),
        ]
    }
}

/// A rule that goes on if the source is none of those that may enter.
fn not_allowed(family: Family) -> Rule {
    let key = [Key::Destination, Key::L4Proto, Key::DestinationPort, Key::Source];
    Rule::new(family).in_set(Is::Not, &key, Map::Allowed.name())
}

/// Rules of which one goes on if the packet does not come from a pod of this node (or of the cluster, as far as
/// `detect_local` tells); `None` if nobody can tell.
fn not_a_pod(family: Family, settings: &Settings) -> Option<Vec<Rule>> {
    let rule = Rule::new(family);
    match &settings.detect_local {
        DetectLocal::Unknown => None,
        DetectLocal::Ranges(_) => {
            let mut ranges = settings.detect_local.ranges(family).peekable();
            ranges.peek()?;
            Some(vec![ranges.fold(rule, |rule, range| rule.source(Is::Not, *range))])
        }
        DetectLocal::Interface(name) => Some(vec![rule.input_name(Is::Not, name)]),
        DetectLocal::InterfacePrefix(prefix) => Some(vec![rule.input_prefix(Is::Not, prefix)]),
    }
}

/// Rules of which one goes on if the packet is for an address of this node that answers at node ports.
fn to_node(family: Family, settings: &Settings) -> Vec<Rule> {
    let rule = || Rule::new(family);
    let of_family = |range: &&IpNet| Family::of(&range.addr()) == family;
    let ranges: Vec<IpNet> = match &settings.node_port_addresses {
        NodePortAddresses::Primary => {
            let primary = settings.node_ips.iter().find(|address| Family::of(address) == family);
            return primary.map(|address| rule().destination(Is::Equal, (*address).into())).into_iter().collect();
        }
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Ranges(ranges) => ranges.iter().filter(of_family).copied().collect(),
    };
    let local = |rule: Rule| {
        let local = rule.local(Side::Destination, Is::Equal);
        // Node ports do not listen on loopback addresses: answers could not come back.
        loopback(family).map_or(local.clone(), |net| local.destination(Is::Not, net))
    };
    if ranges.is_empty() {
        return vec![local(rule())];
    }
    ranges.into_iter().map(|range| local(rule().destination(Is::Equal, range))).collect()
}

fn loopback(family: Family) -> Option<IpNet> {
    match family {
        Family::V4 => "127.0.0.0/8".parse().ok(),
        Family::V6 => "::1/128".parse().ok(),
    }
}

/// The table's comment: says whose it is, and a number that changes with everything of the table's layout. A later run
/// keeps a table with the same number and makes any other one anew.
pub fn layout_comment(family: Family, settings: &Settings) -> String {
    let table = Table::new(family.into(), TABLE);
    let mut batch = Batch::new();
    inner_chains(&mut batch, &table, family, settings);
    base_chains(&mut batch, &table, family, settings);
    for map in Map::ALL {
        batch.add_set(&table, map.set(family, 0));
    }
    let picks = [
        Pick { count: 1, ..Pick::default() },
        Pick { node_port: true, masquerade: Masquerade::Always, sticky: 1, count: 1, ..Pick::default() },
        Pick { outside: true, masquerade: Masquerade::Never, restricted: true, sticky: 2, count: 1, ..Pick::default() },
    ];
    let mut numbers = Numbers::default();
    let mut meanings = Vec::new();
    for pick in picks {
        pick.add(&mut batch, &table, family, settings);
        meanings.push(numbers.number(&Kind::Pick(pick)));
    }
    let layout = format!("{batch:?}{meanings:?}");
    format!("Kubernetes Services, podwire layout {:016x}", podwire_kernel::stable_hash(layout.bytes()))
}
