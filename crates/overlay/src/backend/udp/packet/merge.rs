//! From the socket: consecutive packets of one flow become one packet for TUN, as the kernel's own GRO would make it.

use std::ops::Range;

use podwire_kernel::tun::{Checksum, Offload, SegmentKind, Segments};

use super::{
    checksum::Sum,
    ipv4::{self, HEADER, Protocol, Unfit, put_u16, u16_at, u32_at},
};

/// The longest IPv4 packet.
const LONGEST: usize = 65_535;
/// The most packets in one: what the kernel takes of UDP (UDP_MAX_SEGMENTS before Linux 6.9), and TCP does not reach.
const MOST: usize = 64;
/// Flags of TCP: a packet with PSH ends the run; ACK and ECE may be there, any other is for its packet alone.
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// Packets that are going to be one, or one that stays as it is.
#[derive(Debug, Clone)]
pub struct Group {
    /// What TUN is told about it.
    pub offload: Offload,
    /// Its parts in [`Merger::parts`].
    pub parts: Range<usize>,
    /// What is needed to add to it; nothing if nothing may follow.
    open: Option<Open>,
}

/// The run of packets so far.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// Where the first begins.
    start: usize,
    protocol: Protocol,
    /// Length of IP and transport header of each.
    headers: usize,
    /// Data of each; only the last may have less.
    size: usize,
    /// Data of all.
    total: usize,
    count: usize,
}

/// Puts packets together. Its memory is used again for the next batch.
#[derive(Debug)]
pub struct Merger {
    /// Whether UDP too: not every kernel takes it.
    udp: bool,
    /// Where in the batch's memory the parts of the groups are, group by group.
    pub parts: Vec<Range<usize>>,
    /// What goes to TUN, in this order.
    pub groups: Vec<Group>,
}

impl Merger {
    /// One that puts TCP together, and UDP if `udp` says so.
    pub const fn new(udp: bool) -> Self {
        Self { udp, parts: Vec::new(), groups: Vec::new() }
    }

    /// Forgets the batch.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.groups.clear();
    }

    /// Takes in the packet at `at` of `memory`, and counts the hop. Several packets become one when a receiver could not
    /// tell the difference: same flow, same headers but for what counts on, no gap, and every checksum right.
    ///
    /// # Errors
    /// It goes no further.
    pub fn push(&mut self, memory: &mut [u8], at: Range<usize>) -> Result<(), Unfit> {
        let start = at.start;
        let packet = memory.get_mut(at).ok_or(Unfit::Malformed)?;
        let (_, total) = ipv4::lengths(packet)?;
        ipv4::count_hop(packet)?;
        let next = Open::new(&packet[..total], start).filter(|next| self.udp || next.protocol == Protocol::Tcp);
        if let (Some(group), Some(next)) = (self.groups.last_mut(), next)
            && let Some(open) = &mut group.open
            && open.admits(memory, &next)
        {
            open.total += next.size;
            open.count += 1;
            self.parts.push(start + next.headers..start + total);
            group.parts.end = self.parts.len();
            if next.ends_run(memory) {
                memory[open.start + HEADER + 13] |= PSH;
                self.finish(memory);
            } else if next.size < open.size {
                self.finish(memory);
            }
            return Ok(());
        }
        self.finish(memory);
        let first = self.parts.len();
        self.parts.push(start..start + total);
        let open = next.filter(|next| !next.ends_run(memory));
        self.groups.push(Group { offload: Offload::default(), parts: first..first + 1, open });
        Ok(())
    }

    /// Completes the last group: its first packet gets the headers for all of it. To be called after the last packet of a
    /// batch.
    pub fn finish(&mut self, memory: &mut [u8]) {
        if let Some(group) = self.groups.last_mut()
            && let Some(open) = group.open.take()
            && open.count > 1
        {
            group.offload = open.write_headers(memory);
        }
    }
}

