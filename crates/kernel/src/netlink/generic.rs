//! Generic netlink: families that have a name for good and a number since boot. Pure but for [`Socket::family`].

use std::fmt::Arguments;

use super::{Socket, attributes, push_attribute, u16_at};
use crate::{Error, Result};

/// `GENL_ID_CTRL`: the family that knows the others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `struct genlmsghdr`, which a message of a family begins with: the command, the family's version.
pub fn header(command: u8, version: u8) -> Vec<u8> {
    vec![command, version, 0, 0]
}

/// What follows [`header`] in a message from the kernel.
pub fn after_header(payload: &[u8]) -> &[u8] {
    payload.get(4..).unwrap_or_default()
}

impl Socket {
    /// The number that the family `name` has since boot. Asking loads the module that provides it.
    ///
    /// # Errors
    /// Not found ([`Error::is_not_found`]) when the kernel has no such family.
    pub fn family(&mut self, name: &str, what: Arguments<'_>) -> Result<u16> {
        let mut request = header(GET_FAMILY, 1);
        push_attribute(&mut request, FAMILY_NAME, format!("{name}\0").as_bytes());
        let answer = self.request(CONTROL, 0, &request, what)?;
        let number = answer.first().and_then(|message| family_number(message.payload));
        number.ok_or_else(|| Error::malformed(what, "no family number"))
    }
}

fn family_number(payload: &[u8]) -> Option<u16> {
    let (_, value) = attributes(after_header(payload)).find(|(kind, _)| *kind == FAMILY_ID)?;
    u16_at(value, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::Protocol;

    #[test]
    fn families_are_found_by_name() {
        let mut socket = Socket::open(Protocol::Generic).unwrap();
        assert_eq!(socket.family("nlctrl", format_args!("find nlctrl")).unwrap(), CONTROL);
        let error = socket.family("no-such-family", format_args!("find it")).unwrap_err();
        assert!(error.is_not_found() && error.to_string().starts_with("cannot find it: "), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = family_number(&bytes);
        }
    }
}
