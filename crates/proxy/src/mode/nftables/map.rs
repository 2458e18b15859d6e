//! The maps and sets of a table, and what their elements say. Pure.

use std::net::IpAddr;

use podwire_kernel::nftables::{Datum, Element, Field, Mapped, Set, SetData, SetKind, Value};
use podwire_model::{Family, IpNet, Protocol};

use crate::plan::{Backend, Entry, Frontend};

/// Endpoints for outside traffic are numbered from here on, those for all other traffic from zero.
pub const OUTSIDE_OFFSET: u32 = 1 << 16;

/// The maps and sets of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// Service address, protocol, port, number → endpoint.
    Endpoints,
    /// Protocol, node port, number → endpoint.
    NodePortEndpoints,
    /// Service address, protocol, port, range of sources: who may enter, where not everyone may.
    Allowed,
    /// Endpoint address twice: packets of an endpoint to itself.
    Hairpin,
    /// Service address, protocol, port, 0 or [`OUTSIDE_OFFSET`] → number of a set of endpoints that clients stick to.
    Sticky,
    /// Protocol, node port, 0 or [`OUTSIDE_OFFSET`] → the same.
    NodePortSticky,
    /// Number of a sticky set, number → name of an endpoint in it.
    StickyNumbers,
    /// Number of a sticky set, name of an endpoint in it → endpoint.
    StickyEndpoints,
    /// Client, number of a sticky set → name of its endpoint. Filled by rules.
    Affinity,
    /// Number → what to do, for the numbers in the next four.
    Kinds,
    /// Cluster IPs: their other ports are refused.
    ClusterIps,
    /// Service address, protocol, port → number of what to do.
    Services,
    /// The same for traffic from outside, where that is treated in another way.
    ServicesOutside,
    /// Protocol, node port → number of what to do.
    NodePorts,
    /// The same for traffic from outside, where that is treated in another way.
    NodePortsOutside,
}

impl Map {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Services,
        Self::ServicesOutside,
        Self::NodePorts,
        Self::NodePortsOutside,
        Self::Kinds,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::ClusterIps,
        Self::Hairpin,
        Self::Allowed,
        Self::Sticky,
        Self::NodePortSticky,
        Self::StickyNumbers,
        Self::StickyEndpoints,
        Self::Affinity,
    ];

    /// The name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::ServicesOutside => "services-outside",
            Self::NodePorts => "nodeports",
            Self::NodePortsOutside => "nodeports-outside",
            Self::Kinds => "kinds",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Allowed => "allowed-sources",
            Self::Sticky => "sticky",
            Self::NodePortSticky => "nodeport-sticky",
            Self::StickyNumbers => "sticky-numbers",
            Self::StickyEndpoints => "sticky-endpoints",
            Self::Affinity => "affinity",
        }
    }

    /// Where the number of what to do at an entry is found.
    pub const fn services(entry: &Entry, outside: bool) -> Self {
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

    /// The fields of a key.
    pub fn key(self, family: Family) -> Vec<Field> {
        use Field::{InetProto, InetService, Mark};
        let address = Field::address(family);
        match self {
            Self::Services | Self::ServicesOutside => vec![address, InetProto, InetService],
            Self::NodePorts | Self::NodePortsOutside => vec![InetProto, InetService],
            Self::Kinds => vec![Mark],
            Self::Endpoints | Self::Sticky => vec![address, InetProto, InetService, Mark],
            Self::NodePortEndpoints | Self::NodePortSticky => vec![InetProto, InetService, Mark],
            Self::ClusterIps => vec![address],
            Self::Hairpin => vec![address, address],
            Self::Allowed => vec![address, InetProto, InetService, address],
            Self::StickyNumbers | Self::StickyEndpoints => vec![Mark, Mark],
            Self::Affinity => vec![address, Mark],
        }
    }

    fn data(self, family: Family) -> SetData {
        match self {
            Self::Kinds => SetData::Verdict,
            Self::Endpoints | Self::NodePortEndpoints | Self::StickyEndpoints => {
                SetData::Fields(vec![Field::address(family), Field::InetService])
            }
            Self::ClusterIps | Self::Hairpin | Self::Allowed => SetData::None,
            _ => SetData::Fields(vec![Field::Mark]),
        }
    }

    /// The map as the kernel is told of it, with room for `size` elements.
    pub fn set(self, family: Family, size: u32) -> Set {
        let kind = match self {
            Self::Allowed => SetKind::Intervals,
            Self::Affinity => SetKind::Dynamic,
            _ => SetKind::Plain,
        };
        Set {
            name: self.name().into(),
            key: self.key(family),
            data: self.data(family),
            kind,
            size: Some(size),
            comment: Some(self.comment().to_owned()),
        }
    }

    /// The size it is made with at least. The kernel lays out its hash table once, for that size.
    pub const fn smallest_size(self) -> u32 {
        match self {
            Self::Endpoints | Self::Affinity => 1 << 16,
            _ => 1 << 13,
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Self::Services => "Service address to what is done, by number: see kinds",
            Self::ServicesOutside => "external addresses with externalTrafficPolicy Local",
            Self::NodePorts => "node port to what is done, by number: see kinds",
            Self::NodePortsOutside => "node ports with externalTrafficPolicy Local",
            Self::Kinds => "what the numbers of services and nodeports mean; the last four digits count endpoints",
            Self::Endpoints => "the n-th endpoint of a Service address",
            Self::NodePortEndpoints => "the n-th endpoint of a node port",
            Self::ClusterIps => "cluster IPs; ports that no Service has are refused",
            Self::Hairpin => "endpoints of this node, for their packets to themselves",
            Self::Allowed => "loadBalancerSourceRanges",
            Self::Sticky => "Service address with sessionAffinity to the number of its endpoints' set",
            Self::NodePortSticky => "node port with sessionAffinity to the number of its endpoints' set",
            Self::StickyNumbers => "the n-th endpoint of a set, by name",
            Self::StickyEndpoints => "the endpoint of a set with a name",
            Self::Affinity => "client to the endpoint of a set that it keeps, by name",
        }
    }
}

