//! Telling a sender that its packet goes no further (RFC 792, RFC 1122 3.2.2).

use std::net::Ipv4Addr;

use super::{
    checksum::Sum,
    ipv4::{self, HEADER},
};

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

/// The message from `source` to the sender of `packet`, if there may be one: not about a message like itself, nor about
/// the later parts of what was sent in parts. It contains the header of the packet and 8 bytes more.
pub fn error(problem: Problem, source: Ipv4Addr, packet: &[u8]) -> Option<Vec<u8>> {
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
    let quoted = &packet[..total.min(length + 8)];
    let mut message = vec![0; HEADER];
    (message[0], message[8], message[9]) = (0x45, 64, ICMP);
    message[12..16].copy_from_slice(&source.octets());
    message[16..20].copy_from_slice(&sender.octets());
    let answer = (HEADER + 8 + quoted.len()) as u16;
    ipv4::finish(&mut message, answer);
    let [kind, code] = problem.type_and_code();
    message.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(quoted);
    let checksum = Sum::default().with(&message[HEADER..]).checksum();
    message[HEADER + 2..HEADER + 4].copy_from_slice(&checksum);
    Some(message)
}