impl Open {
    /// A run of one packet, if others could follow it.
    fn new(packet: &[u8], start: usize) -> Option<Self> {
        if packet[0] != 0x45 || ipv4::is_fragment(packet) {
            return None;
        }
        let transport = &packet[HEADER..];
        let (protocol, headers) = match packet[9] {
            6 if transport.len() >= 20 => (Protocol::Tcp, HEADER + usize::from(transport[12] >> 4) * 4),
            17 if transport.len() >= 8 => (Protocol::Udp, HEADER + 8),
            _ => return None,
        };
        let plain = match protocol {
            Protocol::Tcp => transport[13] & !(PSH | ECE) == ACK && headers >= HEADER + 20,
            Protocol::Udp => usize::from(u16_at(transport, 4)) == transport.len() && u16_at(transport, 6) != 0,
        };
        let size = packet.len().checked_sub(headers).filter(|size| plain && *size > 0)?;
        Some(Self { start, protocol, headers, size, total: size, count: 1 })
    }

    /// Whether nothing may follow this packet: its sender wants it to be handed on at once.
    fn ends_run(&self, memory: &[u8]) -> bool {
        self.protocol == Protocol::Tcp && memory[self.start + HEADER + 13] & PSH != 0
    }

    /// Whether the packet `next` goes on where this run ends.
    fn admits(&self, memory: &[u8], next: &Self) -> bool {
        let room = self.count < MOST && self.headers + self.total + next.size <= LONGEST;
        let alike = (self.protocol, self.headers) == (next.protocol, next.headers) && next.size <= self.size;
        if !room || !alike {
            return false;
        }
        let [a, b] = [self, next].map(|run| &memory[run.start..run.start + run.headers]);
        let same = |range: Range<usize>| a[range.clone()] == b[range];
        // Type of service, flags, time to live, protocol, addresses, ports.
        let flow = same(1..2) && same(6..10) && same(HEADER - 8..HEADER + 4);
        let counts = ipv4::is_atomic(a) || u16_at(a, 4).wrapping_add(self.count as u16) == u16_at(b, 4);
        let (a, b) = (&a[HEADER..], &b[HEADER..]);
        let goes_on = match self.protocol {
            // Acknowledgement, length, flags but for PSH, window, urgent pointer and options.
            Protocol::Tcp => {
                u32_at(a, 4).wrapping_add(self.total as u32) == u32_at(b, 4)
                    && a[8..13] == b[8..13]
                    && (a[13] ^ b[13]) & !PSH == 0
                    && a[14..16] == b[14..16]
                    && a[18..] == b[18..]
            }
            Protocol::Udp => true,
        };
        flow && counts && goes_on && next.is_intact(memory) && (self.count > 1 || self.is_intact(memory))
    }

    /// Whether the checksums of a run of one packet are right: those of the whole are written anew, and what is broken
    /// must stay recognisable.
    fn is_intact(&self, memory: &[u8]) -> bool {
        let (header, transport) = memory[self.start..self.start + self.headers + self.size].split_at(HEADER);
        let pseudo = Sum::default().with_pseudo(&header[12..], self.protocol, transport.len() as u16);
        Sum::default().with(header).is_intact() && pseudo.with(transport).is_intact()
    }

    /// Makes the headers of the first packet those of the whole run.
    fn write_headers(&self, memory: &mut [u8]) -> Offload {
        let length = self.headers + self.total;
        let (ip, transport) = memory[self.start..self.start + self.headers].split_at_mut(HEADER);
        ipv4::finish(ip, length as u16);
        let (kind, field) = match self.protocol {
            Protocol::Tcp => (SegmentKind::Tcp4, Protocol::Tcp.checksum_at()),
            Protocol::Udp => {
                put_u16(transport, 4, (length - HEADER) as u16);
                (SegmentKind::Udp, Protocol::Udp.checksum_at())
            }
        };
        let pseudo = Sum::default().with_pseudo(&ip[12..], self.protocol, (length - HEADER) as u16);
        transport[field..field + 2].copy_from_slice(&pseudo.folded());
        Offload {
            checksum: Some(Checksum { start: HEADER as u16, offset: field as u16 }),
            segments: Some(Segments { kind, size: self.size as u16, headers: self.headers as u16, ecn: false }),
        }
    }
}
