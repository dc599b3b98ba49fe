//! The gradients of a loss of a batch's scores: back through head, blocks and embedding, without a graph between them.
//!
//! Each block hands its gradients on as they are made, and what it computed goes with them. Candle's own pass over a graph
//! adds every gradient to zeros that it makes first, and holds all of them to the end; it is the twin of this one, and takes
//! over where there are no kernels. With recomputation only the residual stream between blocks is kept, and each block is
//! computed a second time when its gradient is due (Chen et al. 2016, arXiv 1604.06174): a block's activations then live only
//! while it is being differentiated, at the cost of one more forward pass.

mod block;
mod head;

use crate::block::Activations;
use crate::error::{Error, Result};
use crate::kernels::sums::HostSum;
use crate::ops::attention::{self, Attention};
use crate::ops::{HeadScores, fused};
use crate::qwen2::{PackedBatch, Qwen2};
use candle_core::backprop::GradStore;
use candle_core::{Storage, Tensor, Var};

/// Models above so many parameters recompute unless told otherwise: below, activations are small change.
pub const RECOMPUTE_ABOVE: usize = 64 << 20;

/// How a loss is differentiated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Of the distribution whose log-probs the loss takes.
    pub temperature: f64,
    /// Compute each block again in the backward pass; `None` does so above [`RECOMPUTE_ABOVE`] parameters.
    pub recompute: Option<bool>,
}

/// Where gradients are summed. A closure that takes a variable and a gradient is one, without memory to add to.
pub trait Sink<E> {
    /// Adds to the gradient of a trainable variable, in its shape and any float type. One that is used in more than one place
    /// (a tied embedding) gets several.
    ///
    /// # Errors
    /// When the gradient does not fit the variable.
    fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<(), E>;

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

impl<E, F: FnMut(&Tensor, &Tensor) -> Result<(), E>> Sink<E> for F {
    fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<(), E> {
        self(variable, gradient)
    }
}

/// Computes `loss(scores)` of a batch and hands the gradients of every variable to `sink`, in several parts: the gradient
/// of a variable that is used in more than one place (a tied embedding) is their sum. Returns what else the loss gave.
///
/// # Errors
/// Those of the forward pass, of `loss` and of `sink`.
pub fn gradients<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    pass: Pass,
    loss: impl FnOnce(&HeadScores) -> Result<(Tensor, T), E>,
    sink: &mut dyn Sink<E>,
) -> Result<T, E> {
    let recompute = pass.recompute.unwrap_or(model.config().parameters() > RECOMPUTE_ABOVE);
    let x = model.detached().embed(batch)?;
    let way = match attention::has_kernel(&x, model.config().heads) {
        false => Way::Graph,
        true if recompute => Way::Again,
        true => Way::Kept,
    };
    through(model, batch, (x, way), |x, sink| head::through(model, batch, pass.temperature, x, loss, sink), sink)
}

/// How a block is gone back through.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// By what it computed, which was kept.
    Kept,
    /// By what it computes when it is computed again.
    Again,
    /// By candle, over the graph that it builds when it is computed again.
    Graph,
}

/// What is kept of a block until its gradient is due.
enum Kept {
    Input(Tensor),
    Activations(Box<Activations>, Attention),
}

/// There and back again: `x` is what goes into the first block, `head` takes what comes out of the last and gives its gradient.
fn through<T, E: From<Error>>(
    model: &Qwen2,
    batch: &PackedBatch,
    (mut x, way): (Tensor, Way),
    head: impl FnOnce(&Tensor, &mut dyn Sink<E>) -> Result<(Tensor, T), E>,
    sink: &mut dyn Sink<E>,
) -> Result<T, E> {
    let detached = model.detached();
    let mut blocks = Vec::with_capacity(model.config().num_layers);
    for index in 0..model.config().num_layers {
        let next = if way == Way::Kept {
            let (activations, attention) = detached.activations(index, &x, batch)?;
            let next = detached.last_of_block(index, &activations)?;
            blocks.push(Kept::Activations(Box::new(activations), attention));
            next
        } else {
            let next = detached.block(index, &x, batch)?;
            blocks.push(Kept::Input(x));
            next
        };
        x = next;
    }
    let (mut gradient, other) = head(&x, sink)?;
    drop(x);
    for (index, kept) in blocks.into_iter().enumerate().rev() {
        let (activations, attention) = match kept {
            Kept::Activations(activations, attention) => (*activations, attention),
            Kept::Input(x) if way == Way::Again => detached.activations(index, &x, batch)?,
            Kept::Input(x) => {
                let leaf = leaf(&x)?;
                let weighted = weighted(&model.block(index, leaf.as_tensor(), batch)?, &gradient)?;
                gradient = differentiate(model, &weighted, &leaf, sink)?;
                continue;
            }
        };
        let block = block::Block { model, batch, index, attention: &attention };
        gradient = block.back(activations, gradient, sink)?;
    }
    through_embedding(model, batch, &gradient, sink)?;
    Ok(other)
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
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if !gradient.device().is_cpu()
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
    hand_on(model, &store, sink)
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

/// Goes back over candle's graph, hands on what it found, and returns the gradient of the leaf.
fn differentiate<E: From<Error>>(
    model: &Qwen2,
    scalar: &Tensor,
    leaf: &Var,
    sink: &mut dyn Sink<E>,
) -> Result<Tensor, E> {
    let mut store = scalar.backward().map_err(Error::from)?;
    let gradient = store.remove(leaf.as_tensor());
    hand_on(model, &store, sink)?;
    gradient.ok_or_else(|| Error::Unsupported("no gradient reached the input of a block".into()).into())
}

/// Hands on the gradients of the variables in a store.
fn hand_on<E>(model: &Qwen2, store: &GradStore, sink: &mut dyn Sink<E>) -> Result<(), E> {
    for (_, variable) in model.variables() {
        if let Some(gradient) = store.get(variable.as_tensor()) {
            sink.add(variable.as_tensor(), gradient)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, init};
    use candle_core::{DType, Device};
    use std::collections::HashMap;

    /// The order of the sums by hand is the graph's.
    #[test]
    fn the_three_ways_give_the_same_bits() {
        let config = r#"{"model_type": "qwen3", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#;
        let model =
            init::random(Config::parse(config, "config.json".as_ref()).unwrap(), 0.2, 7, DType::F32, &Device::Cpu)
                .unwrap();
        let tokens: Vec<u32> = (0..30).collect();
        let batch = PackedBatch::new([(tokens.as_slice(), 1), (&tokens[..9], 3)]);
        let found = [Way::Kept, Way::Again, Way::Graph].map(|way| {
            let mut found = HashMap::new();
            let mut sink = |variable: &Tensor, gradient: &Tensor| -> Result<()> {
                let values: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
                found.entry(variable.id()).or_insert_with(Vec::new).push(values);
                Ok(())
            };
            let loss = |scores: &HeadScores| -> Result<(Tensor, ())> {
                Ok(((&scores.log_probs + (&scores.entropy * 0.1)?)?.sum_all()?, ()))
            };
            let head = |x: &Tensor, sink: &mut dyn Sink<Error>| head::through(&model, &batch, 0.8, x, loss, sink);
            let x = model.detached().embed(&batch).unwrap();
            through(&model, &batch, (x, way), head, &mut sink).unwrap();
            found
        });
        for (name, variable) in model.variables() {
            let [kept, again, graph] = found.each_ref().map(|found| &found[&variable.as_tensor().id()]);
            assert!(kept == graph && again == graph, "{name}");
        }
    }
}