/// The key of a frontend among the services.
pub fn frontend_key(frontend: &Frontend) -> Value {
    let (protocol, port) = (Datum::Proto(frontend.protocol.number()), Datum::Port(frontend.port));
    match frontend.entry {
        Entry::Address(address) => Value::concat(&[Datum::Addr(address), protocol, port]),
        Entry::NodePort(_) => Value::concat(&[protocol, port]),
    }
}

/// The frontend in a key of one of the maps for services.
pub fn frontend_of(map: Map, key: &Value, family: Family) -> Option<Frontend> {
    match key.split(&map.key(family))?.as_slice() {
        [Datum::Addr(address), Datum::Proto(protocol), Datum::Port(port)] => {
            frontend(Entry::Address(*address), *protocol, *port)
        }
        [Datum::Proto(protocol), Datum::Port(port)] => frontend(Entry::NodePort(family), *protocol, *port),
        _ => None,
    }
}

fn frontend(entry: Entry, protocol: u8, port: u16) -> Option<Frontend> {
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == protocol);
    known.map(|protocol| Frontend { entry, protocol, port })
}

/// The key of a frontend's endpoint in its map of endpoints. `number` counts from zero.
pub fn endpoint_key(frontend: &Frontend, outside: bool, number: u32) -> Value {
    let (protocol, port) = (Datum::Proto(frontend.protocol.number()), Datum::Port(frontend.port));
    let number = Datum::Mark(number + if outside { OUTSIDE_OFFSET } else { 0 });
    match frontend.entry {
        Entry::Address(address) => Value::concat(&[Datum::Addr(address), protocol, port, number]),
        Entry::NodePort(_) => Value::concat(&[protocol, port, number]),
    }
}

/// The frontend, whether it is about outside traffic, and the number in a key of a map of endpoints.
pub fn numbered_of(map: Map, key: &Value, family: Family) -> Option<(Frontend, bool, u32)> {
    let (frontend, number) = match key.split(&map.key(family))?.as_slice() {
        [Datum::Addr(address), Datum::Proto(protocol), Datum::Port(port), Datum::Mark(number)] => {
            (frontend(Entry::Address(*address), *protocol, *port)?, *number)
        }
        [Datum::Proto(protocol), Datum::Port(port), Datum::Mark(number)] => {
            (frontend(Entry::NodePort(family), *protocol, *port)?, *number)
        }
        _ => return None,
    };
    (number < 2 * OUTSIDE_OFFSET).then_some((frontend, number >= OUTSIDE_OFFSET, number % OUTSIDE_OFFSET))
}

