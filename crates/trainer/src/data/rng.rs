//! A seeded random stream that yields the same numbers on every platform and in every version of the program.
//!
//! Problems, traces and shuffles are part of a run's identity: a crate that may change its algorithm between
//! versions would silently change the data. This is SplitMix64 (Steele, Lea and Flood, "Fast splittable
//! pseudorandom number generators", OOPSLA 2014): the state grows by a fixed odd constant and each output is a
//! bijective mix of the state. Changing anything here changes every generated data set; the tests pin the stream.

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The SplitMix64 output function: a bijection of 64-bit words in which every input bit reaches every output bit.
pub fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(GOLDEN_GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Hashes a sequence of words into one; order and length matter.
pub fn hash(words: &[u64]) -> u64 {
    words.iter().fold(mix(words.len() as u64), |state, &word| mix(state ^ word))
}

/// A stream of pseudorandom numbers; equal seeds give equal streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A stream that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A stream of its own for each key, such as `(seed, purpose, index)`, so that no draw depends on another's.
    pub fn keyed(key: &[u64]) -> Self {
        Self::new(hash(key))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let word = mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        word
    }

    /// Uniform in `0..bound`, by the high half of a 128-bit product; the bias is below `bound / 2^64`.
    ///
    /// # Panics
    /// If `bound` is 0: there is nothing to draw from.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "cannot draw from an empty range");
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with the given probability; always draws one number, so that a knob at 0 or 1 does not shift the stream.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Fisher-Yates: every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first outputs for seed 1234567 in the widely shared SplitMix64 test vector.
        let mut rng = Rng::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn bounded_draws_are_even() {
        let mut rng = Rng::keyed(&[1, 2]);
        let mut counts = [0u32; 5];
        for _ in 0..50_000 {
            counts[rng.below(5)] += 1;
        }
        // The standard deviation of a count is 89; 500 is more than five of them.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 500), "{counts:?}");
    }

    #[test]
    fn unit_is_in_range_and_chance_respects_its_ends() {
        let mut rng = Rng::new(7);
        for _ in 0..1_000 {
            assert!((0.0..1.0).contains(&rng.unit()));
            assert!(!rng.chance(0.0));
            assert!(rng.chance(1.0));
        }
    }

    #[test]
    fn a_key_is_ordered_and_a_shuffle_is_a_permutation() {
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_ne!(hash(&[0]), hash(&[0, 0]));
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
