//! Identifiers nobody can guess.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::crypto::ring;

/// Letters of generated names: no vowels, so that no words appear.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Fails only where the kernel has no randomness at all. A token that can be guessed is worse than a failed request.
    assert!(ring::default_provider().secure_random.fill(&mut bytes).is_ok(), "the kernel gives no random bytes");
    bytes
}

/// A version 4 UUID.
pub(crate) fn uid() -> String {
    let mut b: [u8; 16] = bytes();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let n = u128::from_be_bytes(b);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        n >> 96,
        n >> 80 & 0xffff,
        n >> 64 & 0xffff,
        n >> 48 & 0xffff,
        n & 0xffff_ffff_ffff
    )
}

/// The five letters after a `generateName`.
pub(crate) fn suffix() -> String {
    bytes::<5>().iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

/// A number below `limit` (or 0 when that is 0), evenly enough to pick an address or a port.
pub(crate) fn below(limit: u128) -> u128 {
    u128::from_be_bytes(bytes()).checked_rem(limit).unwrap_or(0)
}

/// A bearer token of 256 bits.
pub(crate) fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_have_their_form() {
        let uid = uid();
        let lengths: Vec<_> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, super::uid());
    }

    #[test]
    fn suffixes_are_five_letters() {
        let suffix = suffix();
        assert_eq!(suffix.len(), 5);
        assert!(suffix.bytes().all(|b| ALPHABET.contains(&b)));
    }
}