/// An endpoint as data of a map of endpoints.
pub fn backend_value(backend: &Backend) -> Value {
    Value::concat(&[Datum::Addr(backend.address), Datum::Port(backend.port)])
}

/// An endpoint from the data of a map of endpoints.
pub fn backend_of(data: &Mapped, family: Family) -> Option<Backend> {
    let Mapped::Value(value) = data else { return None };
    match value.split(&[Field::address(family), Field::InetService])?.as_slice() {
        [Datum::Addr(address), Datum::Port(port)] => Some(Backend { address: *address, port: *port }),
        _ => None,
    }
}

/// A number as data of a map.
pub fn number_value(number: u32) -> Mapped {
    Mapped::Value(Value::concat(&[Datum::Mark(number)]))
}

/// The number that is a map's data.
pub fn number_of(data: &Mapped) -> Option<u32> {
    let Mapped::Value(value) = data else { return None };
    match value.split(&[Field::Mark])?.as_slice() {
        [Datum::Mark(number)] => Some(*number),
        _ => None,
    }
}

/// An element of one of the smaller maps and sets, apart from what it maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// See [`Map::ClusterIps`].
    ClusterIp(IpAddr),
    /// See [`Map::Hairpin`].
    Hairpin(IpAddr),
    /// See [`Map::Allowed`].
    Allowed(Frontend, IpNet),
    /// See [`Map::Sticky`]; whether it is about outside traffic.
    Sticky(Frontend, bool),
    /// See [`Map::StickyNumbers`].
    StickyNumber(u32, u32),
    /// See [`Map::StickyEndpoints`].
    StickyEndpoint(u32, u32),
}

/// What an [`Item`] maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// An element of a set.
    Nothing,
    /// A number.
    Number(u32),
    /// An endpoint.
    Backend(Backend),
}

impl Item {
    /// The maps that items are in.
    pub const MAPS: [Map; 7] = [
        Map::ClusterIps,
        Map::Hairpin,
        Map::Allowed,
        Map::Sticky,
        Map::NodePortSticky,
        Map::StickyNumbers,
        Map::StickyEndpoints,
    ];

    /// Where it is.
    pub const fn map(&self) -> Map {
        match self {
            Self::ClusterIp(_) => Map::ClusterIps,
            Self::Hairpin(_) => Map::Hairpin,
            Self::Allowed(..) => Map::Allowed,
            Self::Sticky(Frontend { entry: Entry::Address(_), .. }, _) => Map::Sticky,
            Self::Sticky(..) => Map::NodePortSticky,
            Self::StickyNumber(..) => Map::StickyNumbers,
            Self::StickyEndpoint(..) => Map::StickyEndpoints,
        }
    }

    /// It as an element.
    pub fn element(&self, data: &Data) -> Element {
        let mapped = match data {
            Data::Nothing => Mapped::Nothing,
            Data::Number(number) => number_value(*number),
            Data::Backend(backend) => Mapped::Value(backend_value(backend)),
        };
        match self {
            Self::ClusterIp(address) => Element::key(Value::concat(&[Datum::Addr(*address)])),
            Self::Hairpin(address) => Element::key(Value::concat(&[Datum::Addr(*address), Datum::Addr(*address)])),
            Self::Allowed(frontend, range) => {
                let key = |source| {
                    let service = [Datum::Proto(frontend.protocol.number()), Datum::Port(frontend.port)];
                    match frontend.entry {
                        Entry::Address(address) => {
                            Value::concat(&[Datum::Addr(address), service[0], service[1], Datum::Addr(source)])
                        }
                        Entry::NodePort(_) => Value::concat(&[service[0], service[1], Datum::Addr(source)]),
                    }
                };
                Element { end: Some(key(range.broadcast())), ..Element::key(key(range.network())) }
            }
            Self::Sticky(frontend, outside) => Element::map(endpoint_key(frontend, *outside, 0), mapped),
            Self::StickyNumber(set, number) | Self::StickyEndpoint(set, number) => {
                Element::map(Value::concat(&[Datum::Mark(*set), Datum::Mark(*number)]), mapped)
            }
        }
    }

