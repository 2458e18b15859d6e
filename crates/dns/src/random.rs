//! Numbers that an outsider cannot guess: message ids, the order of answers.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// A keyed hash (SipHash, keyed by the system's random numbers) of a counter.
#[derive(Debug, Default)]
pub struct Random {
    keys: RandomState,
    counter: AtomicU64,
}

impl Random {
    /// The next number.
    pub fn next(&self) -> u64 {
        self.keys.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }
}
