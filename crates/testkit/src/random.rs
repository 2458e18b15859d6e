//! Randomness that comes again with the same seed.

/// A generator of pseudo-random numbers (SplitMix64): small, fast, good enough to choose what a test does.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Gives the same numbers for the same seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, 0 if that is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        // Taking the upper half of the product instead of a remainder: no division, hardly any bias.
        ((self.number() as u128 * bound as u128) >> 64) as usize
    }

    /// True once in `n` times.
    pub const fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Each of `choices` or not, in their order.
    pub fn some<T: Copy>(&mut self, choices: &[T]) -> Vec<T> {
        choices.iter().copied().filter(|_| self.one_in(2)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_all_of_them() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        let numbers: Vec<usize> = (0..1000).map(|_| a.below(10)).collect();
        assert!(numbers.iter().all(|number| *number == b.below(10)));
        assert!((0..10).all(|number| numbers.iter().filter(|n| **n == number).count() > 60), "{numbers:?}");
        assert_eq!(a.below(0), 0);
    }
}
