//! Attention of one new position over a cache: a few queries of one key-value head against all positions before.
//!
//! Written with explicit vectors: the optimiser left these loops scalar (ten times slower). Sums are split the same way
//! whatever else is in the batch, so a row's result depends on its own sequence alone.

use super::math;
use pulp::{Arch, Simd, WithSimd};
use std::sync::Arc;

/// Positions a key block holds: one AVX-512 register, two AVX2 or four NEON registers.
pub const LANES: usize = 16;

/// Key blocks whose scores are summed side by side, to hide the latency of the multiply-add.
const BLOCKS: usize = 4;

/// Positions whose weighted values are summed side by side, likewise.
pub(super) const POSITIONS: usize = 4;

/// What one head may attend to.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Width of a head.
    pub dim: usize,
    /// Positions, the newest included.
    pub len: usize,
    /// What the sequence holds, by blocks of [`LANES`] positions.
    pub blocks: &'a [Arc<[f32]>],
    /// Where this head lies in each block: keys `[dim, LANES]`, then values `[LANES, dim]`.
    pub at: usize,
}

impl Seen<'_> {
    /// `softmax(q k^T / sqrt(dim)) v` for queries `[group, dim]` into `out: [group, dim]`; `scores` is working space of at
    /// least twice `len` rounded up to whole blocks.
    pub fn attend(&self, queries: &[f32], out: &mut [f32], scores: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if super::avx512_attention::is_for(self.dim) {
            // SAFETY: the CPU has the instructions.
            unsafe { super::avx512_attention::attend(self, queries, out, scores) };
            return;
        } else if super::avx2_attention::is_for(self.dim) {
            // SAFETY: as above.
            unsafe { super::avx2_attention::attend(self, queries, out, scores) };
            return;
        }
        self.attend_generic(queries, out, scores);
    }

    fn attend_generic(&self, queries: &[f32], out: &mut [f32], scores: &mut [f32]) {
        Arch::new().dispatch(Attend { seen: *self, queries, out, scores });
    }

    /// Keys of a block, `[dim, LANES]`.
    #[inline(always)]
    pub(super) fn keys(&self, block: usize) -> &[f32] {
        &self.blocks[block][self.at..self.at + self.dim * LANES]
    }

    /// Values of a block, `[LANES, dim]`.
    #[inline(always)]
    pub(super) fn values(&self, block: usize) -> &[f32] {
        let at = self.at + self.dim * LANES;
        &self.blocks[block][at..at + self.dim * LANES]
    }
}

struct Attend<'a> {
    seen: Seen<'a>,
    queries: &'a [f32],
    out: &'a mut [f32],
    scores: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 16>(simd),
        }
    }
}

