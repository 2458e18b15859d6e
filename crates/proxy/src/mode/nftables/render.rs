//! The nftables language of a plan: tables, chains, maps and their elements. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

use podwire_kernel::nftables::{
    Batch, Chain, ChainKind, Datum, Field, Hook, Is, Key, Rule, Set, SetData, Side, Table, Value, Verdict, nat_flags,
    priority,
};
use podwire_model::{Family, IpNet, Name, Protocol};

use crate::{
    mode::Settings,
    plan::{Action, Backend, Entry, Frontend, Masquerade, Treatment},
};

/// The table's name, in the families ip and ip6. Whatever is in it is ours.
pub const TABLE: &str = "podwire";

/// Endpoints for outside traffic are numbered from here on, those for all other traffic from zero.
pub const OUTSIDE_OFFSET: u32 = 1 << 16;

const MARK: &str = "mark-for-masquerade";
const REJECT: &str = "reject-it";
const SERVICES: &str = "services";
const FROM_OUTSIDE: &str = "from-outside";

/// The maps and sets of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// Service address, protocol, port → what to do.
    Services,
    /// The same for traffic from outside, where that is treated in another way.
    ServicesOutside,
    /// Protocol, node port → what to do.
    NodePorts,
    /// The same for traffic from outside, where that is treated in another way.
    NodePortsOutside,
    /// Service address, protocol, port, number → endpoint.
    Endpoints,
    /// Protocol, node port, number → endpoint.
    NodePortEndpoints,
    /// Cluster IPs: their other ports are refused.
    ClusterIps,
    /// Endpoint address twice: packets of an endpoint to itself.
    Hairpin,
}

impl Map {
    /// All of them, endpoints before the verdicts that lead to them.
    pub const ALL: [Self; 8] = [
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::ClusterIps,
        Self::Hairpin,
        Self::Services,
        Self::ServicesOutside,
        Self::NodePorts,
        Self::NodePortsOutside,
    ];

    /// The name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::ServicesOutside => "services-outside",
            Self::NodePorts => "nodeports",
            Self::NodePortsOutside => "nodeports-outside",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
        }
    }

    /// The verdict map for an entry.
    pub const fn verdicts(entry: &Entry, outside: bool) -> Self {
        match (entry, outside) {
            (Entry::Address(_), false) => Self::Services,
            (Entry::Address(_), true) => Self::ServicesOutside,
            (Entry::NodePort(_), false) => Self::NodePorts,
            (Entry::NodePort(_), true) => Self::NodePortsOutside,
        }
    }

    /// The map of endpoints for an entry.
    pub const fn endpoints(entry: &Entry) -> Self {
        match entry {
            Entry::Address(_) => Self::Endpoints,
            Entry::NodePort(_) => Self::NodePortEndpoints,
        }
    }

    /// The map as the kernel is told of it, with room for `size` elements.
    pub fn set(self, family: Family, size: u32) -> Set {
        use Field::{InetProto, InetService, Mark};
        let address = Field::address(family);
        let endpoint = || SetData::Fields(vec![address, InetService]);
        let (key, data) = match self {
            Self::Services | Self::ServicesOutside => (vec![address, InetProto, InetService], SetData::Verdict),
            Self::NodePorts | Self::NodePortsOutside => (vec![InetProto, InetService], SetData::Verdict),
            Self::Endpoints => (vec![address, InetProto, InetService, Mark], endpoint()),
            Self::NodePortEndpoints => (vec![InetProto, InetService, Mark], endpoint()),
            Self::ClusterIps => (vec![address], SetData::None),
            Self::Hairpin => (vec![address, address], SetData::None),
        };
        Set { name: self.name().into(), key, data, size: Some(size), comment: Some(self.comment().to_owned()) }
    }

    /// The size it is made with at least. The kernel lays out its hash table once, for that size.
    pub const fn smallest_size(self) -> u32 {
        match self {
            Self::Endpoints => 1 << 16,
            _ => 1 << 13,
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Self::Services => "Service address to the chain for its number of endpoints",
            Self::ServicesOutside => "external addresses with externalTrafficPolicy Local",
            Self::NodePorts => "node port to the chain for its number of endpoints",
            Self::NodePortsOutside => "node ports with externalTrafficPolicy Local",
            Self::Endpoints => "the n-th endpoint of a Service address",
            Self::NodePortEndpoints => "the n-th endpoint of a node port",
            Self::ClusterIps => "cluster IPs; ports that no Service has are refused",
            Self::Hairpin => "endpoints of this node, for their packets to themselves",
        }
    }
}

