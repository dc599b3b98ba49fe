//! Elementwise maths and reductions that vectorise: every function is inlined into a `vectorized!` expression.
//!
//! Sums run in [`LANES`] independent partial sums, folded in a fixed order: vectorisable, and the same bits each time.

/// Partial sums of a reduction: one AVX-512 register, two AVX2 registers.
pub const LANES: usize = 16;

/// `e^x` within 2 ulp for `x` in `[-87, 88]`; below it is the smallest normal number's neighbourhood, above it saturates.
///
/// Cody-Waite reduction to `[-ln2/2, ln2/2]` and the degree-6 Taylor-like minimax polynomial of Cephes `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits: rounding without a branch.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    p * scale
}

/// The logistic function.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `sum_i f(x_i)`.
#[inline(always)]
pub fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    fold(lanes, |a, b| a + b) + rest.iter().map(|&v| f(v)).sum::<f32>()
}

/// The dot product.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    let mut lanes = [0.0f32; LANES];
    let xs = x.chunks_exact(LANES);
    let ys = y.chunks_exact(LANES);
    let rest = xs.remainder().iter().zip(ys.remainder());
    for (a, b) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    fold(lanes, |a, b| a + b) + rest.map(|(&a, &b)| a * b).sum::<f32>()
}

/// The largest element; `-inf` for an empty slice.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    let best = fold(lanes, |a, b| if b > a { b } else { a });
    rest.iter().fold(best, |a, &b| if b > a { b } else { a })
}

/// Replaces `x` by `exp(scale * (x - max))` and returns the sum: a softmax that still has to be divided.
#[inline(always)]
pub fn exp_shifted(x: &mut [f32], scale: f32) -> f32 {
    let shift = max(x) * scale;
    exp_all(x, scale, shift)
}

/// With `s = scale z - shift`: `(sum e^s, sum s e^s)`.
#[inline(always)]
pub fn softmax_sums(z: &[f32], scale: f32, shift: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
    let chunks = z.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            let s = chunk[i] * scale - shift;
            let weight = exp(s);
            sums[i] += weight;
            weighted[i] += weight * s;
        }
    }
    let (mut sum, mut weighted) = (fold(sums, |a, b| a + b), fold(weighted, |a, b| a + b));
    for z in rest {
        let s = z * scale - shift;
        let weight = exp(s);
        sum += weight;
        weighted += weight * s;
    }
    (sum, weighted)
}

/// Replaces logits `z` by `exp((z - max) * inverse)`, and returns the sum of each block of `size` of them.
pub fn softmax_weights(logits: &mut [f32], inverse: f32, size: usize) -> Vec<f64> {
    let mut sums = vec![0.0; logits.len().div_ceil(size)];
    super::vectorized!({
        let shift = max(logits) * inverse;
        for (sum, block) in sums.iter_mut().zip(logits.chunks_mut(size)) {
            *sum = f64::from(exp_all(block, inverse, shift));
        }
    });
    sums
}

/// Replaces `x` by `exp(scale * x - shift)` and returns the sum.
#[inline(always)]
fn exp_all(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i].mul_add(scale, -shift));
            lanes[i] += chunk[i];
        }
    }
    let mut sum = fold(lanes, |a, b| a + b);
    for v in chunks.into_remainder() {
        *v = exp(v.mul_add(scale, -shift));
        sum += *v;
    }
    sum
}

/// `y += a * x`.
#[inline(always)]
pub fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(x, *y);
    }
}

/// `y = x / rms(x) * w`, `rms(x) = sqrt(mean(x^2) + eps)`; returns `1 / rms(x)`.
#[inline(always)]
pub fn rms_norm_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = x * inverse * w;
    }
    inverse
}

/// [`rms_norm_row`] over its own input.
#[inline(always)]
pub fn rms_norm_in_place(x: &mut [f32], w: &[f32], eps: f32) {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for (x, &w) in x.iter_mut().zip(w) {
        *x = *x * inverse * w;
    }
}

/// Rotates one head `x: [d]` in place by the angles whose cosines and sines are `cos, sin: [d/2]` (half-split RoPE).
#[inline(always)]
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let (low, high) = x.split_at_mut(half);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (u, v) = (*a, *b);
        *a = u * c - v * s;
        *b = v * c + u * s;
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectorized;
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let got = vectorized!(exp(x)) as f64;
            let want = (x as f64).exp();
            assert!(((got - want) / want).abs() < 2.4e-7, "exp({x}) = {got}, not {want}");
            x += 0.0137;
        }
        assert!(exp(-1e30) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn reductions_agree_with_plain_sums_at_every_length() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.3).cos()).collect();
            let want: f32 = x.iter().zip(&y).map(|(a, b)| a * b).sum();
            assert!((vectorized!(dot(&x, &y)) - want).abs() < 1e-5);
            let sum: f32 = x.iter().sum();
            assert!((vectorized!(sum_by(&x, |a| a)) - sum).abs() < 1e-5);
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(vectorized!(max(&x)), top);
        }
    }
}
