//! The comment on elements of nftables sets, shown by `nft list`: whose they are.

use std::borrow::Cow;

use crate::{Call, Result};

/// Of the 127 bytes that a comment has, what is left for the network's name and for the container id; longer ones are
/// hashed.
const LONGEST_NETWORK: usize = 40;
const LONGEST_ID: usize = 64;

/// The attachment that `call` is about: `NETWORK/CONTAINER-ID/INTERFACE`.
pub fn of(call: &Call) -> String {
    owner(&call.network, &call.container_id, &call.ifname)
}

/// (GC) Whether something is of the network of the call and of none of its valid attachments.
///
/// # Errors
/// As [`Call::valid_attachments`].
pub fn stale(call: &Call) -> Result<impl Fn(&str) -> bool> {
    let valid = call.valid_attachments()?;
    let valid: Vec<String> = valid.iter().map(|(id, ifname)| owner(&call.network, id, ifname)).collect();
    let ours = format!("{}/", short(&call.network, LONGEST_NETWORK));
    Ok(move |comment: &str| comment.starts_with(&ours) && !valid.iter().any(|owner| owner == comment))
}

/// Network, container id and interface, where none of them was hashed.
pub fn parts(owner: &str) -> Option<(&str, &str, &str)> {
    let (network, rest) = owner.split_once('/')?;
    let (container_id, ifname) = rest.split_once('/')?;
    Some((network, container_id, ifname))
}

fn owner(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{}/{}/{ifname}", short(network, LONGEST_NETWORK), short(container_id, LONGEST_ID))
}

fn short(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{:016x}", podwire_kernel::stable_hash(text.bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_fits_into_a_comment() {
        assert_eq!(owner("cbr0", "box", "eth0"), "cbr0/box/eth0");
        assert_eq!(parts("cbr0/box/eth0"), Some(("cbr0", "box", "eth0")));
        let longest = owner(&"n".repeat(500), &"i".repeat(500), "interface-name1");
        assert!(longest.len() <= 127);
        assert_ne!(longest, owner(&"n".repeat(501), &"i".repeat(500), "interface-name1"));
    }
}
