//! Connection tracking: deleting the flows that match a filter.
//!
//! The kernel matches (`CTA_FILTER`, Linux 6.9 and later): nothing is dumped, however many flows there are. An older
//! kernel takes the filter for an incomplete flow (EINVAL); then the flows are listed, and deleted one by one.

use std::net::IpAddr;

use podwire_model::Family;

use crate::{
    Result, ResultExt,
    netlink::{Protocol, Socket, attributes, push_attribute},
};

/// One direction of a flow, as seen on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address and port.
    pub source: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
}

/// A tracked flow: what its first packet looked like, and what answers look like. They differ beyond direction where
/// addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The first packet, before translation.
    pub original: Tuple,
    /// The answers, before translation back.
    pub reply: Tuple,
}

/// Which flows are meant; `None` matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Filter {
    /// The address family.
    pub family: Family,
    /// IP protocol number.
    pub protocol: u8,
    /// The address that the first packet was sent to.
    pub original_destination: Option<IpAddr>,
    /// The port that the first packet was sent to.
    pub original_port: Option<u16>,
    /// The address that answers come from: where the first packet was translated to.
    pub reply_source: Option<IpAddr>,
    /// The port that answers come from.
    pub reply_port: Option<u16>,
}

impl Filter {
    /// Whether a flow is meant.
    pub fn matches(&self, flow: &Flow) -> bool {
        let (to, from) = (flow.original.destination, flow.reply.source);
        flow.protocol == self.protocol
            && Family::of(&to.0) == self.family
            && self.original_destination.is_none_or(|address| address == to.0)
            && self.original_port.is_none_or(|port| port == to.1)
            && self.reply_source.is_none_or(|address| address == from.0)
            && self.reply_port.is_none_or(|port| port == from.1)
    }
}

/// The kernel's connection tracking, or a fake of it.
pub trait Conntrack: Send {
    /// Deletes the flows that match; that there is none is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete(&mut self, filter: &Filter) -> Result<()>;
}

/// Connection tracking of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
}

impl Kernel {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }
}

impl Kernel {
    /// What [`Conntrack::delete`] does on a kernel that cannot match: lists the flows and deletes each that matches.
    fn delete_one_by_one(&mut self, filter: &Filter) -> Result<()> {
        let what = format_args!("list conntrack flows");
        let listed = self.socket.dump(CT_GET, 0, &header(filter.family), what)?;
        let matching = listed.iter().filter(|listed| decode(listed.payload).is_some_and(|flow| filter.matches(&flow)));
        for message in matching {
            // Named as it was listed: by its first direction, in its zone.
            let mut payload = header(filter.family).to_vec();
            for (kind, value) in attributes(message.payload.get(NFGENMSG..).unwrap_or_default()) {
                match kind {
                    cta::TUPLE_ORIG => push_attribute(&mut payload, kind | cta::NESTED, value),
                    cta::ZONE => push_attribute(&mut payload, kind, value),
                    _ => {}
                }
            }
            let what = format_args!("delete a conntrack flow of {filter:?}");
            self.socket.request(CT_DELETE, 0, &payload, what).map(drop).or_gone()?;
        }
        Ok(())
    }
}

