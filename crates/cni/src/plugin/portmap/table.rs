//! What is in the kernel, as values: one table a family, whose rules never change, and the elements of an attachment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_kernel::nftables::{
    self, Batch, Chain, ChainKind, Datum, Element, Field, Hook, Is, Key, Mapped, Rule, Set, SetData, SetKind, Side,
    Table, Value, ct_status, priority,
};
use podwire_model::Family;

use super::config::{Config, Mapping};
use crate::elements::Held;

pub const NAME: &str = "podwire-portmap";

/// The map of ports of one address of the node.
pub const ADDRESSES: &str = "addresses";
/// The map of ports of all its addresses.
pub const PORTS: &str = "ports";
/// The containers that ports lead to.
pub const CONTAINERS: &str = "containers";
/// Source and destination of what must be masqueraded to be answered.
const MASQUERADE: &str = "masquerade";
/// Destinations for which everything that is mapped is masqueraded.
const MASQUERADE_ALL: &str = "masquerade-all";
/// All of them.
pub const SETS: [&str; 5] = [ADDRESSES, PORTS, CONTAINERS, MASQUERADE, MASQUERADE_ALL];

const HOSTPORTS: &str = "hostports";
const HOOKS: [(&str, Hook); 2] = [("prerouting", Hook::Prerouting), ("output", Hook::Output)];
const POSTROUTING: &str = "postrouting";
const GUARD: &str = "guard";

/// The table of a family.
pub fn table(family: Family) -> Table {
    Table::new(family.into(), NAME)
}

/// One transaction that makes the table with its rules, or, where they are there, makes the rules anew. Elements stay.
pub fn layout(family: Family) -> Batch {
    let table = table(family);
    let mut batch = Batch::new();
    batch.add_table(&table, Some("ports of the node that lead to containers"));
    for set in sets(family) {
        batch.add_set(&table, set);
    }
    let chains = chains(family);
    for (chain, _) in &chains {
        batch.add_chain(&table, chain.clone());
        batch.flush_chain(&table, chain.name.clone());
    }
    for (chain, rules) in chains {
        for rule in rules {
            batch.add_rule(&table, chain.name.clone(), rule);
        }
    }
    batch
}

fn sets(family: Family) -> [Set; 5] {
    let address = Field::address(family);
    let port = [Field::InetProto, Field::InetService];
    let target = || SetData::Fields(vec![address, Field::InetService]);
    let set = |name: &str, key: &[Field], data| Set {
        name: name.into(),
        key: key.to_vec(),
        data,
        kind: SetKind::Plain,
        size: None,
        comment: None,
    };
    [
        set(ADDRESSES, &[address, port[0], port[1]], target()),
        set(PORTS, &port, target()),
        set(CONTAINERS, &[address], SetData::None),
        set(MASQUERADE, &[address, address], SetData::None),
        set(MASQUERADE_ALL, &[address], SetData::None),
    ]
}

/// The chains with their rules.
pub fn chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    let rule = || Rule::new(family);
    let mut chains = vec![(
        Chain::regular(HOSTPORTS),
        vec![
            rule().dnat_map(&[Key::Destination, Key::L4Proto, Key::DestinationPort], ADDRESSES),
            rule().dnat_map(&[Key::L4Proto, Key::DestinationPort], PORTS),
        ],
    )];
    for (name, hook) in HOOKS {
        let to_the_node = rule().local(Side::Destination, Is::Equal).jump(HOSTPORTS);
        chains.push((Chain::base(name, ChainKind::Nat, hook, priority::DSTNAT), vec![to_the_node]));
    }
    let masquerade = vec![
        rule().in_set(Is::Equal, &[Key::Source, Key::Destination], MASQUERADE).masquerade(0),
        rule().ct_status(ct_status::DST_NAT).in_set(Is::Equal, &[Key::Destination], MASQUERADE_ALL).masquerade(0),
    ];
    chains.push((Chain::base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, priority::SRCNAT), masquerade));
    if family == Family::V4 {
        // `route_localnet`, which 127.0.0.1 needs to reach containers, would let them reach the node's 127.0.0.0/8.
        let loopback = nftables_net(Ipv4Addr::new(127, 0, 0, 0), 8);
        let guard = rule().input_name(Is::Not, "lo").destination(Is::Equal, loopback).drop();
        chains.push((Chain::base(GUARD, ChainKind::Filter, Hook::Prerouting, priority::RAW), vec![guard]));
    }
    chains
}

