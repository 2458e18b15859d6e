//! `fallthrough`: which questions a plugin leaves to the next one when it has no answer.

use crate::{
    corefile::{CorefileError, Directive},
    message::DnsName,
    program::{nearest, zones},
};

/// The option as it was configured; without it, nothing falls through.
#[derive(Debug, Default)]
pub(crate) struct Fallthrough(Vec<DnsName>);

impl Fallthrough {
    /// `fallthrough [ZONES…]`; without zones, every name.
    pub(crate) fn new(option: &Directive) -> Result<Self, CorefileError> {
        Ok(Self(match option.plain(0, usize::MAX)? {
            [] => vec![DnsName::root_bytes()],
            words => zones(words)?,
        }))
    }

    /// Whether a name without an answer is the next plugin's.
    pub(crate) fn takes(&self, name: &DnsName) -> bool {
        nearest(&self.0, name).is_some()
    }

    /// Whether the option was given.
    pub(crate) fn is_set(&self) -> bool {
        !self.0.is_empty()
    }
}
