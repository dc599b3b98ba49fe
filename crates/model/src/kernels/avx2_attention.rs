//! [`super::decode_attention`] in AVX2 and FMA intrinsics, two queries of a head at a time, for CPUs without AVX-512: the same
//! sums in the same order.
//!
//! What limits it is loads, so what is loaded serves two queries, and values are summed for one of [`POSITIONS`] classes of
//! positions at a time: the sums of all four would need more than the sixteen registers there are. On a Zen 5 without its
//! AVX-512 it takes 0.57 to 0.62 of the time of the generic one.

use super::decode_attention::{LANES, POSITIONS, Seen};
use super::math;
use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

/// Numbers a register holds.
const WIDTH: usize = 8;
/// Registers of a block of positions.
const VECTORS: usize = LANES / WIDTH;
/// Key blocks whose scores are summed side by side.
const BLOCKS: usize = 2;

/// Whether this CPU and this width of a head are for [`attend`].
pub fn is_for(dim: usize) -> bool {
    dim.is_multiple_of(LANES) && super::avx2::is_there()
}

/// [`Seen::attend`]; `scores` holds twice as many as there.
#[target_feature(enable = "avx2,fma")]
pub fn attend(seen: &Seen, queries: &[f32], out: &mut [f32], scores: &mut [f32]) {
    let pair = 2 * seen.dim;
    let (pairs, rest) = queries.split_at(queries.len() / pair * pair);
    let (out, out_rest) = out.split_at_mut(pairs.len());
    for (queries, out) in pairs.chunks_exact(pair).zip(out.chunks_exact_mut(pair)) {
        together::<2>(seen, queries, out, scores);
    }
    if !rest.is_empty() {
        together::<1>(seen, rest, out_rest, scores);
    }
}

/// `G` queries `[G, dim]`.
#[target_feature(enable = "avx2,fma")]
fn together<const G: usize>(seen: &Seen, queries: &[f32], out: &mut [f32], scores: &mut [f32]) {
    let Seen { dim, len, .. } = *seen;
    let blocks = len.div_ceil(LANES);
    let mut rows = scores.chunks_exact_mut(blocks * LANES);
    let mut rows: [&mut [f32]; G] = std::array::from_fn(|_| rows.next().unwrap_or_default());
    let mut block = 0;
    while block + BLOCKS <= blocks {
        score::<BLOCKS, G>(seen, queries, block, &mut rows);
        block += BLOCKS;
    }
    while block < blocks {
        score::<1, G>(seen, queries, block, &mut rows);
        block += 1;
    }
    let scale = 1.0 / (dim as f32).sqrt();
    let inverse: [f32; G] = std::array::from_fn(|g| 1.0 / math::exp_shifted(&mut rows[g][..len], scale));
    let weights: [&[f32]; G] = std::array::from_fn(|g| &rows[g][..len]);
    let mut start = 0;
    while start < dim {
        if dim - start >= 4 * WIDTH {
            weigh::<4, G>(seen, weights, inverse, start, out);
            start += 4 * WIDTH;
        } else {
            weigh::<2, G>(seen, weights, inverse, start, out);
            start += 2 * WIDTH;
        }
    }
}