fn nftables_net(address: Ipv4Addr, prefix: u8) -> podwire_model::IpNet {
    podwire_model::IpNet::new_assert(address.into(), prefix)
}

/// The elements of the attachment `owner` for the container's address `target`; none without a mapping.
pub fn elements(config: &Config, target: IpAddr, owner: &str) -> Vec<Held> {
    let mut held: Vec<Held> = Vec::new();
    for mapping in config.mappings_of(Family::of(&target)) {
        let (set, key) = key_of(mapping);
        let to = Value::concat(&[Datum::Addr(target), Datum::Port(mapping.container_port)]);
        if !held.iter().any(|(other, element)| (*other, element.key) == (set, key)) {
            held.push((set, Element::map(key, Mapped::Value(to))));
        }
    }
    if !held.is_empty() {
        let wanted = |set: &str| match set {
            MASQUERADE => config.snat && !config.masquerade_all,
            MASQUERADE_ALL => config.snat && config.masquerade_all,
            _ => true,
        };
        held.extend(keys_of(target).into_iter().filter(|(set, _)| wanted(set)).map(|(s, key)| (s, Element::key(key))));
    }
    for (_, element) in &mut held {
        element.comment = Some(owner.into());
    }
    held
}

/// Where a mapping is.
pub fn key_of(mapping: &Mapping) -> (&'static str, Value) {
    let (protocol, port) = (Datum::Proto(mapping.protocol.number()), Datum::Port(mapping.host_port));
    match mapping.one_address() {
        Some(ip) => (ADDRESSES, Value::concat(&[Datum::Addr(ip), protocol, port])),
        None => (PORTS, Value::concat(&[protocol, port])),
    }
}

/// Where the elements about a container's address are, besides its mappings.
pub fn keys_of(target: IpAddr) -> [(&'static str, Value); 4] {
    let loopback = match target {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let one = Value::concat(&[Datum::Addr(target)]);
    let from = |source| Value::concat(&[Datum::Addr(source), Datum::Addr(target)]);
    [(CONTAINERS, one), (MASQUERADE, from(target)), (MASQUERADE, from(loopback)), (MASQUERADE_ALL, one)]
}

/// The container's address that a mapping leads to, or that another element is about.
pub fn target_of(family: Family, (set, element): &Held) -> Option<IpAddr> {
    let address = Field::address(family);
    let split = match (*set, &element.data) {
        (ADDRESSES | PORTS, Mapped::Value(value)) => value.split(&[address, Field::InetService])?,
        (MASQUERADE, _) => element.key.split(&[address, address])?.split_off(1),
        (CONTAINERS | MASQUERADE_ALL, _) => element.key.split(&[address])?,
        _ => return None,
    };
    match split.first()? {
        Datum::Addr(address) => Some(*address),
        _ => None,
    }
}

/// Whether the table has these rules and no others.
pub fn has_rules(nftables: &mut dyn nftables::Nftables, family: Family) -> podwire_kernel::Result<bool> {
    let found = nftables.rules(&table(family))?;
    Ok(chains(family).iter().all(|(chain, rules)| {
        let found: Vec<_> = found.iter().filter(|info| info.chain == chain.name).collect();
        found.len() == rules.len() && found.iter().zip(rules).all(|(info, rule)| info.does(rule))
    }))
}
