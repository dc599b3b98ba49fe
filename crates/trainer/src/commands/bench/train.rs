//! `trainer bench train`: one update by the log-probs of responses of given lengths: forward, backward, AdamW.

use std::ops::Range;

use anyhow::Result;
use candle_core::Tensor;
use model::Qwen2;
use model::backward::Pass;
use serde::Serialize;

use super::timing::repeat;
use super::{choice_of, lengths, random_rows};
use crate::cli::BenchArgs;
use crate::config::Dtype;
use crate::doctor::memory;
use crate::optimizer::{AdamW, AdamWSettings, Gradients};
use crate::update::{self, Sequence};

/// What was found.
pub(super) struct Found {
    /// Of each repeat.
    pub seconds: Vec<f64>,
    /// Tokens trained on in each, padding left out.
    pub tokens: usize,
    /// What only updates have.
    pub figures: Figures,
}

/// What only updates have.
#[derive(Serialize)]
pub(super) struct Figures {
    /// Share of the tokens computed that is padding, 0 to 1.
    padding: f64,
    /// The mean of `-log p` over the new tokens, before the first update and before the last.
    loss_first: Option<f64>,
    loss_last: Option<f64>,
    /// What `trainer doctor` would say that an update takes.
    predicted_memory_bytes: u64,
}

/// Updates; with `--padded`, over the same micro-batches with every sequence as long as the longest of its own.
pub(super) fn run(args: &BenchArgs, model: &Qwen2) -> Result<Found> {
    let responses = lengths(args)?;
    let lengths: Vec<usize> = responses.iter().map(|response| args.prompt_tokens + response).collect();
    let passes = update::micro_batches(&lengths, args.micro_batch_tokens);
    let computed = if args.padded { padded(&lengths, &passes) } else { lengths.clone() };
    let rows = random_rows(&computed, model.config().vocab_size);
    let sequences: Vec<Sequence> =
        rows.into_iter().map(|tokens| Sequence { tokens, prompt: args.prompt_tokens }).collect();
    let predicted = memory::update(&memory::Update {
        shape: model.config(),
        dtype: args.dtype,
        lora: model.lora(),
        tokens: passes.iter().map(|pass| computed[pass.clone()].iter().sum()).max().unwrap_or(0),
        recompute: None,
        state: args.state,
        device: choice_of(model.device()),
    });
    let pass = Pass { temperature: 1.0, recompute: None };
    let mean = -1.0 / responses.iter().sum::<usize>() as f64;
    let settings = AdamWSettings { narrow: args.state == Dtype::Bf16, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(model.variables(), settings)?;
    let mut gradients = Gradients::kept(model.variables(), settings.narrow)?;
    let mut losses = Vec::new();
    let seconds = repeat(args.repeats, |_| {
        let loss = |range: Range<usize>, scores: &model::ops::HeadScores| {
            // What is behind a response is computed and does not count.
            let counts = range.flat_map(|i| {
                let padding = sequences[i].response_len() - responses[i];
                std::iter::repeat_n(1f32, responses[i]).chain(std::iter::repeat_n(0.0, padding))
            });
            let counts = Tensor::from_iter(counts, scores.log_probs.device())?;
            let loss = ((&scores.log_probs * counts)?.sum_all()? * mean)?;
            let value = loss.to_scalar::<f32>()?;
            Ok((loss, f64::from(value)))
        };
        gradients.begin(optimizer.step_count())?;
        let parts = update::gradients(&mut gradients, model, (&sequences, &passes), pass, loss)?;
        optimizer.step(&gradients, args.learning_rate)?;
        losses.push(parts.iter().sum());
        Ok(model.device().synchronize()?)
    })?;
    let tokens: usize = lengths.iter().sum();
    let figures = Figures {
        padding: 1.0 - tokens as f64 / computed.iter().sum::<usize>() as f64,
        loss_first: losses.first().copied(),
        loss_last: losses.last().copied(),
        predicted_memory_bytes: predicted.total(),
    };
    Ok(Found { seconds, tokens, figures })
}

/// Each length as the longest of its micro-batch.
fn padded(lengths: &[usize], passes: &[Range<usize>]) -> Vec<usize> {
    let longest = |pass: &Range<usize>| lengths[pass.clone()].iter().copied().max().unwrap_or(0);
    passes.iter().flat_map(|pass| std::iter::repeat_n(longest(pass), pass.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_becomes_the_longest_of_its_micro_batch() {
        assert_eq!(padded(&[3, 5, 4, 9, 1], &[0..3, 3..4, 4..5]), [5, 5, 5, 9, 1]);
    }
}
