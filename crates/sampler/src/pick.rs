//! One token from logits: temperature, top-k, top-p and the log-probability of what was drawn.
//!
//! The random number of a token depends on its row's stream and its place in the response alone, so neither the batch, nor
//! the number of threads, nor an interruption changes what is sampled.

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the fewest likeliest tokens that hold this share of the probability; 1 keeps all.
    pub top_p: f64,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Tokens that end a response.
    pub stop: Vec<u32>,
}

impl Sampling {
    /// The model's own distribution at a temperature.
    pub fn at(temperature: f64, stop: &[u32]) -> Self {
        Self { temperature, top_p: 1.0, top_k: 0, stop: stop.to_vec() }
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
    let top = logits.iter().copied().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (i, z)| {
            if z > best.1 { (i, z) } else { best }
        },
    );
    if sampling.temperature <= 0.0 {
        return (top.0 as u32, 0.0);
    }
    let inverse = 1.0 / sampling.temperature as f32;
    let mut total = 0.0f64;
    for z in logits.iter_mut() {
        *z = ((*z - top.1) * inverse).exp();
        total += f64::from(*z);
    }
    if sampling.top_k > 0 && sampling.top_k < logits.len() || sampling.top_p < 1.0 {
        total = truncate(logits, sampling, total);
    }
    let token = invert(logits, u * total).unwrap_or(top.0);
    (token as u32, (f64::from(logits[token]) / total).ln() as f32)
}

/// Zeroes the weights outside of top-k and top-p, and returns the sum of the rest. Ties go to the lower id.
fn truncate(weights: &mut [f32], sampling: &Sampling, total: f64) -> f64 {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let limit = if sampling.top_k == 0 { order.len() } else { sampling.top_k.min(order.len()) };
    let within: f64 =
        if limit == order.len() { total } else { order[..limit].iter().map(|&i| f64::from(weights[i])).sum() };
    let mut kept = 0.0;
    let mut count = 0;
    while count < limit && (count == 0 || kept < sampling.top_p * within) {
        kept += f64::from(weights[order[count]]);
        count += 1;
    }
    for &i in &order[count..] {
        weights[i] = 0.0;
    }
    kept
}

/// The first index at which the running sum passes `target`, never one of weight zero.
fn invert(weights: &[f32], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    let mut last = None;
    for (i, &w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        sum += f64::from(w);
        last = Some(i);
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_p: f64, top_k: usize) -> Sampling {
        Sampling { temperature, top_p, top_k, stop: vec![] }
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
