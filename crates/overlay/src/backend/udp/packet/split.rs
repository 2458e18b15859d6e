//! From TUN: what the kernel left undone is done, so that every packet is whole on the wire.

use std::ops::Range;

use podwire_kernel::tun::{Checksum, Offload, SegmentKind, Segments};

use super::{
    Piece,
    checksum::Sum,
    ipv4::{self, Protocol, Unfit, put_u16, u16_at, u32_at},
};

/// Flags of TCP that only the last packet keeps, FIN and PSH, and the one that only the first does, CWR (RFC 3168).
const LAST_ONLY: u8 = 0x01 | 0x08;
const FIRST_ONLY: u8 = 0x80;

/// Cuts the packet at `at` of `memory` into packets for the wire, and counts the hop. New headers go to the end of
/// `headers`, the pieces to the end of `pieces`.
///
/// # Errors
/// The packet cannot be sent; then nothing is added.
pub fn split(
    memory: &mut [u8],
    at: Range<usize>,
    offload: Offload,
    headers: &mut Vec<u8>,
    pieces: &mut Vec<Piece>,
) -> Result<(), Unfit> {
    let start = at.start;
    let packet = memory.get_mut(at).ok_or(Unfit::Malformed)?;
    let (ip_length, total) = ipv4::lengths(packet)?;
    let packet = &mut packet[..total];
    ipv4::count_hop(packet)?;
    match (offload.segments, offload.checksum) {
        (Some(segments), _) => cut(packet, start, (ip_length, segments), headers, pieces)?,
        (None, checksum) => {
            if let Some(checksum) = checksum {
                complete(packet, checksum)?;
            }
            pieces.push(Piece { headers: 0..0, rest: start..start + total });
        }
    }
    Ok(())
}

/// Computes the checksum of a packet whose checksum field holds the sum of the pseudo header.
fn complete(packet: &mut [u8], Checksum { start, offset }: Checksum) -> Result<(), Unfit> {
    let transport = packet.get_mut(usize::from(start)..).ok_or(Unfit::Malformed)?;
    let sum = Sum::default().with(transport).checksum();
    let field = transport.get_mut(usize::from(offset)..).and_then(|rest| rest.first_chunk_mut());
    *field.ok_or(Unfit::Malformed)? =
        if usize::from(offset) == Protocol::Udp.checksum_at() { or_ones(sum) } else { sum };
    Ok(())
}

/// Zero means "no checksum" in UDP; the other zero of one's complement stands for it (RFC 768).
fn or_ones(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0; 2] { [0xff; 2] } else { sum }
}

/// Cuts a packet that begins at `start` of its memory.
fn cut(
    packet: &[u8],
    start: usize,
    (ip_length, segments): (usize, Segments),
    headers: &mut Vec<u8>,
    pieces: &mut Vec<Piece>,
) -> Result<(), Unfit> {
    let (protocol, length) = transport(packet, ip_length, segments.kind)?;
    let (template, data) = packet.split_at(ip_length + length);
    let (id, sequence) =
        (u16_at(template, 4), if protocol == Protocol::Tcp { u32_at(template, ip_length + 4) } else { 0 });
    let size = usize::from(segments.size).max(1);
    let count = data.len().div_ceil(size);
    for (index, data) in data.chunks(size).enumerate() {
        let at = headers.len();
        headers.extend_from_slice(template);
        let (ip, transport) = headers[at..].split_at_mut(ip_length);
        put_u16(ip, 4, id.wrapping_add(index as u16));
        ipv4::finish(ip, (template.len() + data.len()) as u16);
        match protocol {
            Protocol::Tcp => {
                let sequence = sequence.wrapping_add((index * size) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                let gone = if index == 0 { 0 } else { FIRST_ONLY } | if index + 1 == count { 0 } else { LAST_ONLY };
                transport[13] &= !gone;
            }
            Protocol::Udp => put_u16(transport, 4, (length + data.len()) as u16),
        }
        let field = protocol.checksum_at();
        put_u16(transport, field, 0);
        let pseudo = Sum::default().with_pseudo(&ip[12..20], protocol, (length + data.len()) as u16);
        let sum = pseudo.with(transport).with(data).checksum();
        transport[field..field + 2].copy_from_slice(&if protocol == Protocol::Udp { or_ones(sum) } else { sum });
        let rest = start + template.len() + index * size;
        pieces.push(Piece { headers: at..headers.len(), rest: rest..rest + data.len() });
    }
    Ok(())
}

/// The protocol of a packet that is to be cut, and the length of its transport header.
fn transport(packet: &[u8], ip_length: usize, kind: SegmentKind) -> Result<(Protocol, usize), Unfit> {
    let protocol = match kind {
        SegmentKind::Tcp4 => Protocol::Tcp,
        SegmentKind::Udp => Protocol::Udp,
        SegmentKind::Tcp6 => return Err(Unfit::OtherVersion),
    };
    let length = match protocol {
        Protocol::Tcp => usize::from(packet.get(ip_length + 12).ok_or(Unfit::Malformed)? >> 4) * 4,
        Protocol::Udp => 8,
    };
    let (least, most) = (if protocol == Protocol::Tcp { 20 } else { 8 }, packet.len() - ip_length);
    let fits = packet[9] == protocol.number() && (least..most).contains(&length);
    if fits { Ok((protocol, length)) } else { Err(Unfit::Malformed) }
}
