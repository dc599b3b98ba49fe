//! One token from logits: temperature, top-k, top-p and the log-probability of what was drawn.
//!
//! The random number of a token depends on its row's stream and its place in the response alone, so neither the batch, nor
//! the number of threads, nor an interruption changes what is sampled.

use crate::ending::Endings;
use model::ops::sample::{Distribution, sample};

/// How tokens are drawn, and which end a response.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the fewest likeliest tokens that hold this share of the probability; 1 keeps all.
    pub top_p: f64,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Tokens that end a response.
    pub stop: Vec<u32>,
    /// What else ends a response.
    pub endings: Option<Endings>,
}

impl Sampling {
    /// The model's own distribution at a temperature.
    pub fn at(temperature: f64, stop: &[u32]) -> Self {
        Self { temperature, top_p: 1.0, top_k: 0, stop: stop.to_vec(), endings: None }
    }

    /// What tokens are drawn from.
    pub fn distribution(&self) -> Distribution {
        Distribution { temperature: self.temperature, top_p: self.top_p, top_k: self.top_k }
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood 2014): a bijection that mixes every bit into every other.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of one row from the numbers that name it, such as seed, step, problem and sample.
pub fn stream(name: &[u64]) -> u64 {
    name.iter().fold(0, |state, &part| mix(state ^ mix(part)))
}

/// Uniform in `[0, 1)`: the number of token `t` of a stream.
pub fn uniform(stream: u64, t: usize) -> f64 {
    (mix(stream ^ mix(t as u64)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws a token by inverting the distribution at `u`, and gives its log-probability under the distribution that was
/// drawn from (temperature and truncation included). Overwrites `logits`.
pub fn pick(logits: &mut [f32], sampling: &Sampling, u: f64) -> (u32, f32) {
    sample(logits, &sampling.distribution(), u)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ops::sample::BLOCK;

    fn sampling(temperature: f64, top_p: f64, top_k: usize) -> Sampling {
        Sampling { top_p, top_k, ..Sampling::at(temperature, &[]) }
    }

    /// Probabilities 1/2, 1/4, 1/8, 1/8.
    fn logits() -> Vec<f32> {
        [8.0f32, 4.0, 2.0, 2.0].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn inverts_the_distribution() {
        for (u, token, p) in [(0.0, 0, 0.5), (0.49, 0, 0.5), (0.51, 1, 0.25), (0.76, 2, 0.125), (0.99, 3, 0.125)] {
            let (got, log_prob) = pick(&mut logits(), &sampling(1.0, 1.0, 0), u);
            assert_eq!(got, token);
            assert!((log_prob.exp() - p).abs() < 1e-6);
        }
    }

    #[test]
    fn log_probs_are_those_of_the_truncated_distribution() {
        let (token, log_prob) = pick(&mut logits(), &sampling(1.0, 1.0, 2), 0.9);
        assert_eq!(token, 1);
        assert!((log_prob.exp() - 1.0 / 3.0).abs() < 1e-6);
        let (token, log_prob) = pick(&mut logits(), &sampling(1.0, 0.5, 0), 0.999);
        assert_eq!((token, log_prob), (0, 0.0));
        let (token, _) = pick(&mut logits(), &sampling(1.0, 0.8, 0), 0.999);
        assert_eq!(token, 2);
    }

    #[test]
    fn temperature_sharpens_and_zero_is_greedy() {
        let (_, log_prob) = pick(&mut logits(), &sampling(0.5, 1.0, 0), 0.0);
        // 64 / (64 + 16 + 4 + 4)
        assert!((log_prob.exp() - 64.0 / 88.0).abs() < 1e-6);
        assert_eq!(pick(&mut logits(), &sampling(0.0, 1.0, 0), 0.99), (0, 0.0));
    }

    /// A large vocabulary's logits in which a small one's are spread, everything else impossible.
    fn spread(small: &[f32]) -> Vec<f32> {
        let mut large = vec![f32::NEG_INFINITY; 3 * BLOCK + 100];
        for (i, &z) in small.iter().enumerate() {
            large[i * 2999] = z;
        }
        large
    }

    #[test]
    fn a_large_vocabulary_is_drawn_from_alike() {
        let small: Vec<f32> = (0..5).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        for (top_p, top_k) in [(1.0, 0), (0.7, 0), (1.0, 3), (0.6, 4), (0.01, 0)] {
            let sampling = sampling(0.8, top_p, top_k);
            for step in 0..1000 {
                let u = f64::from(step) / 1000.0;
                let (want, p) = pick(&mut small.clone(), &sampling, u);
                let (got, q) = pick(&mut spread(&small), &sampling, u);
                assert_eq!(got, want * 2999, "at {u} of top-p {top_p}, top-k {top_k}");
                assert!((p - q).abs() < 1e-5, "{p} {q}");
            }
        }
        assert_eq!(pick(&mut spread(&small), &sampling(0.0, 1.0, 0), 0.5).0 % 2999, 0);
        let tied = pick(&mut vec![0.0; 2 * BLOCK], &sampling(1.0, 1.0, 5), 0.999);
        assert_eq!((tied.0, (tied.1.exp() * 5.0).round()), (4, 1.0), "ties go to the lower id");
    }

    #[test]
    fn a_logit_that_is_not_a_number_is_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(pick(&mut logits, &sampling(1.0, 1.0, 0), 0.999_999).0, 1);
    }

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let names: [&[u64]; 5] = [&[1, 2, 3], &[1, 3, 2], &[2, 2, 3], &[1, 2], &[1, 2, 3, 0]];
        let streams: std::collections::BTreeSet<u64> = names.iter().map(|n| stream(n)).collect();
        assert_eq!(streams.len(), names.len());
        let mean: f64 = (0..10_000).map(|t| uniform(streams.first().copied().unwrap(), t)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02);
    }
}
