//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.

use super::ipv4::Protocol;

/// A sum in the making, in the byte order of this machine: the order does not matter before the end (RFC 1071, 2 (B)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; only the last that are added may be of odd number.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        // Eight independent sums of 32-bit words, which the compiler makes vectors of; a 64-bit sum cannot overflow with
        // less than 16 GiB.
        let mut lanes = [0_u64; 8];
        let mut chunks = bytes.chunks_exact(32);
        for chunk in &mut chunks {
            for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = self.0 + lanes.iter().sum::<u64>();
        let (words, odd) = chunks.remainder().as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// Adds a number of a header.
    #[must_use]
    pub fn with_u16(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// Adds the pseudo header of TCP and UDP: the addresses, as they are in the IPv4 header, the protocol, and the length
    /// of transport header and data.
    #[must_use]
    pub fn with_pseudo(self, addresses: &[u8], protocol: Protocol, length: u16) -> Self {
        self.with(addresses).with_u16(u16::from(protocol.number())).with_u16(length)
    }

    /// The sum, folded to 16 bits, as the bytes of a header.
    pub fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum, as the bytes of a header.
    pub fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// Whether bytes that contain their checksum are intact.
    pub fn is_intact(self) -> bool {
        self.folded() == [0xff; 2]
    }
}
