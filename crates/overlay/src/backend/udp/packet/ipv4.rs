//! IPv4 packets (RFC 791) as bytes.

use super::checksum::Sum;

/// The shortest header.
pub const HEADER: usize = 20;
/// Flag "don't fragment" and flag "more fragments" with the fragment's offset, in the 16-bit word at 6.
const DONT_FRAGMENT: u16 = 0x4000;
const IS_FRAGMENT: u16 = 0x3fff;

/// A transport protocol whose packets are cut and put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in the IPv4 header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where the checksum is in its header.
    pub const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Not IPv4: the backend carries nothing else.
    OtherVersion,
    /// Its lengths contradict each other.
    Malformed,
    /// It went through too many nodes.
    Expired,
}

/// The length of the header and of the whole packet.
///
/// # Errors
/// Not an IPv4 packet, or one that is longer than `packet`.
pub fn lengths(packet: &[u8]) -> Result<(usize, usize), Unfit> {
    match packet.first() {
        None => return Err(Unfit::Malformed),
        Some(first) if first >> 4 != 4 => return Err(Unfit::OtherVersion),
        Some(_) => {}
    }
    let Some(fixed) = packet.first_chunk::<HEADER>() else { return Err(Unfit::Malformed) };
    let header = usize::from(fixed[0] & 0xf) * 4;
    let total = usize::from(u16_at(fixed, 2));
    if header < HEADER || total < header || total > packet.len() {
        return Err(Unfit::Malformed);
    }
    Ok((header, total))
}

/// Counts one more node on the packet's way, as flannel's proxy does, and puts the header's checksum right (RFC 1624).
///
/// # Errors
/// The packet went through too many nodes.
pub fn count_hop(packet: &mut [u8]) -> Result<(), Unfit> {
    let Some(header) = packet.first_chunk_mut::<HEADER>() else { return Err(Unfit::Malformed) };
    if header[8] <= 1 {
        return Err(Unfit::Expired);
    }
    header[8] -= 1;
    // The word of time to live and protocol is 0x100 less, so the complement of the sum is that much more, modulo 0xffff.
    let sum = u32::from(u16_at(header, 10)) + 0x100;
    put_u16(header, 10, (sum + u32::from(sum >= 0xffff)) as u16);
    Ok(())
}

/// Writes the length of the packet and the header's checksum into a header.
pub fn finish(header: &mut [u8], total: u16) {
    put_u16(header, 2, total);
    put_u16(header, 10, 0);
    let checksum = Sum::default().with(header).checksum();
    header[10..12].copy_from_slice(&checksum);
}

/// Whether it is a part of a larger packet.
pub fn is_fragment(header: &[u8]) -> bool {
    u16_at(header, 6) & IS_FRAGMENT != 0
}

/// Whether it must not become a part of several, so that its identification means nothing (RFC 6864).
pub fn is_atomic(header: &[u8]) -> bool {
    u16_at(header, 6) & DONT_FRAGMENT != 0
}

/// A 16-bit number of a header, which must be there.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A 32-bit number of a header, which must be there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a 16-bit number into a header, which must have room.
pub fn put_u16(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}
