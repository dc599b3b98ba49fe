//! Drawing a token from logits: temperature, top-k, top-p and the log-probability of what was drawn, by inverting the
//! cumulative distribution at a given number.
//!
//! This is the CPU's form and the twin of the kernel that draws on a device (`ops/cuda/sample.cu`).

use crate::kernels::math::softmax_weights;

/// What tokens are drawn from, made of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the fewest likeliest tokens that hold this share of the probability; 1 keeps all.
    pub top_p: f64,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
}

/// Vocabularies above this are summed by blocks of so many tokens, with vectors, and only one block is searched.
pub const BLOCK: usize = 4096;

/// Draws a token by inverting the distribution at `u`, and gives its log-probability under the distribution that was
/// drawn from (temperature and truncation included). Overwrites `logits`.
pub fn sample(logits: &mut [f32], from: &Distribution, u: f64) -> (u32, f32) {
    if from.temperature <= 0.0 {
        return (likeliest(logits) as u32, 0.0);
    }
    let inverse = 1.0 / from.temperature as f32;
    let truncated = from.top_k > 0 && from.top_k < logits.len() || from.top_p < 1.0;
    if logits.len() > BLOCK {
        let sums = softmax_weights(logits, inverse, BLOCK);
        if !truncated {
            return by_blocks(logits, &sums, u);
        }
        let total = truncate(logits, from, sums.iter().sum());
        return one_of(logits, total, u);
    }
    let top = logits[likeliest(logits)];
    let mut total = 0.0f64;
    for z in logits.iter_mut() {
        *z = ((*z - top) * inverse).exp();
        total += f64::from(*z);
    }
    if truncated {
        total = truncate(logits, from, total);
    }
    one_of(logits, total, u)
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> usize {
    let larger = |best: (usize, f32), (i, &z): (usize, &f32)| if z > best.1 { (i, z) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), larger).0
}

/// The token at `u` of weights that sum up to `total`.
fn one_of(weights: &[f32], total: f64, u: f64) -> (u32, f32) {
    let token = invert(weights, u * total).unwrap_or_else(|| likeliest(weights));
    (token as u32, (f64::from(weights[token]) / total).ln() as f32)
}

/// [`one_of`] of weights whose blocks sum up to `sums`.
fn by_blocks(weights: &[f32], sums: &[f64], u: f64) -> (u32, f32) {
    let total: f64 = sums.iter().sum();
    let mut before = 0.0;
    let mut found = 0;
    for (block, &sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        found = block;
        if before + sum > u * total {
            break;
        }
        before += sum;
    }
    let first = found * BLOCK;
    let block = &weights[first..weights.len().min(first + BLOCK)];
    let token = first + invert(block, u * total - before).unwrap_or_else(|| likeliest(block));
    (token as u32, (f64::from(weights[token]) / total).ln() as f32)
}

/// Zeroes the weights outside of top-k and top-p, and returns the sum of the rest. Ties go to the lower id.
fn truncate(weights: &mut [f32], from: &Distribution, total: f64) -> f64 {
    let limited = from.top_k > 0 && from.top_k < weights.len();
    // All weights below this together are less than what top-p may leave out.
    let floor = if limited { 0.0 } else { (1.0 - from.top_p) * total / weights.len() as f64 };
    let mut order: Vec<usize> = (0..weights.len()).filter(|&i| f64::from(weights[i]) >= floor).collect();
    let by_weight = |&a: &usize, &b: &usize| weights[b].total_cmp(&weights[a]).then(a.cmp(&b));
    if limited {
        order.select_nth_unstable_by(from.top_k - 1, by_weight);
        order.truncate(from.top_k);
    }
    order.sort_by(by_weight);
    let within: f64 = if limited { order.iter().map(|&i| f64::from(weights[i])).sum() } else { total };
    let mut kept = 0.0;
    let mut count = 0;
    while count < order.len() && (count == 0 || kept < from.top_p * within) {
        kept += f64::from(weights[order[count]]);
        count += 1;
    }
    let rest: Vec<(usize, f32)> = order[..count].iter().map(|&i| (i, weights[i])).collect();
    weights.fill(0.0);
    for (i, weight) in rest {
        weights[i] = weight;
    }
    kept
}

/// The first index at which the running sum passes `target`; `None` when rounding keeps it from doing so.
fn invert(weights: &[f32], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights.iter().position(|&w| {
        sum += f64::from(w);
        w > 0.0 && sum > target
    })
}
