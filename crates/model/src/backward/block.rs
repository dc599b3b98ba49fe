//! Back through a block: the gradients of what is trained in it, and of the residual stream before it.
//!
//! The order of the sums is that of candle's pass over the graph of the same block, so that both give the same bits.

use super::Sink;
use crate::block::{Activations, Projection, by_head};
use crate::error::{Error, Result};
use crate::ops::attention::Attention;
use crate::ops::{linear, rms_norm, rope, swiglu};
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::Tensor;

/// What the way back through a block needs beside what the block has computed.
pub(super) struct Block<'a> {
    pub model: &'a Qwen2,
    pub batch: &'a PackedBatch,
    pub index: usize,
    /// The operation that mixed the block's values.
    pub attention: &'a Attention,
}

impl Block<'_> {
    /// From the gradient of the block's output to that of its input. Activations go as soon as they have been used.
    pub fn back<E: From<Error>>(
        &self,
        activations: Activations,
        gradient: Tensor,
        sink: &mut dyn Sink<E>,
    ) -> Result<Tensor, E> {
        let layer = &self.model.layers[self.index];
        let Activations { x, normed, before_norms, q, k, v, mixed, middle, normed_middle, gate, up, gated } =
            activations;
        let mut to = To { model: self.model, sink };

        let d_gated = to.projection(&layer.down, &gated, &gradient, None)?;
        drop(gated);
        let (d_gate, d_up) = swiglu::gradients(&gate, &up, &d_gated).map_err(Error::from)?;
        drop((gate, up, d_gated));
        let d_normed = to.projection(&layer.up, &normed_middle, &d_up, None)?;
        let d_normed = to.projection(&layer.gate, &normed_middle, &d_gate, Some(d_normed))?;
        drop((normed_middle, d_gate, d_up));
        let d_middle = to.norm(&layer.post_norm, &middle, &d_normed)?;
        let gradient = (gradient + d_middle).map_err(Error::from)?;
        drop(middle);

        let d_mixed = to.projection(&layer.o, &mixed, &gradient, None)?;
        let [d_q, d_k, d_v] = self.attention.gradients([&q, &k, &v], &mixed, &d_mixed).map_err(Error::from)?;
        drop((q, k, v, mixed, d_mixed));
        let (q, k) = before_norms.unzip();
        let (q_norm, k_norm) = layer.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
        let d_normed = to.projection(&layer.v, &normed, &d_v, None)?;
        let d_k = self.unrotated(&mut to, &d_k, k_norm.zip(k.as_ref()))?;
        let d_normed = to.projection(&layer.k, &normed, &d_k, Some(d_normed))?;
        let d_q = self.unrotated(&mut to, &d_q, q_norm.zip(q.as_ref()))?;
        let d_normed = to.projection(&layer.q, &normed, &d_q, Some(d_normed))?;
        let d_x = to.norm(&layer.input_norm, &x, &d_normed)?;
        Ok((gradient + d_x).map_err(Error::from)?)
    }

    /// Back through the rotation of queries or keys, and through their norm and its input where there is one.
    fn unrotated<E: From<Error>>(
        &self,
        to: &mut To<E>,
        gradient: &Tensor,
        norm: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor, E> {
        let gradient = rope::gradient(gradient, &self.model.rope, &self.batch.positions).map_err(Error::from)?;
        let Some((weight, x)) = norm else { return Ok(gradient) };
        let dim = self.model.config().heads.dim;
        let d_x = to.norm(weight, &by_head(x, dim)?, &by_head(&gradient, dim)?)?;
        Ok(d_x.reshape(x.shape()).map_err(Error::from)?)
    }
}

/// Where the gradients of a model's variables go.
struct To<'a, E> {
    model: &'a Qwen2,
    sink: &'a mut dyn Sink<E>,
}

impl<E: From<Error>> To<'_, E> {
    /// The gradient of a projection's input, added to `sum`, for that of its output.
    fn projection(&mut self, p: &Projection, x: &Tensor, g: &Tensor, sum: Option<Tensor>) -> Result<Tensor, E> {
        let mut sum = sum;
        if let Some(adapter) = &p.adapter {
            let [d_x, d_a, d_b] = adapter.gradients(x, g)?;
            self.sink.add(&adapter.a, &d_a)?;
            self.sink.add(&adapter.b, &d_b)?;
            sum = Some(added(sum, d_x)?);
        }
        let got = linear::gradients(x, &p.weight, p.bias.as_ref(), g, self.model.compute()).map_err(Error::from)?;
        for (variable, gradient) in [(Some(&p.weight), got.w), (p.bias.as_ref(), got.b)] {
            if let (Some(variable), Some(gradient)) = (variable, gradient) {
                self.sink.add(variable, &gradient)?;
            }
        }
        Ok(added(sum, got.x)?)
    }

    /// The gradient of a norm's input for that of its output.
    fn norm(&mut self, weight: &Tensor, x: &Tensor, g: &Tensor) -> Result<Tensor, E> {
        let eps = self.model.config().rms_norm_eps;
        let (d_x, d_weight) = rms_norm::gradients(x, weight, g, eps).map_err(Error::from)?;
        if let Some(gradient) = d_weight {
            self.sink.add(weight, &gradient)?;
        }
        Ok(d_x)
    }
}

fn added(sum: Option<Tensor>, gradient: Tensor) -> Result<Tensor> {
    match sum {
        Some(sum) => Ok((sum + gradient)?),
        None => Ok(gradient),
    }
}
