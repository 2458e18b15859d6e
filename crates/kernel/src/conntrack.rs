//! Connection tracking: deleting the flows that match a filter.
//!
//! The kernel matches (`CTA_FILTER`, Linux 6.9 and later): nothing is dumped, however many flows there are. An older
//! kernel takes the filter for one exact flow and finds none.

use std::net::IpAddr;

use podwire_model::Family;

use crate::{
    Result, ResultExt,
    netlink::{Protocol, Socket, push_attribute},
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

impl Conntrack for Kernel {
    fn delete(&mut self, filter: &Filter) -> Result<()> {
        /// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_DELETE`.
        const CT_DELETE: u16 = 1 << 8 | 2;
        let what = format_args!("delete conntrack flows {filter:?}");
        self.socket.request(CT_DELETE, 0, &encode(filter), what).map(drop).or_gone()
    }
}

/// Attribute numbers of `linux/netfilter/nfnetlink_conntrack.h`.
mod cta {
    pub const NESTED: u16 = 0x8000;
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
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
    let family = match filter.family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // nfgenmsg: version 1 makes the kernel look at the family.
    let mut payload = vec![family as u8, 1, 0, 0];
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
    use crate::nftables::{Batch, Chain, ChainKind, Hook, Nftables, Rule, Table, priority};

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
        const CT_GET: u16 = 1 << 8 | 1;
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let header = [libc::AF_INET as u8, 0, 0, 0];
        socket.dump(CT_GET, 0, &header, format_args!("list flows")).unwrap().iter().count()
    }

    #[test]
    fn the_kernel_deletes_the_matching_flows_only() {
        let test = || {
            crate::ns::unshare(&[crate::ns::Kind::Net])?;
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            // A rule that looks at connections makes the kernel track them.
            let table = Table::new(crate::nftables::Family::Ip, "track");
            let mut batch = Batch::new();
            batch.add_table(&table, None);
            batch.add_chain(&table, Chain::base("output", ChainKind::Filter, Hook::Output, priority::FILTER));
            batch.add_rule(&table, "output", Rule::new(Family::V4).ct_state(1).drop());
            crate::nftables::Kernel::open()?.commit(&batch)?;
            let server = UdpSocket::bind("127.0.0.1:0").unwrap();
            let other = UdpSocket::bind("127.0.0.1:0").unwrap();
            let (port, others) = (server.local_addr().unwrap().port(), other.local_addr().unwrap().port());
            let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            for client in &clients {
                client.send_to(b"x", ("127.0.0.1", port)).unwrap();
            }
            clients[0].send_to(b"x", ("127.0.0.1", others)).unwrap();
            assert_eq!(tracked(), 4);
            let mut kernel = Kernel::open()?;
            kernel.delete(&Filter { protocol: 6, ..filter(port) })?;
            kernel.delete(&Filter { reply_source: Some([127, 0, 0, 2].into()), ..filter(port) })?;
            assert_eq!(tracked(), 4);
            kernel.delete(&filter(port))?;
            assert_eq!(tracked(), 1);
            kernel.delete(&Filter { original_destination: None, reply_source: None, ..filter(others) })?;
            assert_eq!(tracked(), 0);
            kernel.delete(&filter(port))
        };
        match std::thread::scope(|scope| scope.spawn(test).join()) {
            Ok(Err(error)) if error.is_not_permitted() && std::env::var_os("CI").is_none() => {
                eprintln!("not tested: {error}");
            }
            Ok(result) => result.unwrap(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
