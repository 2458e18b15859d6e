//! Netlink framing: message headers and attributes. Pure; never panics on bytes from outside.

/// Flags of a message header (`linux/netlink.h`).
pub mod flags {
    /// A request; the socket adds it to every message it frames itself.
    pub const REQUEST: u16 = 0x1;
    /// More messages of the same answer follow.
    pub const MULTI: u16 = 0x2;
    /// Ask for an acknowledgement.
    pub const ACK: u16 = 0x4;
    /// Ask for the created object to be sent back.
    pub const ECHO: u16 = 0x8;
    /// (answers) A dump was interrupted by a change; read it again.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    /// (GET) Return every object.
    pub const DUMP: u16 = 0x300;
    /// (NEW) Replace an object that exists.
    pub const REPLACE: u16 = 0x100;
    /// (NEW) Fail with EEXIST if the object exists.
    pub const EXCLUSIVE: u16 = 0x200;
    /// (NEW) Create the object if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// (NEW) Add to the end of the list.
    pub const APPEND: u16 = 0x800;
    /// (errors) The request's payload is left out.
    pub const CAPPED: u16 = 0x100;
    /// (errors) Attributes with an explanation follow.
    pub const ACK_ATTRIBUTES: u16 = 0x200;
}

/// Bytes of a message header.
const HEADER: usize = 16;

/// One message, borrowed from a received buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`, for example `RTM_NEWLINK`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request it answers; zero for a notification.
    pub sequence: u32,
    /// `nlmsg_pid`: in a notification the port of the socket whose request it tells of; zero for the kernel itself.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Received messages, kept as the bytes they came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Messages(pub(super) Vec<u8>);

impl Messages {
    /// Takes a buffer of concatenated messages, as one or more receives returned it.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The messages in order. Stops at the first header that makes no sense.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        split(&self.0)
    }

    /// The first message, for requests that are answered with one.
    pub fn first(&self) -> Option<Message<'_>> {
        self.iter().next()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }
}

/// Splits a buffer into messages; stops at the first header that makes no sense.
pub(super) fn split(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let length = u32_at(header, 0)? as usize;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            sequence: u32_at(header, 8)?,
            port: u32_at(header, 12)?,
            payload,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Appends a framed message to `buffer`, padded to four bytes. `flags` are used as they are.
pub fn push_message(buffer: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = (HEADER + payload.len()) as u32;
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.extend_from_slice(payload);
    buffer.resize(align(buffer.len()), 0);
}

/// Appends one attribute to `buffer`, padded to four bytes. A nest is an attribute whose value is attributes.
///
/// `value` must be shorter than 64 KiB: the length field has 16 bits.
pub fn push_attribute(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    debug_assert!(value.len() <= usize::from(u16::MAX) - 4, "attribute {kind} of {} bytes is too long", value.len());
    buffer.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(value);
    buffer.resize(align(buffer.len()), 0);
}

/// The attributes in `bytes` as (kind without the nest and byte-order bits, value). Stops at the first that makes no
/// sense.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Two bytes at `at`, in the machine's order; `None` beyond the end.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes at `at`, in the machine's order; `None` beyond the end.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_come_back_as_they_were_pushed() {
        let mut payload = Vec::new();
        push_attribute(&mut payload, 1, b"abc");
        push_attribute(&mut payload, 2 | 0x8000, &[]);
        let mut buffer = Vec::new();
        push_message(&mut buffer, 16, flags::REQUEST, 7, &payload);
        push_message(&mut buffer, 17, 0, 8, b"x");
        let messages = Messages::from_bytes(buffer);
        let all: Vec<_> = messages.iter().collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].flags, all[0].sequence), (16, flags::REQUEST, 7));
        assert_eq!(attributes(all[0].payload).collect::<Vec<_>>(), [(1, &b"abc"[..]), (2, &[][..])]);
        assert_eq!(all[1], Message { kind: 17, flags: 0, sequence: 8, port: 0, payload: b"x" });
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let total: usize = split(&bytes).map(|m| m.payload.len() + attributes(m.payload).count()).sum();
            prop_assert!(total <= bytes.len() * 2);
            prop_assert!(attributes(&bytes).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
        }
    }
}
