//! Causal attention in f32: one key-value head of one sequence, with the query heads that it serves one after the other.
//!
//! Keys and values are packed once for all of their products. The formulas are those of [`super`].

use super::Heads;
use crate::kernels::gemm::{Dims, Mat, Write};
use crate::kernels::tiles::Tiles;
use crate::kernels::{math, vectorized};

/// Queries whose scores are held at a time.
const ROWS: usize = 64;

/// One key-value head of one sequence, where it lies.
pub(super) struct Group<'a> {
    /// From the first query of the first head on, rows `query * dim` apart.
    pub q: &'a [f32],
    /// From the first key on, rows `key_value * dim` apart.
    pub k: &'a [f32],
    /// As the keys.
    pub v: &'a [f32],
    /// Tokens.
    pub len: usize,
    pub heads: Heads,
}

/// A block of queries of one head, and the keys they may see.
struct Block {
    /// First query, counted in the sequence.
    first: usize,
    /// Queries.
    rows: usize,
    /// Keys: those of the sequence up to the last query.
    keys: usize,
}

impl Block {
    /// Scores, or their gradients: `[rows, keys]`, summed over the head.
    fn scores(&self, dim: usize) -> Dims {
        Dims { m: self.rows, n: self.keys, k: dim }
    }

    /// What becomes of queries: `[rows, dim]`, summed over the keys.
    fn queries(&self, dim: usize) -> Dims {
        Dims { m: self.rows, n: dim, k: self.keys }
    }

    /// What becomes of keys: `[keys, dim]`, summed over the queries.
    fn keys(&self, dim: usize) -> Dims {
        Dims { m: self.keys, n: dim, k: self.rows }
    }
}

impl<'a> Group<'a> {
    /// Query heads.
    fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// From one query to the next.
    fn stride(&self) -> usize {
        self.heads.query * self.heads.dim
    }

    /// Keys, or values, `[len, dim]`.
    fn of_keys(&self, x: &'a [f32]) -> Mat<'a> {
        Mat::rows(x, self.heads.key_value * self.heads.dim)
    }

    /// Every block of every head, and where its first row starts among the rows of queries.
    fn blocks(&self) -> impl Iterator<Item = (usize, Block, usize)> + use<'_> {
        (0..self.group()).flat_map(move |head| {
            (0..self.len).step_by(ROWS).map(move |first| {
                let rows = ROWS.min(self.len - first);
                (head, Block { first, rows, keys: first + rows }, first * self.stride() + head * self.heads.dim)
            })
        })
    }

    /// Softmax weights `[rows, keys]` of a block into `p`, rows that sum to one.
    fn weights(&self, q: Mat, keys: &Tiles, block: &Block, p: &mut [f32]) {
        keys.product(p, block.keys, q, block.scores(self.heads.dim), Write::Set);
        let scale = 1.0 / (self.heads.dim as f32).sqrt();
        vectorized!({
            for (row, p) in p.chunks_exact_mut(block.keys).enumerate() {
                let (seen, hidden) = p.split_at_mut(block.first + row + 1);
                let inverse = 1.0 / math::exp_shifted(seen, scale);
                seen.iter_mut().for_each(|p| *p *= inverse);
                hidden.fill(0.0);
            }
        });
    }

    /// `softmax(q k^T / sqrt(d)) v`, `[len, group * dim]`.
    pub fn forward(&self) -> Vec<f32> {
        let dim = self.heads.dim;
        let keys = Tiles::new(self.of_keys(self.k).t(), dim, self.len);
        let values = Tiles::new(self.of_keys(self.v), self.len, dim);
        let stride = self.group() * dim;
        let mut out = vec![0.0; self.len * stride];
        let mut p = vec![0.0; ROWS.min(self.len) * self.len];
        for (head, block, at) in self.blocks() {
            let p = &mut p[..block.rows * block.keys];
            self.weights(Mat::rows(&self.q[at..], self.stride()), &keys, &block, p);
            let out = &mut out[block.first * stride + head * dim..];
            values.product(out, stride, Mat::rows(p, block.keys), block.queries(dim), Write::Set);
        }
        out
    }

    /// Gradients of queries, `[len, group * dim]`, and of keys and values, `[len, dim]`, for the output and its gradient,
    /// which lie as the queries do.
    ///
    /// `dV = P^T dO`, `dP = dO V^T`, `dS = P (dP - rowsum(dO O)) / sqrt(d)`, `dQ = dS K`, `dK = dS^T Q`.
    pub fn backward(&self, out: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let (dim, stride) = (self.heads.dim, self.group() * self.heads.dim);
        let (k, v) = (self.of_keys(self.k), self.of_keys(self.v));
        let (keys, values) = (Tiles::new(k.t(), dim, self.len), Tiles::new(v.t(), dim, self.len));
        let key_rows = Tiles::new(k, self.len, dim);
        let mut dq = vec![0.0; self.len * stride];
        let (mut dk, mut dv) = (vec![0.0; self.len * dim], vec![0.0; self.len * dim]);
        let (mut p, mut dp) = (vec![0.0; ROWS.min(self.len) * self.len], vec![0.0; ROWS.min(self.len) * self.len]);
        for (head, block, at) in self.blocks() {
            let Block { first, rows, keys: seen } = block;
            let (q, go) = (Mat::rows(&self.q[at..], self.stride()), Mat::rows(&g[at..], self.stride()));
            let (p, dp) = (&mut p[..rows * seen], &mut dp[..rows * seen]);
            self.weights(q, &keys, &block, p);
            Tiles::new(go, rows, dim).product(&mut dv, dim, Mat::rows(p, seen).t(), block.keys(dim), Write::Add);
            values.product(dp, seen, go, block.scores(dim), Write::Set);
            self.score_gradient(p, dp, &block, [&out[at..], &g[at..]]);
            let dq = &mut dq[first * stride + head * dim..];
            key_rows.product(dq, stride, Mat::rows(dp, seen), block.queries(dim), Write::Set);
            Tiles::new(q, rows, dim).product(&mut dk, dim, Mat::rows(dp, seen).t(), block.keys(dim), Write::Add);
        }
        [dq, dk, dv]
    }

    /// `dp` becomes `dS`, by the block's output and the gradient of it.
    fn score_gradient(&self, p: &[f32], dp: &mut [f32], block: &Block, [out, g]: [&[f32]; 2]) {
        let (dim, stride) = (self.heads.dim, self.stride());
        let scale = 1.0 / (dim as f32).sqrt();
        vectorized!({
            let rows = p.chunks_exact(block.keys).zip(dp.chunks_exact_mut(block.keys));
            for ((p, dp), (out, g)) in rows.zip(out.chunks(stride).zip(g.chunks(stride))) {
                let delta = math::dot(&out[..dim], &g[..dim]);
                for (d, &p) in dp.iter_mut().zip(p) {
                    *d = p * (*d - delta) * scale;
                }
            }
        });
    }
}
