//! Launches of the rotary embedding (`rope.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::Result;
use std::sync::Arc;

/// Threads of a group.
const THREADS: usize = 256;

/// The table and the positions that are looked up in it.
pub struct Rotation<'a, M> {
    /// `[positions, half]`, f32.
    pub cosines: View<'a, M>,
    /// `[positions, half]`, f32.
    pub sines: View<'a, M>,
    /// One a token, u32.
    pub positions: View<'a, M>,
    /// Tokens.
    pub tokens: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Half of a head's width.
    pub half: usize,
    /// `-1` rotates back.
    pub sign: f32,
}

impl<M> Rotation<'_, M> {
    /// `x: [tokens, heads * 2 half]` rotated.
    ///
    /// # Errors
    /// Those of the device.
    pub fn apply<G: Gpu<Memory = M>>(&self, gpu: &G, x: View<M>, scalar: Scalar) -> Result<Arc<M>> {
        let pairs = self.tokens * self.heads * self.half;
        let y = gpu.allocate(2 * pairs * scalar.bytes())?;
        gpu.launch(Launch {
            library: Library::new(Source::Rope, scalar),
            function: "rope",
            arguments: vec![
                Read(x),
                Read(self.cosines),
                Read(self.sines),
                Read(self.positions),
                Write(View::all(&y)),
                U32(count(self.heads)?),
                U32(count(self.half)?),
                U32(count(pairs)?),
                F32(self.sign),
            ],
            groups: [pairs.div_ceil(THREADS), 1, 1],
            threads: THREADS,
        })?;
        Ok(y)
    }
}