    /// The item and its data from an element of `map`; `None` for one that is not of our making.
    pub fn read(map: Map, element: &Element, family: Family) -> Option<(Self, Data)> {
        let fields = element.key.split(&map.key(family))?;
        Some(match (map, fields.as_slice()) {
            (Map::ClusterIps, [Datum::Addr(address)]) => (Self::ClusterIp(*address), Data::Nothing),
            (Map::Hairpin, [Datum::Addr(address), _]) => (Self::Hairpin(*address), Data::Nothing),
            (Map::Allowed, [Datum::Addr(address), Datum::Proto(protocol), Datum::Port(port), Datum::Addr(first)]) => {
                let last = element.end?.split(&map.key(family))?.last().copied()?;
                let Datum::Addr(last) = last else { return None };
                (
                    Self::Allowed(frontend(Entry::Address(*address), *protocol, *port)?, net(*first, last)?),
                    Data::Nothing,
                )
            }
            (Map::Sticky | Map::NodePortSticky, _) => {
                let (frontend, outside, _) = numbered_of(map, &element.key, family)?;
                (Self::Sticky(frontend, outside), Data::Number(number_of(&element.data)?))
            }
            (Map::StickyNumbers, [Datum::Mark(set), Datum::Mark(number)]) => {
                (Self::StickyNumber(*set, *number), Data::Number(number_of(&element.data)?))
            }
            (Map::StickyEndpoints, [Datum::Mark(set), Datum::Mark(name)]) => {
                (Self::StickyEndpoint(*set, *name), Data::Backend(backend_of(&element.data, family)?))
            }
            _ => return None,
        })
    }
}

/// The network that begins and ends with these addresses.
fn net(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let same_bits = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
    let net = IpNet::new(first, same_bits as u8).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_as_they_were_written() {
        let frontend = |entry| Frontend { entry, protocol: Protocol::Sctp, port: 132 };
        for (family, address, range) in [
            (Family::V4, "10.96.0.1", "192.0.2.128/25"),
            (Family::V4, "10.96.0.1", "192.0.2.1/32"),
            (Family::V6, "fd00::1", "fd00:1::/33"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let service = frontend(Entry::Address(address));
            let node_port = frontend(Entry::NodePort(family));
            let backend = Data::Backend(Backend { address, port: 8080 });
            for (item, data) in [
                (Item::ClusterIp(address), Data::Nothing),
                (Item::Hairpin(address), Data::Nothing),
                (Item::Allowed(service, range.parse().unwrap()), Data::Nothing),
                (Item::Sticky(service, true), Data::Number(7)),
                (Item::Sticky(node_port, false), Data::Number(u32::MAX)),
                (Item::StickyNumber(7, 3), Data::Number(9)),
                (Item::StickyEndpoint(7, 9), backend),
            ] {
                let element = item.element(&data);
                assert_eq!(element.key.as_bytes().len(), Field::total(&item.map().key(family)), "{item:?}");
                assert_eq!(Item::read(item.map(), &element, family), Some((item, data)));
            }
        }
    }

    #[test]
    fn what_is_no_item_is_none() {
        let range = |first: &str, last: &str| net(first.parse().unwrap(), last.parse().unwrap());
        assert_eq!(range("192.0.2.1", "192.0.2.2"), None);
        assert_eq!(range("192.0.2.0", "192.0.2.127"), Some("192.0.2.0/25".parse().unwrap()));
        assert_eq!(range("0.0.0.0", "255.255.255.255"), Some("0.0.0.0/0".parse().unwrap()));
        let element = Element::map(Value::concat(&[Datum::Mark(1), Datum::Port(1)]), Mapped::Nothing);
        for map in Item::MAPS {
            assert_eq!(Item::read(map, &element, Family::V6), None, "{map:?}");
        }
    }
}
