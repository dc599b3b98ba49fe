//! Backward by block: only the residual stream between blocks is kept, and each block is computed a second time when its
//! gradient is due (Chen et al. 2016, arXiv 1604.06174).
//!
//! A block's activations then live only while it is being differentiated, at the cost of one more forward pass. The two
//! matrices that are as large as the vocabulary have their gradients added where they are summed, on the CPU and on a GPU
//! with kernels for it: nothing of that size is made on the way.

use crate::error::{Error, Result};
use crate::kernels::sums::HostSum;
#[cfg(feature = "cuda")]
use crate::ops::log_prob::Scored;
use crate::ops::{HeadScores, fused, log_prob};
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::backprop::GradStore;
use candle_core::{Storage, Tensor, Var};

/// Models above so many parameters recompute unless told otherwise: below, activations are small change.
pub const BY_DEFAULT_ABOVE: usize = 64 << 20;

/// Where gradients are summed. A closure that takes stores is one, without memory to add to.
pub trait Sink<E> {
    /// Adds what a backward pass left for the variables.
    ///
    /// # Errors
    /// When a gradient does not fit its variable.
    fn add(&mut self, store: &GradStore) -> Result<(), E>;

    /// The sum of a trainable variable's gradients in host memory, row-major, for something to be added to it; `None`
    /// where there is no such memory.
    fn host(&mut self, _variable: &Tensor) -> Option<HostSum<'_>> {
        None
    }

    /// The sum of a trainable variable's gradients on its GPU, f32 and in its shape, for a kernel to add to it in place; `None`
    /// where there is no such tensor.
    fn device(&mut self, _variable: &Tensor) -> Option<Tensor> {
        None
    }
}

impl<E, F: FnMut(&GradStore) -> Result<(), E>> Sink<E> for F {
    fn add(&mut self, store: &GradStore) -> Result<(), E> {
        self(store)
    }
}

/// Computes `loss(scores)` of a batch and hands the gradients of every variable to `sink`, in several parts: the gradient
/// of a variable that is used in more than one place (a tied embedding) is their sum.
///
/// # Errors
/// Those of the forward pass, of `loss` and of `sink`.
pub fn backward<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    temperature: f64,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    sink: &mut dyn Sink<E>,
) -> Result<T, E> {
    let mut stream = residual_stream(model, batch)?;
    let last = stream.pop().ok_or_else(|| Error::Unsupported("a model without blocks".into()))?;
    let (mut gradient, other) = through_head(model, batch, temperature, &last, loss, sink)?;
    drop(last);
    for i in (0..model.config().num_layers).rev() {
        let leaf = stream.pop().map(|x| leaf(&x)).transpose()?;
        let leaf = leaf.ok_or_else(|| Error::Unsupported("a block without an input".into()))?;
        let weighted = weighted(&model.gradient_of_block(i, leaf.as_tensor(), batch)?, &gradient)?;
        gradient = differentiate(&weighted, &leaf, sink)?;
    }
    through_embedding(model, batch, &gradient, sink)?;
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

/// The loss and what it is differentiated to: the gradient of the last block's output.
fn through_head<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    temperature: f64,
    last: &Tensor,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    sink: &mut dyn Sink<E>,
) -> Result<(Tensor, T), E> {
    let leaf = leaf(last)?;
    let head = model.head_weight();
    #[cfg(feature = "cuda")]
    if last.device().is_cuda() && fused(last) {
        let sum = if head.track_op() { sink.device(head) } else { None };
        if sum.is_some() == head.track_op() {
            return through_head_on_device(model, model.scored(batch, temperature), &leaf, loss, (sink, sum));
        }
    }
    let in_place = last.device().is_cpu() && fused(last) && (!head.track_op() || sink.host(head).is_some());
    if !in_place {
        let (loss, other) = loss(&model.head_scores(leaf.as_tensor(), batch, temperature)?)?;
        return Ok((differentiate(&loss, &leaf, sink)?, other));
    }
    let normed = model.last_norm(leaf.as_tensor())?;
    let hidden = normed.detach();
    let scored = model.scored(batch, temperature);
    let scores = log_prob(&hidden, &head.detach(), &scored).map_err(Error::from)?;
    let leaves = [self::leaf(&scores.log_probs)?, self::leaf(&scores.entropy)?];
    let [log_probs, entropy] = leaves.each_ref().map(|leaf| leaf.as_tensor().clone());
    let (loss, other) = loss(&HeadScores { log_probs, entropy })?;
    let gradients = gradients_of(&loss, &leaves)?;
    drop(loss);
    let trained = if head.track_op() { sink.host(head) } else { None };
    let dx = log_prob::backward_into(&hidden, head, &scored, (&scores, &gradients), trained).map_err(Error::from)?;
    let dx = Tensor::from_vec(dx, hidden.shape(), hidden.device()).map_err(Error::from)?;
    Ok((differentiate(&weighted(&normed, &dx)?, &leaf, sink)?, other))
}

