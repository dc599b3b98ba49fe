//! Causal attention whose products are in bf16, with f32 sums: one key-value head of one sequence, with all query heads
//! that it serves as the rows of one product.
//!
//! Keys and values are packed once. A block of queries sees the first of them, so a product takes the first panels, or the
//! first part of each panel's depth. The formulas are those of [`super`].

use super::Heads;
use crate::kernels::packed::{Compute, Packed};
use crate::kernels::{math, vectorized};
use std::ops::Range;

/// Rows of a block at about which products are large and scores still in a core's cache.
const ROWS: usize = 256;

/// One key-value head of one sequence, its rows gathered.
pub(super) struct Group<'a> {
    /// `[len, dim]`.
    pub k: &'a [f32],
    /// `[len, dim]`.
    pub v: &'a [f32],
    /// `[len, group * dim]`.
    pub q: &'a [f32],
    pub heads: Heads,
}

impl Group<'_> {
    fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    fn len(&self) -> usize {
        self.k.len() / self.heads.dim
    }

    /// Queries by blocks of an even number, so that all keys that a block sees but the last are whole pairs.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (len, size) = (self.len(), (ROWS / self.group()).next_multiple_of(2));
        (0..len).step_by(size).map(move |first| first..len.min(first + size))
    }

    /// Rows of `x: [len, group * dim]` of a block as `[queries * group, dim]`, which they are in memory.
    fn rows<'x>(&self, x: &'x [f32], block: &Range<usize>) -> &'x [f32] {
        let width = self.group() * self.heads.dim;
        &x[block.start * width..block.end * width]
    }

    /// Softmax weights of a block's rows over the keys up to its last query, `[rows, block.end]`.
    fn weights(&self, keys: &Packed, block: &Range<usize>) -> Vec<f32> {
        let q = self.rows(self.q, block);
        let mut p = vec![0.0; q.len() / self.heads.dim * block.end];
        keys.matmul_first_outputs(q, &mut p, block.end);
        let (scale, group) = (1.0 / (self.heads.dim as f32).sqrt(), self.group());
        vectorized!({
            for (row, p) in p.chunks_exact_mut(block.end).enumerate() {
                let (seen, hidden) = p.split_at_mut(block.start + row / group + 1);
                let inverse = 1.0 / math::exp_shifted(seen, scale);
                seen.iter_mut().for_each(|p| *p *= inverse);
                hidden.fill(0.0);
            }
        });
        p
    }

    /// `softmax(q k^T / sqrt(d)) v`, `[len, group * dim]`.
    pub fn forward(&self) -> Vec<f32> {
        let dim = self.heads.dim;
        let keys = Packed::stack_pairs(&[self.k], dim);
        let values = Packed::columns(self.v, dim, Compute::Bf16);
        let mut out = Vec::with_capacity(self.q.len());
        for block in self.blocks() {
            let p = self.weights(&keys, &block);
            let start = out.len();
            out.resize(start + p.len() / block.end * dim, 0.0);
            values.matmul_first_depth(&p, &mut out[start..], block.end);
        }
        out
    }

    /// Gradients of queries, keys and values for the output and its gradient, `[len, group * dim]` each.
    pub fn backward(&self, out: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let dim = self.heads.dim;
        let (keys, key_columns) = (Packed::stack_pairs(&[self.k], dim), Packed::columns(self.k, dim, Compute::Bf16));
        let values = Packed::stack_pairs(&[self.v], dim);
        let mut dq = vec![0.0; self.q.len()];
        let (mut dk, mut dv) = (vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for block in self.blocks() {
            let (q, g, out) = (self.rows(self.q, &block), self.rows(g, &block), self.rows(out, &block));
            let seen = block.end * dim;
            let p = self.weights(&keys, &block);
            Packed::columns(g, dim, Compute::Bf16).matmul_transposed_add(&p, &mut dv[..seen]);
            let mut dp = vec![0.0; p.len()];
            values.matmul_first_outputs(g, &mut dp, block.end);
            self.score_gradient(&p, &mut dp, out, g);
            let width = self.group() * dim;
            key_columns.matmul_first_depth(&dp, &mut dq[block.start * width..block.end * width], block.end);
            Packed::columns(q, dim, Compute::Bf16).matmul_transposed_add(&dp, &mut dk[..seen]);
        }
        [dq, dk, dv]
    }

    /// `dp` becomes `dS = P (dP - rowsum(dO O)) / sqrt(d)`.
    fn score_gradient(&self, p: &[f32], dp: &mut [f32], out: &[f32], g: &[f32]) {
        let dim = self.heads.dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let keys = p.len() / (out.len() / dim);
        vectorized!({
            let rows = p.chunks_exact(keys).zip(dp.chunks_exact_mut(keys));
            for ((p, dp), (out, g)) in rows.zip(out.chunks_exact(dim).zip(g.chunks_exact(dim))) {
                let delta = math::dot(out, g);
                for (d, &p) in dp.iter_mut().zip(p) {
                    *d = p * (*d - delta) * scale;
                }
            }
        });
    }
}