/// The chain that picks one of `count` endpoints: one for each distinct number and way, not one for each Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pick {
    /// Whether the key is a node port.
    pub node_port: bool,
    /// Whether it picks from the endpoints for outside traffic.
    pub outside: bool,
    /// Whose source is replaced.
    pub masquerade: Masquerade,
    /// Whether a client always gets the same endpoint.
    pub sticky: bool,
    /// How many endpoints there are.
    pub count: u32,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.node_port { "nodeport" } else { "vip" })?;
        f.write_str(if self.outside { "-outside" } else { "" })?;
        f.write_str(match self.masquerade {
            Masquerade::OffCluster => "",
            Masquerade::Always => "-masq",
            Masquerade::Never => "-nomasq",
        })?;
        f.write_str(if self.sticky { "-sticky" } else { "" })?;
        write!(f, "-{}", self.count)
    }
}

/// The name is not that of a [`Pick`] chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPick;

impl FromStr for Pick {
    type Err = NotAPick;

    fn from_str(name: &str) -> Result<Self, NotAPick> {
        let mut words = name.split('-');
        let mut pick = match words.next() {
            Some("vip") => Self::default(),
            Some("nodeport") => Self { node_port: true, ..Self::default() },
            _ => return Err(NotAPick),
        };
        for word in words {
            match word {
                "outside" => pick.outside = true,
                "masq" => pick.masquerade = Masquerade::Always,
                "nomasq" => pick.masquerade = Masquerade::Never,
                "sticky" => pick.sticky = true,
                count => pick.count = count.parse().map_err(|_| NotAPick)?,
            }
        }
        if pick.to_string() == name { Ok(pick) } else { Err(NotAPick) }
    }
}

impl Default for Pick {
    fn default() -> Self {
        Self { node_port: false, outside: false, masquerade: Masquerade::OffCluster, sticky: false, count: 0 }
    }
}

impl Pick {
    /// The pick for an entry, or `None` if there is nothing to pick from.
    pub fn of(frontend: &Frontend, treatment: &Treatment, outside: bool) -> Option<Self> {
        let Action::Balance { backends, masquerade, .. } = action(treatment, outside)? else { return None };
        Some(Self {
            node_port: matches!(frontend.entry, Entry::NodePort(_)),
            outside,
            masquerade: *masquerade,
            sticky: treatment.affinity.is_some(),
            count: backends.len() as u32,
        })
    }

    /// Makes the chain.
    pub fn add(&self, batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
        let chain: Name = self.to_string().into();
        batch.add_chain(table, Chain::regular(chain.clone()));
        match self.masquerade {
            Masquerade::Never => {}
            Masquerade::Always => batch.add_rule(table, chain.clone(), Rule::new(family).jump(MARK)),
            Masquerade::OffCluster => {
                if let Some(rule) = not_a_pod(family, settings) {
                    batch.add_rule(table, chain.clone(), rule.jump(MARK));
                }
            }
        }
        let (modulus, offset) = (self.count, if self.outside { OUTSIDE_OFFSET } else { 0 });
        let number = if self.sticky { Key::SourceHash { modulus, offset } } else { Key::Random { modulus, offset } };
        let rule = if self.node_port {
            let key = [Key::L4Proto, Key::DestinationPort, number];
            Rule::new(family).dnat_map(&key, Map::NodePortEndpoints.name())
        } else {
            let key = [Key::Destination, Key::L4Proto, Key::DestinationPort, number];
            Rule::new(family).dnat_map(&key, Map::Endpoints.name())
        };
        batch.add_rule(table, chain, rule);
    }
}

/// What a treatment does with inside or outside traffic; `None` if outside traffic is treated like inside traffic.
pub fn action(treatment: &Treatment, outside: bool) -> Option<&Action> {
    if outside { treatment.outside.as_ref() } else { Some(&treatment.inside) }
}

/// The verdict that leads traffic to what is to be done with it.
pub fn verdict(frontend: &Frontend, treatment: &Treatment, outside: bool) -> Option<Verdict> {
    Some(match action(treatment, outside)? {
        Action::Reject => Verdict::Goto(REJECT.into()),
        Action::Drop => Verdict::Drop,
        Action::Balance { .. } => Verdict::Goto(Pick::of(frontend, treatment, outside)?.to_string().into()),
    })
}

/// The key of a frontend in its verdict map.
pub fn frontend_key(frontend: &Frontend) -> Value {
    let (protocol, port) = (Datum::Proto(frontend.protocol.number()), Datum::Port(frontend.port));
    match frontend.entry {
        Entry::Address(address) => Value::concat(&[Datum::Addr(address), protocol, port]),
        Entry::NodePort(_) => Value::concat(&[protocol, port]),
    }
}

/// The key of a frontend's endpoint in its endpoint map. `number` counts from zero.
pub fn endpoint_key(frontend: &Frontend, outside: bool, number: u32) -> Value {
    let (protocol, port) = (Datum::Proto(frontend.protocol.number()), Datum::Port(frontend.port));
    let number = Datum::Mark(number + if outside { OUTSIDE_OFFSET } else { 0 });
    match frontend.entry {
        Entry::Address(address) => Value::concat(&[Datum::Addr(address), protocol, port, number]),
        Entry::NodePort(_) => Value::concat(&[protocol, port, number]),
    }
}

