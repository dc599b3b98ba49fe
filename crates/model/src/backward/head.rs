//! Back through the head: the gradient of the last block's output.
//!
//! A head that is as large as a vocabulary has its gradient added where it is summed, on the CPU and on a GPU with kernels for
//! it: nothing of that size is made on the way.

use super::{Sink, differentiate, leaf};
use crate::error::{Error, Result};
use crate::ops::log_prob::Scored;
use crate::ops::{HeadScores, fused, log_prob, rms_norm};
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::{Tensor, Var};

/// The loss and what it is differentiated to: the gradient of the last block's output.
pub(super) fn through<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    temperature: f64,
    last: &Tensor,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    sink: &mut dyn Sink<E>,
) -> Result<(Tensor, T), E> {
    if !fused(last) {
        let leaf = leaf(last)?;
        let (loss, other) = loss(&model.head_scores(leaf.as_tensor(), batch, temperature)?)?;
        return Ok((differentiate(model, &loss, &leaf, sink)?, other));
    }
    let eps = model.config().rms_norm_eps;
    let hidden = rms_norm(last, &model.norm.detach(), eps).map_err(Error::from)?;
    let scored = model.scored(batch, temperature);
    let scores = log_prob(&hidden, &model.head_weight().detach(), &scored).map_err(Error::from)?;
    let leaves = [leaf(&scores.log_probs)?, leaf(&scores.entropy)?];
    let [log_probs, entropy] = leaves.each_ref().map(|leaf| leaf.as_tensor().clone());
    let (loss, other) = loss(&HeadScores { log_probs, entropy })?;
    let gradients = gradients_of(&loss, &leaves)?;
    drop(loss);
    let dx = through_product(model, &hidden, &scored, (&scores, &gradients), sink)?;
    let (gradient, dw) = rms_norm::gradients(last, &model.norm, &dx, eps).map_err(Error::from)?;
    if let Some(dw) = dw {
        sink.add(&model.norm, &dw)?;
    }
    Ok((gradient, other))
}

/// The gradient of the normed hidden states; that of the head, if it is trained, is handed on, or added to its sum in place.
fn through_product<E: From<Error>>(
    model: &Qwen2,
    hidden: &Tensor,
    scored: &Scored,
    (scores, gradients): (&HeadScores, &Tensor),
    sink: &mut dyn Sink<E>,
) -> Result<Tensor, E> {
    let head = model.head_weight();
    if hidden.device().is_cpu() && log_prob::is_shared_out(head, scored.compute).map_err(Error::from)? {
        let sum = if head.track_op() { sink.host(head) } else { None };
        if sum.is_some() == head.track_op() {
            let dx = log_prob::backward_into(hidden, head, scored, (scores, gradients), sum).map_err(Error::from)?;
            return Ok(Tensor::from_vec(dx, hidden.shape(), hidden.device()).map_err(Error::from)?);
        }
    }
    let both = Tensor::stack(&[&scores.log_probs, &scores.entropy], 0).map_err(Error::from)?;
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if !hidden.device().is_cpu() {
        let sum = if head.track_op() { sink.device(head) } else { None };
        if sum.is_some() == head.track_op() {
            let dx = log_prob::backward_on_device(hidden, &head.detach(), scored, [&both, gradients], sum.as_ref());
            return Ok(dx.map_err(Error::from)?);
        }
    }
    let (dx, dw) = log_prob::gradients(hidden, head, scored, [&both, gradients]).map_err(Error::from)?;
    if let Some(dw) = dw {
        sink.add(head, &dw)?;
    }
    Ok(dx)
}

/// The gradients of both scores, `[2, scored]`; zeros for one that the loss does not depend on.
fn gradients_of(loss: &Tensor, leaves: &[Var; 2]) -> Result<Tensor> {
    let mut store = loss.backward()?;
    let found = leaves.each_ref().map(|leaf| store.remove(leaf.as_tensor()));
    if found.iter().all(Option::is_none) {
        return Err(Error::Unsupported("the loss depends on no log-probability".into()));
    }
    let rows = found
        .into_iter()
        .zip(leaves)
        .map(|(gradient, leaf)| gradient.map_or_else(|| leaf.zeros_like(), Ok))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::stack(&rows, 0)?)
}
