//! What happens to packets between TUN and socket: pure, on bytes, without IO.

pub(super) mod checksum;
pub(super) mod icmp;
pub(super) mod ipv4;
pub(super) mod merge;
pub(super) mod split;
#[cfg(test)]
mod tests;

use std::ops::Range;

/// A packet in two pieces: headers that were written anew, and what follows them from where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where the headers are among those that were written anew; empty if there was no need.
    pub headers: Range<usize>,
    /// Where the rest is in the original.
    pub rest: Range<usize>,
}

impl Piece {
    /// The length of the packet in bytes.
    pub fn length(&self) -> usize {
        self.headers.len() + self.rest.len()
    }
}
