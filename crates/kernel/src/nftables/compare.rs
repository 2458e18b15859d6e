//! Whether a rule that the kernel lists is the one that was sent.

use super::uapi;
use crate::netlink::{attributes, u16_at};

/// Whether two lists of expressions do the same. The kernel lists every attribute of an expression, also those that
/// were not sent and have their defaults; those are not looked at.
pub(super) fn same_expressions(listed: &[u8], sent: &[u8]) -> bool {
    let (listed, sent): (Vec<_>, Vec<_>) = (attributes(listed).collect(), attributes(sent).collect());
    listed.len() == sent.len() && listed.iter().zip(sent).all(|((_, listed), (_, sent))| has_all(listed, sent))
}

/// Whether every attribute of `sent` is in `listed`, with the same value.
fn has_all(listed: &[u8], sent: &[u8]) -> bool {
    with_nests(sent).all(|(kind, is_nest, value)| {
        let found = attributes(listed).find(|(found, _)| *found == kind);
        found.is_some_and(|(_, found)| if is_nest { has_all(found, value) } else { found == value })
    })
}

/// The attributes in `bytes`, and whether each says that it is a nest: what was encoded here says so of every nest.
fn with_nests(mut bytes: &[u8]) -> impl Iterator<Item = (u16, bool, &[u8])> {
    std::iter::from_fn(move || {
        let (kind, value) = attributes(bytes).next()?;
        let is_nest = u16_at(bytes, 2)? & uapi::NESTED != 0;
        bytes = bytes.get((value.len() + 4).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, is_nest, value))
    })
}
