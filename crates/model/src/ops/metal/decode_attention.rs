//! Launches over the block cache: attention of new positions, and writing (`decode_attention.metal`).

use super::gpu::{Argument::*, Gpu, LANES, Launch, Library, Scalar, Source, View, count};
use crate::ops::Heads;
use candle_core::{Result, bail};
use std::sync::Arc;

/// Query heads that one key-value head may serve.
const MOST_SERVED: usize = 16;

/// The widest head whose tiles fit.
const WIDEST: usize = 128;

/// Threads of a group that writes.
const THREADS: usize = 256;

/// Whether there are kernels for heads of this shape.
pub fn fits(heads: Heads) -> bool {
    heads.dim.is_multiple_of(2) && heads.dim <= WIDEST && heads.query / heads.key_value <= MOST_SERVED
}

/// One layer's cache and the tokens of a step.
pub struct Cache<'a, M> {
    /// `[slots, key_value * dim]`.
    pub keys: View<'a, M>,
    /// `[slots, key_value * dim]`.
    pub values: View<'a, M>,
    /// Their type, and that of queries.
    pub scalar: Scalar,
    /// How a token is cut into heads.
    pub heads: Heads,
    /// Tokens of the step.
    pub tokens: usize,
    /// The slot that each token's keys and values go to, u32.
    pub slots: View<'a, M>,
    /// Position of each token in its sequence, u32.
    pub positions: View<'a, M>,
}

/// The sequences' blocks.
pub struct Tables<'a, M> {
    /// `[sequences, width]`, u32.
    pub tables: View<'a, M>,
    /// Blocks of a row.
    pub width: usize,
    /// Which sequence each token is of, u32.
    pub owners: View<'a, M>,
}

/// Angles of every position.
pub struct Angles<'a, M> {
    /// `[positions, dim / 2]`, f32.
    pub cosines: View<'a, M>,
    /// `[positions, dim / 2]`, f32.
    pub sines: View<'a, M>,
}

impl<M> Cache<'_, M> {
    fn library(&self) -> Library {
        Library { head_dim: self.heads.dim, ..Library::new(Source::DecodeAttention, self.scalar) }
    }

    /// Writes `keys, values: [tokens, key_value * dim]` to their slots, the keys rotated on their way.
    ///
    /// # Errors
    /// Those of the device.
    pub fn write<G: Gpu<Memory = M>>(&self, gpu: &G, keys: View<M>, values: View<M>, angles: &Angles<M>) -> Result<()> {
        let stride = self.heads.key_value * self.heads.dim;
        let pairs = self.tokens * stride / 2;
        let (inputs, cache) = ([keys, values, self.slots].map(Read), [self.keys, self.values].map(Write));
        let sizes = [U32(count(stride)?), U32(count(pairs)?)];
        let angles = [self.positions, angles.cosines, angles.sines].map(Read);
        gpu.launch(Launch {
            library: self.library(),
            function: "rotate_into_cache",
            arguments: inputs.into_iter().chain(cache).chain(sizes).chain(angles).collect(),
            groups: [pairs.div_ceil(THREADS), 1, 1],
            threads: THREADS,
        })
    }

    /// `q: [tokens, query * dim]` against what the sequences hold up to each token's position; the same shape.
    ///
    /// # Errors
    /// Those of the device, and heads that do not fit ([`fits`]).
    pub fn attend<G: Gpu<Memory = M>>(&self, gpu: &G, q: View<M>, of: &Tables<M>) -> Result<Arc<M>> {
        let Heads { query, key_value, dim } = self.heads;
        if !fits(self.heads) {
            bail!("no Metal kernel for {:?}: heads up to {WIDEST} wide, {MOST_SERVED} to one", self.heads);
        }
        let out = gpu.allocate(self.tokens * query * dim * self.scalar.bytes())?;
        let inputs = [q, self.keys, self.values, of.tables, of.owners, self.positions].map(Read);
        let scale = 1.0 / (dim as f32).sqrt();
        let rest = [Write(View::all(&*out)), U32(count(of.width)?), U32(count(key_value)?), F32(scale)];
        gpu.launch(Launch {
            library: self.library(),
            function: "decode_attention",
            arguments: inputs.into_iter().chain(rest).collect(),
            groups: [self.tokens, key_value, 1],
            threads: query / key_value * LANES,
        })?;
        Ok(out)
    }
}