/// Scores of `B` blocks of positions from `first` on.
#[target_feature(enable = "avx2,fma")]
fn score<const B: usize, const G: usize>(seen: &Seen, queries: &[f32], first: usize, scores: &mut [&mut [f32]; G]) {
    let dim = seen.dim;
    let keys: [&[f32]; B] = std::array::from_fn(|b| seen.keys(first + b));
    let queries: [&[f32]; G] = std::array::from_fn(|g| &queries[g * dim..(g + 1) * dim]);
    let mut sums: [[[__m256; VECTORS]; B]; G] = [[[_mm256_setzero_ps(); VECTORS]; B]; G];
    for d in 0..dim {
        // SAFETY: each query is `[dim]` and `d < dim`.
        let q: [__m256; G] = std::array::from_fn(|g| _mm256_set1_ps(unsafe { *queries[g].as_ptr().wrapping_add(d) }));
        for (b, keys) in keys.iter().enumerate() {
            // SAFETY: `keys` are `[dim, LANES]`, `d < dim`, and a row has `VECTORS` registers.
            let key: [__m256; VECTORS] =
                unsafe { std::array::from_fn(|v| _mm256_loadu_ps(keys.as_ptr().wrapping_add(d * LANES + v * WIDTH))) };
            for (sums, q) in sums.iter_mut().zip(q) {
                for (sum, key) in sums[b].iter_mut().zip(key) {
                    *sum = _mm256_fmadd_ps(q, key, *sum);
                }
            }
        }
    }
    for (sums, scores) in sums.iter().zip(scores) {
        let scores = &mut scores[first * LANES..(first + B) * LANES];
        for (sum, scores) in sums.as_flattened().iter().zip(scores.chunks_exact_mut(WIDTH)) {
            // SAFETY: a chunk has `WIDTH = 8` elements.
            unsafe { _mm256_storeu_ps(scores.as_mut_ptr(), *sum) };
        }
    }
}

/// `out = inverse * sum_t p_t v_t` for `W` registers of columns from `start` on.
#[target_feature(enable = "avx2,fma")]
fn weigh<const W: usize, const G: usize>(
    seen: &Seen,
    weights: [&[f32]; G],
    inverse: [f32; G],
    start: usize,
    out: &mut [f32],
) {
    let mut sums: [[[__m256; W]; G]; POSITIONS] = [[[_mm256_setzero_ps(); W]; G]; POSITIONS];
    for (class, sums) in sums.iter_mut().enumerate() {
        *sums = weigh_class(seen, weights, start, class);
    }
    for g in 0..G {
        let out = &mut out[g * seen.dim + start..][..W * WIDTH];
        for (w, out) in out.chunks_exact_mut(WIDTH).enumerate() {
            let low = _mm256_add_ps(sums[0][g][w], sums[1][g][w]);
            let high = _mm256_add_ps(sums[2][g][w], sums[3][g][w]);
            let sum = _mm256_mul_ps(_mm256_add_ps(low, high), _mm256_set1_ps(inverse[g]));
            // SAFETY: a chunk has `WIDTH = 8` elements.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// The weighted values of every [`POSITIONS`]th position from `class` on; the last few positions are of the first class.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh_class<const W: usize, const G: usize>(
    seen: &Seen,
    weights: [&[f32]; G],
    start: usize,
    class: usize,
) -> [[__m256; W]; G] {
    let mut sums = [[_mm256_setzero_ps(); W]; G];
    for block in 0..seen.len.div_ceil(LANES) {
        let positions = LANES.min(seen.len - block * LANES);
        let values = &seen.values(block)[start..];
        let p: [&[f32]; G] = std::array::from_fn(|g| &weights[g][block * LANES..][..positions]);
        let whole = positions / POSITIONS * POSITIONS;
        let mut t = class;
        while t < whole {
            accumulate(&values[t * seen.dim..], p, t, &mut sums);
            t += POSITIONS;
        }
        if class == 0 {
            for t in whole..positions {
                accumulate(&values[t * seen.dim..], p, t, &mut sums);
            }
        }
    }
    sums
}

/// Adds the weighted value of one position.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn accumulate<const W: usize, const G: usize>(
    value: &[f32],
    weights: [&[f32]; G],
    t: usize,
    sums: &mut [[__m256; W]; G],
) {
    let p: [__m256; G] = std::array::from_fn(|g| _mm256_set1_ps(weights[g][t]));
    for (w, value) in value[..W * WIDTH].chunks_exact(WIDTH).enumerate() {
        // SAFETY: a chunk has `WIDTH = 8` elements.
        let value = unsafe { _mm256_loadu_ps(value.as_ptr()) };
        for (sums, p) in sums.iter_mut().zip(p) {
            sums[w] = _mm256_fmadd_ps(p, value, sums[w]);
        }
    }
}
