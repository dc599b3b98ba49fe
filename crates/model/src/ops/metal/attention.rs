//! Launches of attention in training (`attention.metal`).

use super::gpu::{Argument, Argument::*, Gpu, LANES, Launch, Library, Scalar, Source, View, count};
use crate::ops::Heads;
use candle_core::{Result, bail};
use std::sync::Arc;

/// Rows that a SIMD-group owns.
const OWN_ROWS: usize = 8;

/// SIMD-groups of the forward kernel.
const SIMDS: usize = 4;

/// The widest head whose tiles fit.
const WIDEST: usize = 128;

/// Whether there are kernels for heads of this shape.
pub fn fits(heads: Heads) -> bool {
    heads.dim.is_multiple_of(8) && (8..=WIDEST).contains(&heads.dim)
}

/// SIMD-groups of the tiled backward kernels.
fn back_simds(dim: usize) -> usize {
    if dim > 64 { 2 } else { 4 }
}

/// Packed sequences of queries, keys and values.
pub struct Attention<'a, M> {
    /// `[tokens, query * dim]`.
    pub q: View<'a, M>,
    /// `[tokens, key_value * dim]`.
    pub k: View<'a, M>,
    /// `[tokens, key_value * dim]`.
    pub v: View<'a, M>,
    /// Their type.
    pub scalar: Scalar,
    /// How a token is cut into heads.
    pub heads: Heads,
    /// Sequence `i` is `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [usize],
}

/// What the forward pass gives.
pub struct Mixed<M> {
    /// `[tokens, query * dim]`.
    pub out: Arc<M>,
    /// Logarithm of each query's sum of exponentials, `[query, tokens]`, f32.
    pub lse: Arc<M>,
}

impl<M> Attention<'_, M> {
    fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    fn library(&self) -> Library {
        Library { head_dim: self.heads.dim, ..Library::new(Source::Attention, self.scalar) }
    }

    /// First row, and first row and end of its sequence, of every block of so many rows.
    fn blocks(&self, rows: usize) -> Result<Vec<u32>> {
        let mut blocks = Vec::new();
        for span in self.offsets.windows(2) {
            for first in (span[0]..span[1]).step_by(rows) {
                blocks.extend([count(first)?, count(span[0])?, count(span[1])?]);
            }
        }
        Ok(blocks)
    }

    fn sizes<'b>(&self) -> Result<[Argument<'b, M>; 4]> {
        let Heads { query, key_value, dim } = self.heads;
        let scale = 1.0 / (dim as f32).sqrt();
        Ok([U32(count(self.tokens())?), U32(count(query)?), U32(count(key_value)?), F32(scale)])
    }

    fn allocate<G: Gpu<Memory = M>>(&self, gpu: &G, heads: usize) -> Result<Arc<M>> {
        gpu.allocate(self.tokens() * heads * self.heads.dim * self.scalar.bytes())
    }

    /// The outputs.
    ///
    /// # Errors
    /// Those of the device, and heads that do not fit ([`fits`]).
    pub fn forward<G: Gpu<Memory = M>>(&self, gpu: &G) -> Result<Mixed<M>> {
        if !fits(self.heads) {
            bail!("no Metal kernel for heads of {}: multiples of 8 up to {WIDEST}", self.heads.dim);
        }
        let out = self.allocate(gpu, self.heads.query)?;
        let lse = gpu.allocate(self.tokens() * self.heads.query * 4)?;
        let blocks = self.blocks(SIMDS * OWN_ROWS)?;
        let table = gpu.upload(&blocks)?;
        let inputs = [Read(self.q), Read(self.k), Read(self.v)];
        let outputs = [Write(View::all(&*out)), Write(View::all(&*lse)), Read(View::all(&*table))];
        gpu.launch(Launch {
            library: self.library(),
            function: "attention",
            arguments: inputs.into_iter().chain(outputs).chain(self.sizes()?).collect(),
            groups: [blocks.len() / 3, self.heads.query, 1],
            threads: SIMDS * LANES,
        })?;
        Ok(Mixed { out, lse })
    }

    /// Gradients of `q`, `k` and `v` for the gradient `g` of the outputs, which are read again.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward<G: Gpu<Memory = M>>(&self, gpu: &G, out: View<M>, lse: View<M>, g: View<M>) -> Result<[Arc<M>; 3]> {
        let delta = self.delta(gpu, out, g)?;
        let simds = back_simds(self.heads.dim);
        let blocks = self.blocks(simds * OWN_ROWS)?;
        let table = gpu.upload(&blocks)?;
        let (dq, dk, dv) = (
            self.allocate(gpu, self.heads.query)?,
            self.allocate(gpu, self.heads.key_value)?,
            self.allocate(gpu, self.heads.key_value)?,
        );
        let run = |function, heads, written: &[&M]| {
            let inputs = [self.q, self.k, self.v, g, lse, View::all(&*delta)].map(Read);
            let written = written.iter().map(|memory| Write(View::all(*memory)));
            let rest = std::iter::once(Read(View::all(&*table))).chain(self.sizes()?);
            gpu.launch(Launch {
                library: self.library(),
                function,
                arguments: inputs.into_iter().chain(written).chain(rest).collect(),
                groups: [blocks.len() / 3, heads, 1],
                threads: simds * LANES,
            })
        };
        run("attention_backward_queries", self.heads.query, &[&*dq])?;
        run("attention_backward_keys", self.heads.key_value, &[&*dk, &*dv])?;
        Ok([dq, dk, dv])
    }

    /// `[query, tokens]`: the product of each output and its gradient.
    fn delta<G: Gpu<Memory = M>>(&self, gpu: &G, out: View<M>, g: View<M>) -> Result<Arc<M>> {
        let rows = self.tokens() * self.heads.query;
        let delta = gpu.allocate(rows * 4)?;
        let [tokens, heads, ..] = self.sizes()?;
        gpu.launch(Launch {
            library: self.library(),
            function: "attention_delta",
            arguments: vec![Read(out), Read(g), Write(View::all(&delta)), tokens, heads],
            groups: [rows.div_ceil(SIMDS), 1, 1],
            threads: SIMDS * LANES,
        })?;
        Ok(delta)
    }
}
