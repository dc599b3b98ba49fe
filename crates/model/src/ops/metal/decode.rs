//! What generation does over candle's tensors: attention over the cache, and drawing.

use super::decode_attention::{Angles, Cache, Tables};
use super::device::resident;
use super::gpu::{Scalar, View};
use super::tensors::{Place, tensor};
use super::{decode_attention, rope, sample};
use crate::ops::sample::Distribution;
use crate::ops::{Heads, RopeTable};
use candle_core::{DType, Result, Tensor};
use std::sync::Arc;

/// Whether there are kernels for a model of this shape.
pub(crate) fn fits(heads: Heads, vocab: usize, dtype: DType) -> bool {
    decode_attention::fits(heads) && vocab <= sample::LARGEST && Scalar::of(dtype).is_ok()
}

/// The tokens of a step and where their sequences lie; see [`crate::decode_device`].
pub(crate) struct Step<'a> {
    /// How a token is cut into heads.
    pub heads: Heads,
    /// Angles of every position.
    pub angles: &'a RopeTable,
    /// Position of each token.
    pub positions: &'a Arc<[u32]>,
    /// Where its keys and values go.
    pub slots: &'a Arc<[u32]>,
    /// Its row of `tables`.
    pub owners: &'a Arc<[u32]>,
    /// `[sequences, width]`.
    pub tables: &'a Arc<[u32]>,
    /// Blocks of a row of `tables`.
    pub width: usize,
}

impl Step<'_> {
    /// Rotates queries and keys, writes keys and values to a layer's cache, and mixes what each token sees:
    /// `q: [tokens, query * dim]`, `k, v: [tokens, key_value * dim]` -> the shape of `q`.
    pub(crate) fn attend(&self, [keys, values]: &[Tensor; 2], q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let device = q.device().as_metal_device()?;
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let (at_q, at_k, at_v) = (Place::of(&q)?, Place::of(&k)?, Place::of(&v)?);
        let (at_keys, at_values) = (Place::of(keys)?, Place::of(values)?);
        let (cosines, sines) = (resident(device, &self.angles.cos)?, resident(device, &self.angles.sin)?);
        let (positions, slots) = (resident(device, self.positions)?, resident(device, self.slots)?);
        let (owners, tables) = (resident(device, self.owners)?, resident(device, self.tables)?);
        let (scalar, tokens) = (Scalar::of(q.dtype())?, self.positions.len());
        let angles = Angles { cosines: View::all(&*cosines), sines: View::all(&*sines) };
        let cache = Cache {
            keys: at_keys.view()?,
            values: at_values.view()?,
            scalar,
            heads: self.heads,
            tokens,
            slots: View::all(&*slots),
            positions: View::all(&*positions),
        };
        cache.write(device, at_k.view()?, at_v.view()?, &angles)?;
        let rotation = rope::Rotation {
            cosines: angles.cosines,
            sines: angles.sines,
            positions: cache.positions,
            tokens,
            heads: self.heads.query,
            half: self.angles.half,
            sign: 1.0,
        };
        let rotated = rotation.apply(device, at_q.view()?, scalar)?;
        let of = Tables { tables: View::all(&*tables), width: self.width, owners: View::all(&*owners) };
        Ok(tensor(device, cache.attend(device, View::all(&*rotated), &of)?, q.shape(), q.dtype()))
    }
}

/// Draws a token at each of `numbers` from the row of `logits: [rows, vocab]` that `rows_of` says; waits for them.
pub(crate) fn draw(logits: &Tensor, rows_of: &[u32], numbers: &[f64], from: Distribution) -> Result<Vec<(u32, f32)>> {
    if rows_of.is_empty() {
        return Ok(Vec::new());
    }
    let device = logits.device().as_metal_device()?;
    let logits = logits.contiguous()?;
    let place = Place::of(&logits)?;
    let given = (place.view()?, Scalar::of(logits.dtype())?, logits.dim(1)?);
    let drawn = sample::draw(device, given, (rows_of, numbers), from)?;
    let tokens: Vec<u32> = tensor(device, drawn.tokens, rows_of.len(), DType::U32).to_vec1()?;
    let log_probs: Vec<f32> = tensor(device, drawn.log_probs, rows_of.len(), DType::F32).to_vec1()?;
    Ok(tokens.into_iter().zip(log_probs).collect())
}