/// The frontend in a key of the endpoint map `map`.
pub fn frontend_of(map: Map, key: &Value, family: Family) -> Option<Frontend> {
    let fields = key.split(&map.set(family, 0).key)?;
    let (entry, protocol, port) = match (map, fields.as_slice()) {
        (Map::Endpoints, [Datum::Addr(address), Datum::Proto(protocol), Datum::Port(port), _]) => {
            (Entry::Address(*address), *protocol, *port)
        }
        (Map::NodePortEndpoints, [Datum::Proto(protocol), Datum::Port(port), _]) => {
            (Entry::NodePort(family), *protocol, *port)
        }
        _ => return None,
    };
    let protocol =
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == protocol)?;
    Some(Frontend { entry, protocol, port })
}

/// An endpoint as data of an endpoint map.
pub fn backend_value(backend: &Backend) -> Value {
    Value::concat(&[Datum::Addr(backend.address), Datum::Port(backend.port)])
}

/// An endpoint from the data of an endpoint map.
pub fn backend_of(value: &Value, family: Family) -> Option<Backend> {
    match value.split(&[Field::address(family), Field::InetService])?.as_slice() {
        [Datum::Addr(address), Datum::Port(port)] => Some(Backend { address: *address, port: *port }),
        _ => None,
    }
}

/// The key of an address in [`Map::Hairpin`].
pub fn hairpin_key(address: IpAddr) -> Value {
    Value::concat(&[Datum::Addr(address), Datum::Addr(address)])
}

/// The part that does not depend on Services: maps (without elements), base chains and what they call. It is also what
/// a later run compares, so it must not depend on anything but `family` and `settings`.
pub fn constant(batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
    for chain in [MARK, REJECT, FROM_OUTSIDE, SERVICES] {
        batch.add_chain(table, Chain::regular(chain));
    }
    let rule = || Rule::new(family);
    let mark = settings.masquerade_mark;
    batch.add_rule(table, MARK, rule().set_mark_bits(mark));
    batch.add_rule(table, REJECT, rule().reject());
    service_chains(batch, table, family, settings);

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

/// The chains that look traffic up: what comes from outside first in the maps of its own.
fn service_chains(batch: &mut Batch, table: &Table, family: Family, settings: &Settings) {
    let rule = || Rule::new(family);
    let address_key = [Key::Destination, Key::L4Proto, Key::DestinationPort];
    let port_key = [Key::L4Proto, Key::DestinationPort];
    let to_node = || {
        let local = rule().local(Side::Destination, Is::Equal);
        // Node ports do not listen on loopback addresses: answers could not come back.
        loopback(family).map_or(local.clone(), |net| local.destination(Is::Not, net))
    };

    batch.add_rule(table, FROM_OUTSIDE, rule().verdict_map(&address_key, Map::ServicesOutside.name()));
    batch.add_rule(table, FROM_OUTSIDE, to_node().verdict_map(&port_key, Map::NodePortsOutside.name()));

    let outside = not_a_pod(family, settings).unwrap_or_else(rule).local(Side::Source, Is::Not);
    batch.add_rule(table, SERVICES, outside.jump(FROM_OUTSIDE));
    batch.add_rule(table, SERVICES, rule().verdict_map(&address_key, Map::Services.name()));
    let unknown_port = rule().in_set(Is::Equal, &[Key::Destination], Map::ClusterIps.name());
    batch.add_rule(table, SERVICES, unknown_port.goto(REJECT).comment("a port that no Service has"));
    batch.add_rule(table, SERVICES, to_node().verdict_map(&port_key, Map::NodePorts.name()));
}

/// A rule that goes on if the source is in none of the pod ranges; `None` if no range of the family is known.
fn not_a_pod(family: Family, settings: &Settings) -> Option<Rule> {
    settings
        .detect_local
        .ranges(family)
        .fold(None, |rule, net| Some(rule.unwrap_or_else(|| Rule::new(family)).source(Is::Not, *net)))
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
    constant(&mut batch, &table, family, settings);
    for map in Map::ALL {
        batch.add_set(&table, map.set(family, 0));
    }
    for (masquerade, sticky) in
        [(Masquerade::Always, false), (Masquerade::Never, true), (Masquerade::OffCluster, false)]
    {
        let pick = Pick { node_port: sticky, outside: sticky, masquerade, sticky, count: 1 };
        pick.add(&mut batch, &table, family, settings);
    }
    format!("Kubernetes Services, podwire layout {:016x}", podwire_kernel::stable_hash(format!("{batch:?}").bytes()))
}
