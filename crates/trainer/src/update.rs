//! Gradients of a batch: packed micro-batches, each on one thread where that fits, summed in the order of the batch.

use anyhow::Result;
use candle_core::Tensor;
use model::backward::{self, Pass};
use model::ops::HeadScores;
use model::{PackedBatch, Qwen2};
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

/// Cuts `0..lengths.len()` into runs of at most `limit` tokens (a longer sequence stands alone, and without a limit each
/// does), in order. A pure function of the lengths: the sums of a batch do not depend on threads.
pub fn micro_batches(lengths: &[usize], limit: impl Into<Option<usize>>) -> Vec<Range<usize>> {
    let limit = limit.into().unwrap_or(0);
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

/// Adds the gradients of `loss(range, scores)` over the micro-batches (sequences, and the ranges of them) to `sum`, which
/// [`Gradients::begin`] has made ready, and returns what else each gave, in order.
///
/// Micro-batches of a small model run side by side, each with gradients of its own; those of a large one run one after
/// the other and add to the sum in place.
///
/// # Errors
/// The first error of `loss` or of its backward pass.
pub fn gradients<T: Send>(
    sum: &mut Gradients,
    model: &Qwen2,
    (sequences, batches): (&[Sequence], &[Range<usize>]),
    pass: Pass,
    loss: impl Fn(Range<usize>, &HeadScores) -> Result<(Tensor, T)> + Sync + Send,
) -> Result<Vec<T>> {
    let differentiate = |range: Range<usize>, sum: &mut Gradients| {
        let batch = pack(&sequences[range.clone()]);
        backward::gradients(model, &batch, pass, |scores| loss(range, scores), sum)
    };
    let mut others = Vec::with_capacity(batches.len());
    // By the model's size alone: a tied embedding gets its gradient in two parts, and the order of the sum shows in its
    // last bits.
    let in_flight = GRADIENTS_IN_FLIGHT / gradient_bytes(model);
    if in_flight < 2 {
        for range in batches {
            others.push(differentiate(range.clone(), sum)?);
        }
        return Ok(others);
    }
    for wave in batches.chunks(in_flight) {
        let parts = each(model, wave, |range| {
            let mut part = Gradients::new(model.variables())?;
            let other = differentiate(range, &mut part)?;
            Ok((part, other))
        })?;
        for (part, other) in parts {
            sum.merge(&part)?;
            others.push(other);
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_cover_everything_once_in_order() {
        assert_eq!(micro_batches(&[3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(micro_batches(&[100, 1], 6), [0..1, 1..2]);
        assert!(micro_batches(&[], 6).is_empty());
        assert_eq!(micro_batches(&[3, 3], None), [0..1, 1..2]);
    }
}