impl Conntrack for Kernel {
    fn delete(&mut self, filter: &Filter) -> Result<()> {
        let what = format_args!("delete conntrack flows {filter:?}");
        match self.socket.request(CT_DELETE, 0, &encode(filter), what).map(drop).or_gone() {
            Err(error) if error.is_invalid_argument() => self.delete_one_by_one(filter),
            deleted => deleted,
        }
    }
}

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 1 << 8 | 1;
/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE`.
const CT_DELETE: u16 = 1 << 8 | 2;
/// Bytes of `nfgenmsg`, which comes before the attributes.
const NFGENMSG: usize = 4;

/// `struct nfgenmsg`: version 1 makes the kernel look at the family.
const fn header(family: Family) -> [u8; NFGENMSG] {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    [family as u8, 1, 0, 0]
}

/// A flow as the kernel lists it; `None` for one without ports (ICMP).
fn decode(payload: &[u8]) -> Option<Flow> {
    let body = payload.get(NFGENMSG..)?;
    let nest = |kind| attributes(body).find(|(found, _)| *found == kind).map(|(_, nest)| nest);
    let (original, protocol) = decode_tuple(nest(cta::TUPLE_ORIG)?)?;
    let (reply, _) = decode_tuple(nest(cta::TUPLE_REPLY)?)?;
    Some(Flow { protocol, original, reply })
}

fn decode_tuple(nest: &[u8]) -> Option<(Tuple, u8)> {
    let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], None);
    for (kind, inner) in attributes(nest) {
        for (field, value) in attributes(inner) {
            match (kind, field) {
                // Source and destination of IPv4, then of IPv6.
                (cta::TUPLE_IP, 1..=4) => {
                    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
                    let v6 = || <[u8; 16]>::try_from(value).ok().map(IpAddr::from);
                    addresses[usize::from(field - 1) % 2] = v4().or_else(v6);
                }
                (cta::TUPLE_PROTO, cta::PROTO_NUM) => protocol = value.first().copied(),
                (cta::TUPLE_PROTO, cta::PROTO_SRC_PORT | cta::PROTO_DST_PORT) => {
                    let port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                    ports[usize::from(field - cta::PROTO_SRC_PORT)] = port;
                }
                _ => {}
            }
        }
    }
    let [source, destination] = [0, 1].map(|end| addresses[end].zip(ports[end]));
    Some((Tuple { source: source?, destination: destination? }, protocol?))
}

/// Attribute numbers of `linux/netfilter/nfnetlink_conntrack.h`.
mod cta {
    pub const NESTED: u16 = 0x8000;
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const ZONE: u16 = 18;
    pub const FILTER: u16 = 25;
    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const IP_V4_SRC: u16 = 1;
    pub const IP_V6_SRC: u16 = 3;
    pub const PROTO_NUM: u16 = 1;
    pub const PROTO_SRC_PORT: u16 = 2;
    pub const PROTO_DST_PORT: u16 = 3;
    pub const FILTER_ORIG_FLAGS: u16 = 1;
    pub const FILTER_REPLY_FLAGS: u16 = 2;
    pub const F_IP_SRC: u32 = 1 << 0;
    pub const F_IP_DST: u32 = 1 << 1;
    pub const F_PROTO_NUM: u32 = 1 << 3;
    pub const F_PROTO_SRC_PORT: u32 = 1 << 4;
    pub const F_PROTO_DST_PORT: u32 = 1 << 5;
}

fn encode(filter: &Filter) -> Vec<u8> {
    let mut payload = header(filter.family).to_vec();
    let to = (filter.original_destination, filter.original_port);
    let from = (filter.reply_source, filter.reply_port);
    let (orig, orig_flags) = tuple(filter.protocol, to, false);
    let (reply, reply_flags) = tuple(filter.protocol, from, true);
    push_attribute(&mut payload, cta::TUPLE_ORIG | cta::NESTED, &orig);
    push_attribute(&mut payload, cta::TUPLE_REPLY | cta::NESTED, &reply);
    let mut flags = Vec::new();
    push_attribute(&mut flags, cta::FILTER_ORIG_FLAGS, &orig_flags.to_ne_bytes());
    push_attribute(&mut flags, cta::FILTER_REPLY_FLAGS, &reply_flags.to_ne_bytes());
    push_attribute(&mut payload, cta::FILTER | cta::NESTED, &flags);
    payload
}

/// The source or destination of one direction, and which of its fields count.
fn tuple(protocol: u8, (address, port): (Option<IpAddr>, Option<u16>), source: bool) -> (Vec<u8>, u32) {
    let (mut tuple, mut ip, mut flags) = (Vec::new(), Vec::new(), cta::F_PROTO_NUM);
    let destination = u16::from(!source);
    match address {
        None => {}
        Some(IpAddr::V4(address)) => push_attribute(&mut ip, cta::IP_V4_SRC + destination, &address.octets()),
        Some(IpAddr::V6(address)) => push_attribute(&mut ip, cta::IP_V6_SRC + destination, &address.octets()),
    }
    if address.is_some() {
        flags |= if source { cta::F_IP_SRC } else { cta::F_IP_DST };
    }
    push_attribute(&mut tuple, cta::TUPLE_IP | cta::NESTED, &ip);
    let mut proto = Vec::new();
    push_attribute(&mut proto, cta::PROTO_NUM, &[protocol]);
    if let Some(port) = port {
        let (kind, flag) = if source {
            (cta::PROTO_SRC_PORT, cta::F_PROTO_SRC_PORT)
        } else {
            (cta::PROTO_DST_PORT, cta::F_PROTO_DST_PORT)
        };
        push_attribute(&mut proto, kind, &port.to_be_bytes());
        flags |= flag;
    }
    push_attribute(&mut tuple, cta::TUPLE_PROTO | cta::NESTED, &proto);
    (tuple, flags)
}

/// Flows in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fake {
    /// The flows that are tracked.
    pub flows: Vec<Flow>,
}

impl Conntrack for Fake {
    fn delete(&mut self, filter: &Filter) -> Result<()> {
        self.flows.retain(|flow| !filter.matches(flow));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{
        nftables::{Batch, Chain, ChainKind, Hook, Nftables, Rule, Table, priority},
        test_support::in_new_netns,
    };

    const UDP: u8 = 17;

    fn filter(port: u16) -> Filter {
        Filter {
            family: Family::V4,
            protocol: UDP,
            original_destination: Some([127, 0, 0, 1].into()),
            original_port: Some(port),
            reply_source: Some([127, 0, 0, 1].into()),
            reply_port: Some(port),
        }
    }

    #[test]
    fn a_filter_matches_the_fields_that_it_names() {
        let tuple = |from: [u8; 4], to: [u8; 4]| Tuple { source: (from.into(), 5), destination: (to.into(), 53) };
        let original = tuple([10, 244, 0, 9], [10, 96, 0, 10]);
        let reply = Tuple { source: ([10, 244, 0, 2].into(), 5353), destination: original.source };
        let flow = Flow { protocol: UDP, original, reply };
        let all = Filter {
            original_destination: None,
            original_port: None,
            reply_source: None,
            reply_port: None,
            ..filter(1)
        };
        assert!(all.matches(&flow));
        assert!(Filter { reply_source: Some([10, 244, 0, 2].into()), reply_port: Some(5353), ..all }.matches(&flow));
        assert!(!Filter { reply_port: Some(53), ..all }.matches(&flow));
        assert!(!Filter { protocol: 6, ..all }.matches(&flow));
        let mut fake = Fake { flows: vec![flow] };
        fake.delete(&Filter { original_port: Some(54), ..all }).unwrap();
        assert_eq!(fake.flows, [flow]);
        fake.delete(&Filter { original_port: Some(53), ..all }).unwrap();
        assert_eq!(fake.flows, []);
    }

    /// How many UDP flows the namespace tracks.
    fn tracked() -> usize {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        socket.dump(CT_GET, 0, &header(Family::V4), format_args!("list flows")).unwrap().iter().count()
    }

    #[test]
    fn the_kernel_deletes_the_matching_flows_only_whether_it_or_we_do_the_matching() {
        for delete in [Kernel::delete, Kernel::delete_one_by_one] {
            in_new_netns(|| deletes_the_matching_flows_only(delete));
        }
    }

    fn deletes_the_matching_flows_only(delete: fn(&mut Kernel, &Filter) -> Result<()>) {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        // A rule that looks at connections makes the kernel track them.
        let table = Table::new(crate::nftables::Family::Ip, "track");
        let mut batch = Batch::new();
        batch.add_table(&table, None);
        batch.add_chain(&table, Chain::base("output", ChainKind::Filter, Hook::Output, priority::FILTER));
        batch.add_rule(&table, "output", Rule::new(Family::V4).ct_state(1).drop());
        crate::nftables::Kernel::open().unwrap().commit(&batch).unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (port, others) = (server.local_addr().unwrap().port(), other.local_addr().unwrap().port());
        let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for client in &clients {
            client.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
        clients[0].send_to(b"x", ("127.0.0.1", others)).unwrap();
        assert_eq!(tracked(), 4);
        let mut kernel = Kernel::open().unwrap();
        let mut delete = |filter| delete(&mut kernel, &filter).unwrap();
        delete(Filter { protocol: 6, ..filter(port) });
        delete(Filter { reply_source: Some([127, 0, 0, 2].into()), ..filter(port) });
        assert_eq!(tracked(), 4);
        delete(filter(port));
        assert_eq!(tracked(), 1);
        delete(Filter { original_destination: None, reply_source: None, ..filter(others) });
        assert_eq!(tracked(), 0);
        delete(filter(port));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