impl Attend<'_> {
    /// `VECTORS` registers hold [`LANES`] numbers.
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Self { seen, queries, out, scores } = self;
        let Seen { dim, len, .. } = seen;
        let scale = 1.0 / (dim as f32).sqrt();
        let blocks = len.div_ceil(LANES);
        for (query, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let mut block = 0;
            while block + BLOCKS <= blocks {
                score::<S, BLOCKS, VECTORS>(simd, &seen, query, block, scores);
                block += BLOCKS;
            }
            while block < blocks {
                score::<S, 1, VECTORS>(simd, &seen, query, block, scores);
                block += 1;
            }
            let weights = &mut scores[..len];
            let inverse = 1.0 / math::exp_shifted(weights, scale);
            let mut start = 0;
            while start < dim {
                if dim - start >= 2 * LANES && VECTORS <= 2 {
                    weigh::<S, 2, VECTORS>(simd, &seen, weights, start, &mut out[start..]);
                    start += 2 * LANES;
                } else if dim - start >= LANES {
                    weigh::<S, 1, VECTORS>(simd, &seen, weights, start, &mut out[start..]);
                    start += LANES;
                } else {
                    weigh_rest(&seen, weights, start, &mut out[start..dim]);
                    break;
                }
            }
            out.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Scores of `B` blocks of positions from `first` on: `sum_d q_d k_d`.
#[inline(always)]
fn score<S: Simd, const B: usize, const V: usize>(
    simd: S,
    seen: &Seen,
    query: &[f32],
    first: usize,
    scores: &mut [f32],
) {
    let blocks: [&[S::f32s]; B] = std::array::from_fn(|b| &S::as_simd_f32s(seen.keys(first + b)).0[..query.len() * V]);
    let mut sums = [[simd.splat_f32s(0.0); V]; B];
    for (d, &q) in query.iter().enumerate() {
        let q = simd.splat_f32s(q);
        for b in 0..B {
            for v in 0..V {
                sums[b][v] = simd.mul_add_f32s(q, blocks[b][d * V + v], sums[b][v]);
            }
        }
    }
    for (sums, scores) in sums.iter().zip(scores[first * LANES..].chunks_exact_mut(LANES)) {
        S::as_mut_simd_f32s(scores).0[..V].copy_from_slice(sums);
    }
}

/// `out = sum_t p_t v_t` for `W * LANES` columns from `start` on.
#[inline(always)]
fn weigh<S: Simd, const W: usize, const V: usize>(simd: S, seen: &Seen, p: &[f32], start: usize, out: &mut [f32]) {
    let dim = seen.dim;
    let zero = [[simd.splat_f32s(0.0); V]; W];
    let mut sums = [zero; POSITIONS];
    for (block, p) in p.chunks(LANES).enumerate() {
        let values = seen.values(block);
        let row = |t: usize| &values[t * dim + start..t * dim + start + W * LANES];
        let whole = p.len() / POSITIONS * POSITIONS;
        let mut t = 0;
        while t < whole {
            for (i, sums) in sums.iter_mut().enumerate() {
                accumulate::<S, W, V>(simd, p[t + i], row(t + i), sums);
            }
            t += POSITIONS;
        }
        while t < p.len() {
            accumulate::<S, W, V>(simd, p[t], row(t), &mut sums[0]);
            t += 1;
        }
    }
    let out = S::as_mut_simd_f32s(&mut out[..W * LANES]).0;
    for w in 0..W {
        for v in 0..V {
            let low = simd.add_f32s(sums[0][w][v], sums[1][w][v]);
            let high = simd.add_f32s(sums[2][w][v], sums[3][w][v]);
            out[w * V + v] = simd.add_f32s(low, high);
        }
    }
}

#[inline(always)]
fn accumulate<S: Simd, const W: usize, const V: usize>(simd: S, p: f32, value: &[f32], sums: &mut [[S::f32s; V]; W]) {
    let value = &S::as_simd_f32s(value).0[..W * V];
    let p = simd.splat_f32s(p);
    for w in 0..W {
        for v in 0..V {
            sums[w][v] = simd.mul_add_f32s(p, value[w * V + v], sums[w][v]);
        }
    }
}

/// The columns that do not fill a block.
#[inline(always)]
fn weigh_rest(seen: &Seen, p: &[f32], start: usize, out: &mut [f32]) {
    out.fill(0.0);
    for (block, p) in p.chunks(LANES).enumerate() {
        for (&p, value) in p.iter().zip(seen.values(block).chunks_exact(seen.dim)) {
            math::axpy(out, p, &value[start..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.37).sin()).collect()
    }

    /// The softmax over one head of two, by the formula.
    fn plain(q: &[f32], seen: &Seen) -> Vec<f64> {
        let dim = seen.dim;
        let key = |t: usize, d: usize| f64::from(seen.keys(t / LANES)[d * LANES + t % LANES]);
        let value = |t: usize, d: usize| f64::from(seen.values(t / LANES)[t % LANES * dim + d]);
        let score = |t| (0..dim).map(|d| f64::from(q[d]) * key(t, d)).sum::<f64>() / (dim as f64).sqrt();
        let weights: Vec<f64> = (0..seen.len).map(|t| score(t).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..dim).map(|d| weights.iter().enumerate().map(|(t, p)| p / total * value(t, d)).sum()).collect()
    }

    #[test]
    fn every_kernel_is_the_formula_and_the_same_bits() {
        for (dim, group, len) in
            [(16usize, 1usize, 1usize), (32, 2, 16), (64, 7, 100), (48, 3, 131), (24, 2, 33), (8, 1, 5), (128, 5, 70)]
        {
            let size = 4 * LANES * dim;
            let blocks: Vec<Arc<[f32]>> =
                (0..len.div_ceil(LANES)).map(|b| values(size, b as f32 * 91.0).into()).collect();
            let seen = Seen { dim, len, blocks: &blocks, at: 2 * LANES * dim };
            let queries = values(group * dim, 7.0);
            let mut scores = vec![0.0; 2 * len.next_multiple_of(LANES)];
            let (mut fast, mut generic) = (vec![0.0; group * dim], vec![0.0; group * dim]);
            seen.attend(&queries, &mut fast, &mut scores);
            seen.attend_generic(&queries, &mut generic, &mut scores);
            assert_eq!(fast, generic, "dim {dim}, {group} queries, {len} positions");
            #[cfg(target_arch = "x86_64")]
            if super::super::avx2_attention::is_for(dim) {
                // SAFETY: the CPU has the instructions.
                unsafe { super::super::avx2_attention::attend(&seen, &queries, &mut fast, &mut scores) };
                assert_eq!(fast, generic, "AVX2: dim {dim}, {group} queries, {len} positions");
            }
            let want: Vec<f64> = queries.chunks_exact(dim).flat_map(|q| plain(q, &seen)).collect();
            for (got, want) in fast.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "dim {dim}, {len} positions: {got}, not {want}");
            }
        }
    }
}
