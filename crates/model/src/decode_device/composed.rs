//! The device decoder's step of plain tensor operations: slow, on any device, and the twin of the one made of kernels.
//!
//! A block of the model is that of training; attention reads keys and values where the blocks of a sequence lie.

use super::plan::Plan;
use super::store::Blocks;
use super::{Drawn, Draws};
use crate::cache::LANES;
use crate::error::Result;
use crate::ops::sample::sample;
use crate::ops::{Heads, linear};
use crate::qwen2::Qwen2;
use candle_core::{D, DType, Device, Tensor};
use std::sync::Arc;

/// Feeds the tokens of a plan and draws, on the host.
pub(super) fn step(model: &Qwen2, store: &mut Blocks, plan: &Plan, draws: &Draws) -> Result<Drawn> {
    let logits = forward(model, store, plan)?;
    let mut logits = logits.map_or_else(|| Ok(Vec::new()), |logits| logits.to_vec2::<f32>())?;
    let mut draw = |(row, at): (&Option<usize>, &Vec<f64>)| {
        let logits = logits.get_mut((*row)?)?;
        // Drawing overwrites the logits.
        Some(at.iter().map(|&u| sample(&mut logits.clone(), &draws.from, u)).collect())
    };
    Ok(plan.logits_of.iter().zip(draws.at).map(&mut draw).collect())
}

/// Feeds the tokens of a plan; gives the logits that are wanted, `[wanted, vocab]` in f32, or none.
fn forward(model: &Qwen2, store: &mut Blocks, plan: &Plan) -> Result<Option<Tensor>> {
    let copies = store.take_copies();
    let layers = store.tensors()?;
    copy(layers, &copies)?;
    let positions: Arc<[u32]> = plan.positions.as_slice().into();
    let slots = Tensor::new(plan.slots.as_slice(), model.device())?;
    let reads = Reads::new(plan, model.device())?;
    let mut x = model.embed_tokens(&plan.tokens)?;
    for (index, [keys, values]) in layers.iter().enumerate() {
        x = model.block_with(index, &x, &positions, &|q, k, v| {
            write(keys, &slots, k)?;
            write(values, &slots, v)?;
            reads.attend(q, keys, values, model.config().heads)
        })?;
    }
    if plan.wanted.is_empty() {
        return Ok(None);
    }
    let rows = x.index_select(&Tensor::new(plan.wanted.as_slice(), model.device())?, 0)?;
    let logits = linear(&model.last_norm(&rows)?, model.head_weight(), None, model.compute())?;
    Ok(Some(logits.to_dtype(DType::F32)?))
}

/// Copies the blocks that forks have asked for.
fn copy(layers: &[[Tensor; 2]], lists: &[Vec<(u32, u32)>]) -> Result<()> {
    for &(from, to) in lists.iter().flatten() {
        for tensor in layers.iter().flatten() {
            let block = tensor.narrow(0, from as usize * LANES, LANES)?.copy()?;
            tensor.slice_set(&block, 0, to as usize * LANES)?;
        }
    }
    Ok(())
}

/// Writes a row of `new: [tokens, width]` to each slot of `cache`.
fn write(cache: &Tensor, slots: &Tensor, new: &Tensor) -> Result<()> {
    let index = slots.unsqueeze(1)?.broadcast_as(new.shape())?.contiguous()?;
    Ok(cache.scatter_set(&index, &new.contiguous()?, 0)?)
}

/// What the rows of a step read: rows of one token each side by side, longer spans one by one.
struct Reads {
    /// The rows that feed one token, if there are some.
    single: Option<Read>,
    long: Vec<Read>,
    /// Where each row of the output is in the outputs of all reads, one behind the other.
    order: Tensor,
}

/// Sequences that are read at once, each by as many tokens.
struct Read {
    /// Rows of the forward pass, `[sequences * tokens]`.
    rows: Tensor,
    /// Rows of the cache, `[sequences * longest]`; those beyond a sequence's end are any.
    slots: Tensor,
    /// Zero where a token sees a position and `-inf` where not, `[sequences, 1, tokens, longest]`.
    mask: Tensor,
    sequences: usize,
    tokens: usize,
    longest: usize,
}

