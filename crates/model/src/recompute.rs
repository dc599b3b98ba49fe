//! Backward by block: only the residual stream between blocks is kept, and each block is computed a second time when its
//! gradient is due (Chen et al. 2016, arXiv 1604.06174).
//!
//! A block's activations then live only while it is being differentiated, at the cost of one more forward pass.

use crate::error::{Error, Result};
use crate::ops::HeadScores;
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// Models above so many parameters recompute unless told otherwise: below, activations are small change.
pub const BY_DEFAULT_ABOVE: usize = 64 << 20;

/// Computes `loss(scores)` of a batch and hands the gradients of every variable to `sink`, in several stores: a variable
/// that is used in more than one place (a tied embedding) is in more than one, and its gradient is their sum.
///
/// # Errors
/// Those of the forward pass, of `loss` and of `sink`.
pub fn backward<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    temperature: f64,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    sink: &mut dyn FnMut(&GradStore) -> Result<(), E>,
) -> Result<T, E> {
    let stream = residual_stream(model, batch)?;
    let (last, earlier) = stream.split_last().ok_or_else(|| Error::Unsupported("a model without blocks".into()))?;
    let leaf = leaf(last)?;
    let (loss, other) = loss(&model.head_scores(leaf.as_tensor(), batch, temperature)?)?;
    let mut gradient = differentiate(&loss, &leaf, sink)?;
    for (i, x) in earlier.iter().enumerate().rev() {
        let leaf = self::leaf(x)?;
        let weighted = weighted(&model.block(i, leaf.as_tensor(), batch)?, &gradient)?;
        gradient = differentiate(&weighted, &leaf, sink)?;
    }
    let store = weighted(&model.embed(batch)?, &gradient)?.backward().map_err(Error::from)?;
    sink(&store)?;
    Ok(other)
}

/// The input of every block and the output of the last, without a graph.
fn residual_stream(model: &Qwen2, batch: &PackedBatch) -> Result<Vec<Tensor>> {
    let detached = model.detached();
    let mut stream = vec![detached.embed(batch)?];
    for i in 0..model.config().num_layers {
        let next = detached.block(i, &stream[i], batch)?;
        stream.push(next);
    }
    Ok(stream)
}

fn leaf(x: &Tensor) -> Result<Var> {
    Ok(Var::from_tensor(x)?)
}

/// A scalar whose gradient is that of `y` weighted by `gradient`.
fn weighted(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok((y * gradient)?.sum_all()?)
}

/// Hands on what a backward pass found, and returns the gradient of the leaf.
fn differentiate<E: From<Error>>(
    scalar: &Tensor,
    leaf: &Var,
    sink: &mut dyn FnMut(&GradStore) -> Result<(), E>,
) -> Result<Tensor, E> {
    let mut store = scalar.backward().map_err(Error::from)?;
    let gradient = store.remove(leaf.as_tensor());
    sink(&store)?;
    gradient.ok_or_else(|| Error::Unsupported("no gradient reached the input of a block".into()).into())
}
