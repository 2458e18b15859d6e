//! Against a naive implementation that builds every packet from its fields, and against bytes that mean harm.

use podwire_kernel::tun::{Checksum, Offload, SegmentKind, Segments};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    Piece,
    checksum::Sum,
    icmp::{self, Problem},
    ipv4::{self, Unfit},
    merge::Merger,
    split::split,
};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The fields of a packet. `tcp` is the part that UDP has not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    tos: u8,
    id: u16,
    dont_fragment: bool,
    ttl: u8,
    source: [u8; 4],
    ports: [u16; 2],
    tcp: Option<Tcp>,
    data: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tcp {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
}

/// RFC 1071, word by word.
fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Fields {
    /// The packet, with every checksum computed.
    fn packet(&self) -> Vec<u8> {
        let (protocol, checksum_at) = if self.tcp.is_some() { (6, 16) } else { (17, 6) };
        let mut transport: Vec<u8> = self.ports.iter().flat_map(|port| port.to_be_bytes()).collect();
        if let Some(tcp) = &self.tcp {
            transport.extend(tcp.sequence.to_be_bytes());
            transport.extend(tcp.acknowledged.to_be_bytes());
            transport.extend([((20 + tcp.options.len()) / 4 * 16) as u8, tcp.flags]);
            transport.extend(tcp.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&tcp.options);
        } else {
            transport.extend((8 + self.data.len() as u16).to_be_bytes());
            transport.extend([0; 2]);
        }
        transport.extend(&self.data);
        let mut pseudo = [&self.source[..], &[10, 244, 2, 2, 0, protocol]].concat();
        pseudo.extend((transport.len() as u16).to_be_bytes());
        pseudo.extend(&transport);
        let checksum = match naive_checksum(&pseudo) {
            0 if protocol == 17 => 0xffff,
            checksum => checksum,
        };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        let mut packet = vec![0x45, self.tos];
        packet.extend((20 + transport.len() as u16).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(if self.dont_fragment { [0x40, 0] } else { [0, 0] });
        packet.extend([self.ttl, protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend([10, 244, 2, 2]);
        let checksum = naive_checksum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(transport);
        packet
    }

    fn headers(&self) -> usize {
        20 + self.tcp.as_ref().map_or(8, |tcp| 20 + tcp.options.len())
    }

    /// What the kernel's own cutting makes of it (`tcp_gso_segment`, `__udp_gso_segment`).
    fn cut(&self, size: usize) -> Vec<Self> {
        let count = self.data.len().div_ceil(size);
        let piece = |(index, data): (usize, &[u8])| {
            let mut piece = Self { id: self.id.wrapping_add(index as u16), data: data.to_vec(), ..self.clone() };
            if let Some(tcp) = &mut piece.tcp {
                tcp.sequence = tcp.sequence.wrapping_add((index * size) as u32);
                tcp.flags &= if index > 0 { !CWR } else { 0xff } & if index + 1 < count { !(PSH | 1) } else { 0xff };
            }
            piece
        };
        self.data.chunks(size).enumerate().map(piece).collect()
    }

    fn segments(&self, size: usize) -> Segments {
        let kind = if self.tcp.is_some() { SegmentKind::Tcp4 } else { SegmentKind::Udp };
        Segments { kind, size: size as u16, headers: self.headers() as u16, ecn: false }
    }

    /// As the kernel leaves it undone: the checksum field holds the sum of the pseudo header.
    fn undone(&self) -> (Vec<u8>, Checksum) {
        let mut packet = self.packet();
        let field = if self.tcp.is_some() { 16 } else { 6 };
        let length = (packet.len() - 20) as u16;
        let pseudo = [&packet[12..20], &[0, packet[9]], &length.to_be_bytes()].concat();
        packet[20 + field..22 + field].copy_from_slice(&(!naive_checksum(&pseudo)).to_be_bytes());
        (packet, Checksum { start: 20, offset: field as u16 })
    }
}

fn fields() -> impl Strategy<Value = Fields> {
    let tcp = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), 0_usize..=10, any::<u8>());
    let tcp = tcp.prop_map(|(sequence, acknowledged, flags, window, words, byte)| Tcp {
        sequence,
        acknowledged,
        flags,
        window,
        options: vec![byte; words * 4],
    });
    let ip = (any::<u8>(), any::<u16>(), any::<bool>(), 2_u8.., any::<[u8; 4]>());
    (ip, any::<[u16; 2]>(), proptest::option::of(tcp), vec(any::<u8>(), 1..3000)).prop_map(
        |((tos, id, dont_fragment, ttl, source), ports, tcp, data)| Fields {
            tos,
            id,
            dont_fragment,
            ttl,
            source,
            ports,
            tcp,
            data,
        },
    )
}

/// Cuts `packet` where it lies between other bytes.
fn cut(packet: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, Unfit> {
    let mut memory = [&[0xee; 7], packet, &[0xee; 9]].concat();
    let (mut headers, mut pieces) = (vec![0xee; 3], Vec::new());
    split(&mut memory, 7..7 + packet.len(), offload, &mut headers, &mut pieces)?;
    let whole = |piece: &Piece| {
        let packet = [&headers[piece.headers.clone()], &memory[piece.rest.clone()]].concat();
        assert_eq!(packet.len(), piece.length());
        packet
    };
    Ok(pieces.iter().map(whole).collect())
}

/// What comes out of merging a batch, put together.
fn merge(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let mut memory = packets.concat();
    let mut merger = Merger::new(true);
    let mut start = 0;
    for packet in packets {
        let _ = merger.push(&mut memory, start..start + packet.len());
        start += packet.len();
    }
    merger.finish(&mut memory);
    let whole = |parts: &[std::ops::Range<usize>]| parts.iter().flat_map(|at| memory[at.clone()].to_vec()).collect();
    merger.groups.iter().map(|group| (whole(&merger.parts[group.parts.clone()]), group.offload)).collect()
}

/// What a packet is after one hop, or nothing if it goes no further.
fn after_hop(packet: &[u8]) -> Option<Vec<u8>> {
    let (_, total) = ipv4::lengths(packet).ok()?;
    let mut packet = packet[..total].to_vec();
    ipv4::count_hop(&mut packet).ok()?;
    Some(packet)
}

/// Without what an atomic packet may have any value of: its identification, and the checksum over it.
fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
    if ipv4::is_atomic(&packet) {
        (packet[4..6].fill(0), packet[10..12].fill(0)).0
    }
    packet
}

/// A packet, or what will be one once it was cut, cut.
fn on_the_wire((packet, offload): &(Vec<u8>, Offload)) -> Vec<Vec<u8>> {
    if *offload == Offload::default() {
        return vec![packet.clone()];
    }
    // Cutting counts a hop too; this one did not happen.
    let mut packet = packet.clone();
    packet[8] += 1;
    cut(&packet, *offload).unwrap()
}

proptest! {
    #[test]
    fn sums_are_those_of_the_naive_way(bytes in vec(any::<u8>(), 0..300), at in 0_usize..300) {
        let sum = Sum::default().with(&bytes);
        prop_assert_eq!(u16::from_be_bytes(sum.checksum()), naive_checksum(&bytes));
        let (a, b) = bytes.split_at((at % (bytes.len() + 1)) & !1);
        prop_assert_eq!(Sum::default().with(a).with(b).folded(), sum.folded());
    }

    #[test]
    fn a_hop_leaves_the_checksum_right(fields in fields()) {
        let mut packet = fields.packet();
        ipv4::count_hop(&mut packet).unwrap();
        prop_assert_eq!(packet, Fields { ttl: fields.ttl - 1, ..fields }.packet());
    }

    #[test]
    fn a_large_packet_is_cut_as_the_kernel_does(fields in fields(), size in 1_usize..2000) {
        let (packet, checksum) = fields.undone();
        let offload = Offload { checksum: Some(checksum), segments: Some(fields.segments(size)) };
        let after = Fields { ttl: fields.ttl - 1, ..fields };
        let expected: Vec<_> = after.cut(size).iter().map(Fields::packet).collect();
        prop_assert_eq!(cut(&packet, offload), Ok(expected));
        let whole = Offload { segments: None, ..offload };
        prop_assert_eq!(cut(&packet, whole), Ok(vec![after.packet()]));
    }

    /// Runs of one flow, with whatever breaks a run now and then: the receiver sees what was sent, in order.
    #[test]
    fn what_was_merged_is_what_came(
        fields in fields(),
        steps in vec((0_usize..100, select(vec![0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])), 1..60),
        size in 1_usize..200,
    ) {
        let mut next = Fields { data: vec![], ..fields };
        if let Some(tcp) = &mut next.tcp {
            tcp.flags = ACK;
        }
        let mut packets = Vec::new();
        for (at, change) in steps {
            next.data = vec![at as u8; if change == 1 { at + 1 } else { size }];
            match (change, &mut next.tcp) {
                (2, Some(tcp)) => tcp.flags ^= 1 << (at % 8),
                (3, Some(tcp)) => tcp.sequence = tcp.sequence.wrapping_add(at as u32),
                (4, Some(tcp)) => tcp.acknowledged = tcp.acknowledged.wrapping_add(at as u32),
                (5, _) => next.tos ^= 1,
                (6, _) => next.dont_fragment ^= true,
                (7, _) => next.ports[at % 2] ^= 1,
                (8, _) => next.id = next.id.wrapping_add(at as u16),
                _ => {}
            }
            let mut packet = next.packet();
            if change == 9 {
                // Not with two bytes that change each other's checksum: one bit.
                let broken = at % packet.len();
                packet[broken] ^= 1;
            }
            if change == 10 {
                packet.extend([0xee; 3]);
            }
            packets.push(packet);
            if let Some(tcp) = &mut next.tcp {
                tcp.sequence = tcp.sequence.wrapping_add(next.data.len() as u32);
            }
            next.id = next.id.wrapping_add(1);
        }
        let expected: Vec<_> = packets.iter().filter_map(|packet| after_hop(packet)).map(without_id).collect();
        let merged = merge(&packets);
        let found: Vec<_> = merged.iter().flat_map(on_the_wire).map(without_id).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_pass_or_are_refused(
        mut bytes in vec(any::<u8>(), 0..120), likely: bool, total: u16, words: [u16; 4], kind in 0_usize..3,
    ) {
        if likely && bytes.len() > 10 {
            (bytes[0], bytes[9]) = (0x40 | bytes[0] & 0xf, [6, 17, 1][kind]);
            bytes[2..4].copy_from_slice(&(total % 130).to_be_bytes());
        }
        let [size, headers, start, offset] = words.map(|word| word % 130);
        let kind = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][kind];
        for segments in [None, Some(Segments { kind, size: size.max(1), headers, ecn: false })] {
            for checksum in [None, Some(Checksum { start, offset })] {
                let _ = cut(&bytes, Offload { checksum, segments });
            }
        }
        let message = icmp::error(Problem::NoNode, &bytes);
        prop_assert!(message.is_none_or(|(_, message)| naive_checksum(&message) == 0));
        let merged = merge(&[bytes.clone(), bytes.clone()]);
        let expected: Vec<_> = [&bytes, &bytes].into_iter().filter_map(|bytes| after_hop(bytes)).collect();
        let found: Vec<_> = merged.iter().flat_map(on_the_wire).collect();
        prop_assert_eq!(found.len(), expected.len());
    }
}

fn stream(flags: u8, size: usize) -> Fields {
    let tcp = Tcp { sequence: u32::MAX - 5000, acknowledged: 7, flags, window: 500, options: vec![1; 12] };
    Fields {
        tos: 0,
        id: 65_530,
        dont_fragment: true,
        ttl: 63,
        source: [10, 244, 1, 2],
        ports: [40_000, 80],
        tcp: Some(tcp),
        data: (0..size).map(|n| n as u8).collect(),
    }
}

#[test]
fn a_long_run_becomes_one_packet_and_a_broken_one_stays_alone() {
    let whole = stream(ACK | PSH, 44 * 1420 + 100);
    let mut packets: Vec<_> = whole.cut(1420).iter().map(Fields::packet).collect();
    let [(packet, offload)] = &merge(&packets)[..] else { panic!("one packet") };
    assert_eq!(offload.segments, Some(whole.segments(1420)));
    let after = Fields { ttl: 62, ..whole.clone() };
    let (expected, checksum) = after.undone();
    assert_eq!((packet, offload.checksum), (&expected, Some(checksum)));

    packets[20][700] ^= 4;
    let merged = merge(&packets);
    let data: Vec<_> = merged.iter().map(|(packet, _)| (packet.len() - 72 + 20) / 1420).collect();
    assert_eq!(data, [20, 1, 23]);
    assert_eq!(merged[1].1, Offload::default(), "the kernel finds out itself");
}

#[test]
fn datagrams_become_one_where_the_kernel_takes_it() {
    let whole = Fields { tcp: None, ..stream(0, 5000) };
    let packets: Vec<_> = whole.cut(1200).iter().map(Fields::packet).collect();
    let [(packet, offload)] = &merge(&packets)[..] else { panic!("one packet") };
    let (expected, checksum) = Fields { ttl: 62, ..whole.clone() }.undone();
    assert_eq!((packet, offload.checksum, offload.segments), (&expected, Some(checksum), Some(whole.segments(1200))));

    let mut memory = packets.concat();
    let mut merger = Merger::new(false);
    for at in (0..memory.len()).step_by(1228) {
        merger.push(&mut memory.clone(), at..(at + 1228).min(memory.len())).unwrap();
    }
    merger.finish(&mut memory);
    assert_eq!(merger.groups.len(), packets.len());
}

#[test]
fn acknowledgements_and_the_ends_of_connections_stay_as_they_are() {
    for (flags, size) in [(ACK, 0), (ACK | 1, 100), (2, 0), (ACK | 4, 0), (ACK | 0x20, 100)] {
        let mut fields = stream(flags, size);
        let first = fields.packet();
        if let Some(tcp) = &mut fields.tcp {
            tcp.sequence = tcp.sequence.wrapping_add(size as u32);
        }
        assert_eq!(merge(&[first, fields.packet()]).len(), 2, "{flags:#x}");
    }
}

#[test]
fn only_the_sender_of_a_whole_packet_that_is_no_error_is_told() {
    let packet = stream(ACK, 100).packet();
    let (sender, message) = icmp::error(Problem::NoNode, &packet).unwrap();
    assert_eq!((sender, &message[..2], &message[8..]), ([10, 244, 1, 2].into(), &[3, 0][..], &packet[..28]));
    assert_eq!(naive_checksum(&message), 0);
    assert_eq!(icmp::error(Problem::Expired, &packet).unwrap().1[..2], [11, 0]);

    let with = |changes: &[(usize, u8)]| {
        let mut packet = packet.clone();
        changes.iter().for_each(|(at, byte)| packet[*at] = *byte);
        icmp::error(Problem::NoNode, &packet)
    };
    assert_eq!(with(&[(7, 1)]), None, "a later part");
    assert_eq!(with(&[(12, 224)]), None, "from a group");
    assert_eq!(with(&[(9, 1), (20, 3)]), None, "an error");
    assert!(with(&[(9, 1), (20, 8)]).is_some(), "an echo request");
}