impl Reads {
    fn new(plan: &Plan, device: &Device) -> Result<Self> {
        let (single, long): (Vec<usize>, Vec<usize>) = (0..plan.spans.len()).partition(|&i| plan.spans[i].len() == 1);
        let mut order = vec![0; plan.tokens.len()];
        let rows = single.iter().chain(&long).flat_map(|&i| plan.spans[i].clone());
        rows.enumerate().for_each(|(place, row)| order[row] = place as u32);
        Ok(Self {
            single: if single.is_empty() { None } else { Some(Read::new(plan, &single, device)?) },
            long: long.iter().map(|&i| Read::new(plan, &[i], device)).collect::<Result<_>>()?,
            order: Tensor::new(order, device)?,
        })
    }

    /// `q: [tokens, query * dim]` against a layer's cache; the same shape.
    fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
        let reads = self.single.iter().chain(&self.long);
        let mixed = reads.map(|read| read.attend(q, keys, values, heads)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&mixed, 0)?.index_select(&self.order, 0)?)
    }
}

impl Read {
    fn new(plan: &Plan, spans: &[usize], device: &Device) -> Result<Self> {
        let tokens = plan.spans[spans[0]].len();
        let longest = spans.iter().map(|&i| plan.len_of(i)).max().unwrap_or(0);
        let mut slots = Vec::with_capacity(spans.len() * longest);
        let mut mask = Vec::with_capacity(spans.len() * tokens * longest);
        for (n, &i) in spans.iter().enumerate() {
            slots.extend(plan.slots_of(i, plan.len_of(i)));
            slots.resize((n + 1) * longest, 0);
            for row in plan.spans[i].clone() {
                let seen = |t: usize| if t <= plan.positions[row] as usize { 0.0 } else { f32::NEG_INFINITY };
                mask.extend((0..longest).map(seen));
            }
        }
        let rows: Vec<u32> = spans.iter().flat_map(|&i| plan.spans[i].clone()).map(|row| row as u32).collect();
        Ok(Self {
            rows: Tensor::new(rows, device)?,
            slots: Tensor::new(slots, device)?,
            mask: Tensor::from_vec(mask, (spans.len(), 1, tokens, longest), device)?,
            sequences: spans.len(),
            tokens,
            longest,
        })
    }

    /// `softmax(q k^T / sqrt(dim)) v` in f32: `[sequences * tokens, query * dim]` in the type of `q`.
    fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
        let Heads { query, key_value, dim } = heads;
        let (n, tokens, longest, group) = (self.sequences, self.tokens, self.longest, query / key_value);
        let dtype = q.dtype();
        // [sequences, key_value, group * tokens, dim]: the queries of one head lie together.
        let q = q.index_select(&self.rows, 0)?.to_dtype(DType::F32)?.reshape((n, tokens, key_value, group, dim))?;
        let q = q.permute((0, 2, 3, 1, 4))?.reshape((n, key_value, group * tokens, dim))?;
        let read = |cache: &Tensor| {
            let rows = cache.index_select(&self.slots, 0)?.to_dtype(DType::F32)?;
            rows.reshape((n, longest, key_value, dim))?.transpose(1, 2)?.contiguous()
        };
        let scores = (q.matmul(&read(keys)?.t()?)? / (dim as f64).sqrt())?;
        let scores = scores.reshape((n, key_value * group, tokens, longest))?.broadcast_add(&self.mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.reshape((n, key_value, group * tokens, longest))?.matmul(&read(values)?)?;
        let mixed = mixed.reshape((n, key_value, group, tokens, dim))?.permute((0, 3, 1, 2, 4))?;
        Ok(mixed.reshape((n * tokens, query * dim))?.to_dtype(dtype)?)
    }
}
