//! Netlink attributes.

use crate::netlink::push_attribute;

/// Attributes one after the other.
#[derive(Debug, Default)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Bytes as they are.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        push_attribute(&mut self.0, kind, value);
    }

    /// Text with a zero at its end.
    pub fn string(&mut self, kind: u16, text: &str) {
        let begin = self.0.len();
        self.0.extend_from_slice(&((text.len() + 5) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.resize((begin + text.len() + 5).next_multiple_of(4), 0);
    }

    /// A number in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Attributes in an attribute, without the flag that says so: the kernel lists them without it.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let length = (self.0.len() - begin) as u16;
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[begin + 2..begin + 4].copy_from_slice(&kind.to_ne_bytes());
    }
}
