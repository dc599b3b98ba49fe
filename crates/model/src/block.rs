//! One decoder block, forward: RMSNorm, attention, RMSNorm, SwiGLU, over the residual stream.

use crate::error::Result;
use crate::kernels::packed::Compute;
use crate::lora::Adapter;
use crate::ops::attention::{Attention, Form};
use crate::ops::{attention, linear, rms_norm, rope, swiglu};
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::Tensor;
use std::cell::OnceCell;
use std::sync::Arc;

/// The weights of one decoder block, named as in the checkpoint.
pub(crate) struct Layer {
    pub input_norm: Tensor,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    /// Norms of each head of the queries and of the keys, `[dim]`.
    pub qk_norm: Option<(Tensor, Tensor)>,
    pub o: Projection,
    pub post_norm: Tensor,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

/// A linear layer: `weight: [out, in]`, `bias: [out]`.
pub(crate) struct Projection {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub adapter: Option<Adapter>,
}

impl Projection {
    /// `x: [tokens, in]` -> `[tokens, out]`.
    fn apply(&self, x: &Tensor, compute: Compute) -> Result<Tensor> {
        let y = linear(x, &self.weight, self.bias.as_ref(), compute)?;
        match &self.adapter {
            Some(adapter) => Ok((y + adapter.apply(x)?)?),
            None => Ok(y),
        }
    }
}

/// What a block computes up to its last product: all that its gradients are made of. Each is `[tokens, width]`.
pub(crate) struct Activations {
    /// The residual stream before the block.
    pub x: Tensor,
    pub normed: Tensor,
    /// Queries and keys before the norms of their heads, where there are such norms.
    pub before_norms: Option<(Tensor, Tensor)>,
    /// Rotated.
    pub q: Tensor,
    /// Rotated.
    pub k: Tensor,
    pub v: Tensor,
    pub mixed: Tensor,
    /// The residual stream after attention.
    pub middle: Tensor,
    pub normed_middle: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
    pub gated: Tensor,
}

/// Mixes the values of each row's positions by its queries and keys.
pub(crate) type Attend<'a> = &'a dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

impl Qwen2 {
    /// One decoder block over the residual stream.
    pub(crate) fn block(&self, index: usize, x: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        let form = self.attention_form();
        self.block_with(index, x, Some(&batch.positions), &|q, k, v| Ok(attention(q, k, v, form, &batch.offsets)?))
    }

    /// One decoder block, a row a token, whose queries, keys and values are mixed by `attend`; rotated by their `positions`
    /// before, unless there are none.
    pub(crate) fn block_with(
        &self,
        index: usize,
        x: &Tensor,
        positions: Option<&Arc<[u32]>>,
        attend: Attend,
    ) -> Result<Tensor> {
        let activations = self.before_last(index, x, positions, attend)?;
        self.last_of_block(index, &activations)
    }

    /// The block's last product and sum: the residual stream after it.
    pub(crate) fn last_of_block(&self, index: usize, activations: &Activations) -> Result<Tensor> {
        Ok((&activations.middle + self.layers[index].down.apply(&activations.gated, self.compute())?)?)
    }

    /// A block up to its last product, without a graph, and its attention for the way back. For a detached view, where
    /// attention has a kernel ([`attention::kept`]).
    pub(crate) fn activations(
        &self,
        index: usize,
        x: &Tensor,
        batch: &PackedBatch,
    ) -> Result<(Activations, Attention)> {
        let op = OnceCell::new();
        let form = self.attention_form();
        let activations = self.before_last(index, x, Some(&batch.positions), &|q, k, v| {
            let (mixed, kept) = attention::kept(q, k, v, form, &batch.offsets)?;
            // A block attends once.
            let _ = op.set(kept);
            Ok(mixed)
        })?;
        match op.into_inner() {
            Some(attention) => Ok((activations, attention)),
            None => Err(crate::Error::Unsupported("a block without attention".into())),
        }
    }

    /// The heads of every block, and what their products are computed in.
    fn attention_form(&self) -> Form {
        Form { heads: self.config().heads, compute: self.compute() }
    }

    fn before_last(
        &self,
        index: usize,
        x: &Tensor,
        positions: Option<&Arc<[u32]>>,
        attend: Attend,
    ) -> Result<Activations> {
        let (eps, layer, compute) = (self.config().rms_norm_eps, &self.layers[index], self.compute());
        let normed = rms_norm(x, &layer.input_norm, eps)?;
        let (mut q, mut k) = (layer.q.apply(&normed, compute)?, layer.k.apply(&normed, compute)?);
        let mut before_norms = None;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            let normed = (norm_heads(&q, q_norm, eps)?, norm_heads(&k, k_norm, eps)?);
            before_norms = Some((q, k));
            (q, k) = normed;
        }
        if let Some(positions) = positions {
            (q, k) = (rope(&q, &self.rope, positions)?, rope(&k, &self.rope, positions)?);
        }
        let v = layer.v.apply(&normed, compute)?;
        let mixed = attend(&q, &k, &v)?;
        let middle = (x + layer.o.apply(&mixed, compute)?)?;
        let normed_middle = rms_norm(&middle, &layer.post_norm, eps)?;
        let (gate, up) = (layer.gate.apply(&normed_middle, compute)?, layer.up.apply(&normed_middle, compute)?);
        let gated = swiglu(&gate, &up)?;
        let x = x.clone();
        Ok(Activations { x, normed, before_norms, q, k, v, mixed, middle, normed_middle, gate, up, gated })
    }
}

/// RMSNorm of each head: `x: [tokens, heads * dim]`, `w: [dim]`.
fn norm_heads(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(rms_norm(&by_head(x, w.dim(0)?)?, w, eps)?.reshape(x.shape())?)
}

/// `[tokens, heads * dim]` as `[tokens * heads, dim]`.
pub(crate) fn by_head(x: &Tensor, dim: usize) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    Ok(x.reshape((tokens * width / dim, dim))?)
}