/// The same on a GPU, where a kernel adds the gradient of the head to the `sum`, if that is trained.
#[cfg(feature = "cuda")]
fn through_head_on_device<T, E: From<Error>>(
    model: &Qwen2,
    scored: Scored,
    leaf: &Var,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    (sink, sum): (&mut dyn Sink<E>, Option<Tensor>),
) -> Result<(Tensor, T), E> {
    let (head, normed) = (model.head_weight().detach(), model.last_norm(leaf.as_tensor())?);
    let hidden = normed.detach();
    let scores = log_prob(&hidden, &head, &scored).map_err(Error::from)?;
    let both = Tensor::stack(&[&scores.log_probs, &scores.entropy], 0).map_err(Error::from)?;
    let leaves = [self::leaf(&scores.log_probs)?, self::leaf(&scores.entropy)?];
    let [log_probs, entropy] = leaves.each_ref().map(|leaf| leaf.as_tensor().clone());
    let (loss, other) = loss(&HeadScores { log_probs, entropy })?;
    let gradients = gradients_of(&loss, &leaves)?;
    let dx = log_prob::backward_on_device(&hidden, &head, &scored, [&both, &gradients], sum.as_ref());
    Ok((differentiate(&weighted(&normed, &dx.map_err(Error::from)?)?, leaf, sink)?, other))
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

/// Hands on the gradient of the embedding, if that is trained: each token's row gets what the token's place got.
fn through_embedding<E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    gradient: &Tensor,
    sink: &mut dyn Sink<E>,
) -> Result<(), E> {
    if !model.embedding.track_op() {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if gradient.device().is_cuda()
        && fused(gradient)
        && let Some(sum) = sink.device(&model.embedding)
    {
        crate::ops::embedding::add_gradient(&sum, &batch.tokens, gradient).map_err(Error::from)?;
        return Ok(());
    }
    if let Some(sum) = sink.host(&model.embedding)
        && fused(gradient)
    {
        return add_rows(sum, &batch.tokens, gradient).map_err(E::from);
    }
    let store = weighted(&model.embed(batch)?, gradient)?.backward().map_err(Error::from)?;
    sink.add(&store)
}

/// `sum[tokens[i]] += rows[i]` of `rows: [tokens, width]` on the CPU, in order.
fn add_rows(mut sum: HostSum, tokens: &[u32], rows: &Tensor) -> Result<()> {
    let rows = rows.contiguous()?;
    let width = rows.dim(1)?;
    let (storage, layout) = rows.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Unsupported("gradients are summed in host memory on the CPU only".into()));
    };
    let rows = &storage.as_slice::<f32>()?[layout.start_offset()..];
    for (&token, row) in tokens.iter().zip(rows.chunks_exact(width)) {
        sum.add(token as usize * width, row);
    }
    Ok(())
}

fn leaf(x: &Tensor) -> Result<Var> {
    Ok(Var::from_tensor(x)?)
}

/// A scalar whose gradient is that of `y` weighted by `gradient`.
fn weighted(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok((y * gradient)?.sum_all()?)
}

/// Hands on what a backward pass found, and returns the gradient of the leaf.
fn differentiate<E: From<Error>>(scalar: &Tensor, leaf: &Var, sink: &mut dyn Sink<E>) -> Result<Tensor, E> {
    let mut store = scalar.backward().map_err(Error::from)?;
    let gradient = store.remove(leaf.as_tensor());
    sink.add(&store)?;
    gradient.ok_or_else(|| Error::Unsupported("no gradient reached the input of a block".into()).into())
}
