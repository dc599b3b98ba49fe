//! Gradients of a batch: packed micro-batches, each on one thread where that fits, summed in the order of the batch.
//!
//! A small model has gradients of its own for each micro-batch in flight; a large one has one set, which every micro-batch
//! adds to.

use anyhow::Result;
use candle_core::Tensor;
use model::ops::HeadScores;
use model::{PackedBatch, Qwen2, recompute};
use rayon::prelude::*;
use std::ops::Range;

use crate::optimizer::Gradients;

/// Bytes of gradients that may wait to be summed: what bounds the micro-batches in flight.
const GRADIENTS_IN_FLIGHT: usize = 256 << 20;

/// One prompt with its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, prompt first.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, at least one; the others are scored.
    pub prompt: usize,
}

impl Sequence {
    /// Tokens of the response.
    pub fn response_len(&self) -> usize {
        self.tokens.len() - self.prompt
    }
}

/// Cuts `0..lengths.len()` into runs of at most `limit` tokens (a longer sequence stands alone), in order. A pure
/// function of the lengths: the sums of a batch do not depend on threads.
pub fn micro_batches(lengths: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (i, &length) in lengths.iter().enumerate() {
        if i > start && tokens + length > limit {
            cuts.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length;
    }
    if start < lengths.len() {
        cuts.push(start..lengths.len());
    }
    cuts
}

/// Packs a run of sequences.
pub fn pack(sequences: &[Sequence]) -> PackedBatch {
    PackedBatch::new(sequences.iter().map(|s| (s.tokens.as_slice(), s.prompt)))
}

/// Calls `work(range)` for each micro-batch and returns the results in order. A small model's micro-batches run side by
/// side; a large one's one after the other, with the threads inside of each operation. The results are the same.
///
/// # Errors
/// The first error of `work`.
pub fn each<T: Send>(
    model: &Qwen2,
    batches: &[Range<usize>],
    work: impl Fn(Range<usize>) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    if side_by_side(model) {
        batches.par_iter().map(|range| work(range.clone())).collect()
    } else {
        batches.iter().map(|range| work(range.clone())).collect()
    }
}

fn gradient_bytes(model: &Qwen2) -> usize {
    model.config().parameters() * size_of::<f32>()
}

fn side_by_side(model: &Qwen2) -> bool {
    model.device().is_cpu() && gradient_bytes(model) * rayon::current_num_threads() <= GRADIENTS_IN_FLIGHT
}

/// How a loss is differentiated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Of the distribution whose log-probs the loss takes.
    pub temperature: f64,
    /// Recompute each block in the backward pass; `None` does so above the size of the embedded policy.
    pub recompute: Option<bool>,
}

/// Sums the gradients of `loss(range, scores)` over the micro-batches, and returns what else each gave, in order.
///
/// # Errors
/// The first error of `loss` or of its backward pass.
pub fn gradients<T: Send>(
    model: &Qwen2,
    sequences: &[Sequence],
    batches: &[Range<usize>],
    pass: Pass,
    loss: impl Fn(Range<usize>, &HeadScores) -> Result<(Tensor, T)> + Sync + Send,
) -> Result<(Gradients, Vec<T>)> {
    let recompute = pass.recompute.unwrap_or(model.config().parameters() > recompute::BY_DEFAULT_ABOVE);
    let one = |range: Range<usize>, into: &mut Gradients| -> Result<T> {
        let batch = pack(&sequences[range.clone()]);
        let loss = |scores: &HeadScores| loss(range, scores);
        if recompute {
            return recompute::backward(model, &batch, pass.temperature, loss, into);
        }
        let (loss, other) = loss(&model.scores(&batch, pass.temperature)?)?;
        into.accumulate(&loss.backward()?)?;
        Ok(other)
    };
    let mut sum = Gradients::new(model.variables())?;
    let mut others = Vec::with_capacity(batches.len());
    let in_flight = GRADIENTS_IN_FLIGHT / gradient_bytes(model);
    if in_flight <= 1 {
        // Of a large model there is one set of gradients.
        for range in batches {
            others.push(one(range.clone(), &mut sum)?);
        }
        return Ok((sum, others));
    }
    for wave in batches.chunks(in_flight) {
        let parts = each(model, wave, |range| {
            let mut part = Gradients::new(model.variables())?;
            let other = one(range, &mut part)?;
            Ok((part, other))
        })?;
        for (part, other) in parts {
            sum.merge(&part)?;
            others.push(other);
        }
    }
    Ok((sum, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_cover_everything_once_in_order() {
        assert_eq!(micro_batches(&[3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(micro_batches(&[100, 1], 6), [0..1, 1..2]);
        assert!(micro_batches(&[], 6).is_empty());
    }
}
