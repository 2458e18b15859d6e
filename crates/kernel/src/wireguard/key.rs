use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{Result, process::tried};

/// Bytes of every key.
const LENGTH: usize = 32;

/// The text is not 32 bytes in base64, or says zero, which is no key. It is not repeated here: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: expected 44 characters of base64, as `wg genkey` prints them")]
pub struct NotAKey;

/// The public half of a Curve25519 key: who a peer is. Printed and read as base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; LENGTH]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        decode(text).map(Self)
    }
}

/// The secret half of a Curve25519 key: who this node is.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; LENGTH]);

impl PrivateKey {
    /// A new one from the kernel's random numbers.
    ///
    /// # Errors
    /// The kernel gives none: only on kernels before 3.17.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; LENGTH];
        // A call for up to 256 bytes is never cut short (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(tried("read random numbers for a WireGuard key"))?;
        Ok(Self::from_bytes(bytes))
    }

    /// Takes bytes as the kernel does: of the 256 bits five are given (RFC 7748, section 5), whatever they are here.
    pub fn from_bytes(mut bytes: [u8; LENGTH]) -> Self {
        bytes[0] &= 0xf8;
        bytes[LENGTH - 1] = bytes[LENGTH - 1] & 0x7f | 0x40;
        Self(bytes)
    }

    /// The key that peers know this one by.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::x25519(self.0, x25519_dalek::X25519_BASEPOINT_BYTES))
    }

    /// The text for a file that nobody else may read: base64, as `wg genkey` prints it and flannel stores it.
    pub fn to_secret_text(&self) -> String {
        STANDARD.encode(self.0)
    }

    pub(super) const fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

impl FromStr for PrivateKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        decode(text).map(Self::from_bytes)
    }
}

/// A secret that two peers share besides their keys.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; LENGTH]);

impl PresharedKey {
    /// What the kernel holds; all zeroes stand for none.
    pub(super) fn from_bytes(bytes: [u8; LENGTH]) -> Option<Self> {
        (bytes != [0; LENGTH]).then_some(Self(bytes))
    }

    pub(super) const fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

impl FromStr for PresharedKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        decode(text).map(Self)
    }
}

/// White space around the text is ignored: key files end with a line's end, or not.
fn decode(text: &str) -> Result<[u8; LENGTH], NotAKey> {
    let bytes = STANDARD.decode(text.trim()).map_err(|_| NotAKey)?;
    let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| NotAKey)?;
    if bytes == [0; LENGTH] { Err(NotAKey) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7748, section 6.1: Alice's keys.
    const PRIVATE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
        0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
    ];
    const PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d, 0xbf,
        0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
    ];

    #[test]
    fn the_public_key_is_that_of_the_standard() {
        let private = PrivateKey::from_bytes(PRIVATE);
        assert_eq!(private.public(), PublicKey(PUBLIC));
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_secrets_are_not_shown() {
        let private = PrivateKey::generate().unwrap();
        let text = private.to_secret_text();
        assert_eq!(format!("{text}\n").parse::<PrivateKey>().unwrap(), private);
        assert_ne!(PrivateKey::generate().unwrap(), private);
        let shared: PresharedKey = text.parse().unwrap();
        let shown = format!("{private:?} {shared:?}");
        assert!(!shown.contains(&text) && shown.contains(&private.public().to_string()), "{shown}");
    }

    #[test]
    fn what_is_no_key_is_refused_without_repeating_it() {
        let zero = STANDARD.encode([0; 32]);
        for wrong in ["", "secret", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8yk==", zero.as_str()] {
            assert_eq!(wrong.parse::<PrivateKey>(), Err(NotAKey), "{wrong}");
            assert_eq!(wrong.parse::<PublicKey>(), Err(NotAKey), "{wrong}");
        }
        assert!(!NotAKey.to_string().contains("secret"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ -~]{0,60}|[A-Za-z0-9+/]{43}=") {
            if let Ok(key) = text.parse::<PublicKey>() {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
            }
        }
    }
}
