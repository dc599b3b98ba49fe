//! [`super::decode_attention`] in AVX-512 intrinsics, two queries of a head at a time: the same sums in the same order.
//!
//! The optimiser stores the accumulators of the generic loops on the stack at every step, see [`super::avx512`].

use super::decode_attention::{LANES, POSITIONS, Seen};
use super::math;
use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Key blocks whose scores are summed side by side.
const BLOCKS: usize = 4;

/// Whether this CPU and this width of a head are for [`attend`].
pub fn is_for(dim: usize) -> bool {
    dim.is_multiple_of(LANES)
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// [`Seen::attend`]; `scores` holds twice as many as there.
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
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
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn together<const G: usize>(seen: &Seen, queries: &[f32], out: &mut [f32], scores: &mut [f32]) {
    let Seen { dim, len, .. } = *seen;
    let blocks = len.div_ceil(LANES);
    let size = blocks * LANES;
    let mut rows = scores.chunks_exact_mut(size);
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
        if dim - start >= 2 * LANES {
            weigh::<2, G>(seen, weights, inverse, start, out);
            start += 2 * LANES;
        } else {
            weigh::<1, G>(seen, weights, inverse, start, out);
            start += LANES;
        }
    }
}

/// Scores of `B` blocks of positions from `first` on.
///
/// A batch's cache does not fit into a core's own caches, and each block lies elsewhere: the values of these blocks and the
/// keys of the next ones are asked for ahead (measured: 9% more tokens a second of 64 rows of the embedded policy).
#[target_feature(enable = "avx512f")]
fn score<const B: usize, const G: usize>(seen: &Seen, queries: &[f32], first: usize, scores: &mut [&mut [f32]; G]) {
    let dim = seen.dim;
    let keys: [&[f32]; B] = std::array::from_fn(|b| seen.keys(first + b));
    let next: [*const f32; B] = std::array::from_fn(|b| seen.keys((first + B + b).min(seen.blocks.len() - 1)).as_ptr());
    let queries: [&[f32]; G] = std::array::from_fn(|g| &queries[g * dim..(g + 1) * dim]);
    let mut sums: [[__m512; B]; G] = [[_mm512_setzero_ps(); B]; G];
    for d in 0..dim {
        for b in 0..B {
            // SAFETY: `keys` are `[dim, LANES]` and `d < dim`.
            let key = unsafe { _mm512_loadu_ps(keys[b].as_ptr().wrapping_add(d * LANES)) };
            // Values lie behind the keys.
            _mm_prefetch::<_MM_HINT_T0>(keys[b].as_ptr().wrapping_add((dim + d) * LANES).cast());
            _mm_prefetch::<_MM_HINT_T0>(next[b].wrapping_add(d * LANES).cast());
            for g in 0..G {
                // SAFETY: each query is `[dim]` and `d < dim`.
                let q = _mm512_set1_ps(unsafe { *queries[g].as_ptr().wrapping_add(d) });
                sums[g][b] = _mm512_fmadd_ps(q, key, sums[g][b]);
            }
        }
    }
    for g in 0..G {
        let scores = &mut scores[g][first * LANES..(first + B) * LANES];
        for (b, scores) in scores.chunks_exact_mut(LANES).enumerate() {
            // SAFETY: a chunk has `LANES = 16` elements.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), sums[g][b]) };
        }
    }
}

/// `out = inverse * sum_t p_t v_t` for `W * LANES` columns from `start` on.
#[target_feature(enable = "avx512f")]
fn weigh<const W: usize, const G: usize>(
    seen: &Seen,
    weights: [&[f32]; G],
    inverse: [f32; G],
    start: usize,
    out: &mut [f32],
) {
    let dim = seen.dim;
    let mut sums: [[[__m512; W]; G]; POSITIONS] = [[[_mm512_setzero_ps(); W]; G]; POSITIONS];
    for block in 0..seen.len.div_ceil(LANES) {
        let positions = LANES.min(seen.len - block * LANES);
        let values = &seen.values(block)[start..];
        let p: [&[f32]; G] = std::array::from_fn(|g| &weights[g][block * LANES..][..positions]);
        let mut t = 0;
        while t + POSITIONS <= positions {
            for (i, sums) in sums.iter_mut().enumerate() {
                accumulate(&values[(t + i) * dim..], p, t + i, sums);
            }
            t += POSITIONS;
        }
        while t < positions {
            accumulate(&values[t * dim..], p, t, &mut sums[0]);
            t += 1;
        }
    }
    for g in 0..G {
        let out = &mut out[g * dim + start..][..W * LANES];
        for (w, out) in out.chunks_exact_mut(LANES).enumerate() {
            let low = _mm512_add_ps(sums[0][g][w], sums[1][g][w]);
            let high = _mm512_add_ps(sums[2][g][w], sums[3][g][w]);
            let sum = _mm512_mul_ps(_mm512_add_ps(low, high), _mm512_set1_ps(inverse[g]));
            // SAFETY: a chunk has `LANES = 16` elements.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// Adds the weighted value of one position.
#[inline]
#[target_feature(enable = "avx512f")]
fn accumulate<const W: usize, const G: usize>(
    value: &[f32],
    weights: [&[f32]; G],
    t: usize,
    sums: &mut [[__m512; W]; G],
) {
    for (w, value) in value[..W * LANES].chunks_exact(LANES).enumerate() {
        // SAFETY: a chunk has `LANES = 16` elements.
        let value = unsafe { _mm512_loadu_ps(value.as_ptr()) };
        for (sums, weights) in sums.iter_mut().zip(weights) {
            sums[w] = _mm512_fmadd_ps(_mm512_set1_ps(weights[t]), value, sums[w]);
        }
    }
}
