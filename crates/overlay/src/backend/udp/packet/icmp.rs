//! Telling a sender that its packet goes no further (RFC 792, RFC 1122 3.2.2).

use std::net::Ipv4Addr;

use super::{checksum::Sum, ipv4};

/// What happened to the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// No node has the destination: "net unreachable".
    NoNode,
    /// It went through too many nodes: "time exceeded".
    Expired,
}

impl Problem {
    const fn type_and_code(self) -> [u8; 2] {
        match self {
            Self::NoNode => [3, 0],
            Self::Expired => [11, 0],
        }
    }
}

/// Whom to tell, and what (the message without an IP header), if there may be one: not about a message like itself, nor
/// about the later parts of what was sent in parts. It contains the header of the packet and 8 bytes more.
pub fn error(problem: Problem, packet: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
    const ICMP: u8 = 1;
    const ECHO: u8 = 8;
    let (length, total) = ipv4::lengths(packet).ok()?;
    let sender = Ipv4Addr::from(ipv4::u32_at(packet, 12));
    let later_part = ipv4::u16_at(packet, 6) & 0x1fff != 0;
    if later_part || sender.is_unspecified() || sender.is_multicast() || sender.is_broadcast() {
        return None;
    }
    if packet[9] == ICMP && packet.get(length) != Some(&ECHO) {
        return None;
    }
    let [kind, code] = problem.type_and_code();
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&packet[..total.min(length + 8)]);
    let checksum = Sum::default().with(&message).checksum();
    message[2..4].copy_from_slice(&checksum);
    Some((sender, message))
}
