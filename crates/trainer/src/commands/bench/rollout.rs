//! `trainer bench rollout`: responses of given lengths to random prompts, and when each of them came.

use anyhow::Result;
use model::{PackedBatch, Qwen2};
use sampler::{Batching, Compute, Control, Engine, Limits, Local, Request, Rollout, Sampling, Times};
use serde::Serialize;

use super::timing::{median, percentile, repeat};
use super::{lengths, random_rows};
use crate::cli::BenchArgs;
use crate::update::Sequence;

/// Rows whose log-probs are compared with those of training.
const COMPARED: usize = 4;

/// What was found.
pub(super) struct Found {
    /// Of each repeat.
    pub seconds: Vec<f64>,
    /// Tokens sampled in each.
    pub tokens: usize,
    /// What only rollouts have.
    pub figures: Figures,
}

/// What only rollouts have. Times are of the last repeat and count from its beginning, when every request is there: what a
/// response waits for a row is in them.
#[derive(Serialize)]
pub(super) struct Figures {
    /// What products were computed in.
    compute: Compute,
    /// Rows at once: the most that there were, which is fewer than allowed where more would not help or have no room.
    rows: usize,
    /// Samples of each prompt.
    group: usize,
    /// Whether prompts that begin alike are computed once.
    sharing: bool,
    /// Whether a row that has finished is replaced at once.
    continuous: bool,
    /// Until a response was whole: the median over responses, and what one in twenty exceeds.
    latency_median: f64,
    latency_p95: f64,
    /// Until its first token.
    first_token_median: f64,
    first_token_p95: f64,
    /// Until it had a row.
    admitted_median: f64,
    admitted_p95: f64,
    /// Steps of the whole batch.
    steps: usize,
    /// Tokens that went through the model, and those of prompts that did not have to.
    fed_tokens: usize,
    shared_tokens: usize,
    /// Rows that were sent back to the queue since the cache was full.
    preemptions: usize,
    /// The mean absolute difference, in nats, between the log-probs that were sampled with and those that training
    /// computes for the same tokens, over the first [`COMPARED`] rows.
    logprob_gap: f64,
}

/// So many tokens for each request; prompts are read, no stop token ends a response.
pub(super) fn run(args: &BenchArgs, model: &Qwen2) -> Result<Found> {
    let prompts = args.batch.div_ceil(args.group);
    let prompts = random_rows(&vec![args.prompt_tokens; prompts], model.config().vocab_size);
    let lengths = lengths(args)?;
    let limits = Limits { max_rows: args.rows.unwrap_or(args.batch), cache_bytes: None };
    let batching = Batching { continuous: !args.static_batch, sharing: !args.no_sharing };
    let compute = args.compute.unwrap_or(args.dtype.into());
    let mut engine = Local::new(limits, compute).with_batching(batching);
    engine.load_weights(model)?;
    let of = |i: usize, max_new_tokens| Request { prompt: &prompts[i / args.group], stream: i as u64, max_new_tokens };
    let requests: Vec<Request> = lengths.iter().enumerate().map(|(i, &length)| of(i, length)).collect();
    let warm_up = lengths.iter().map(|&length| args.warm_up_tokens.map_or(length, |limit| length.min(limit)));
    let warm_up: Vec<Request> = warm_up.enumerate().map(|(i, length)| of(i, length)).collect();
    let sampling = Sampling::at(1.0, &[]);
    let mut rollouts = Vec::new();
    let seconds = repeat(args.repeats, |counted| {
        let requests = if counted { &requests } else { &warm_up };
        rollouts = engine.generate(requests, &sampling, &mut |_| Control::Continue)?;
        Ok(model.device().synchronize()?)
    })?;
    let work = engine.work();
    let times = |of: fn(&Times) -> f64| rollouts.iter().map(|r| of(&r.times)).collect::<Vec<f64>>();
    let (latency, first, admitted) = (times(|t| t.finished), times(|t| t.first_token), times(|t| t.admitted));
    let figures = Figures {
        compute,
        rows: work.rows,
        group: args.group,
        sharing: batching.sharing,
        continuous: batching.continuous,
        latency_median: median(&latency),
        latency_p95: percentile(&latency, 0.95),
        first_token_median: median(&first),
        first_token_p95: percentile(&first, 0.95),
        admitted_median: median(&admitted),
        admitted_p95: percentile(&admitted, 0.95),
        steps: work.steps,
        fed_tokens: work.fed_tokens,
        shared_tokens: work.shared_tokens,
        preemptions: work.preemptions,
        logprob_gap: gap(&requests, &rollouts, model)?,
    };
    Ok(Found { seconds, tokens: lengths.iter().sum(), figures })
}

fn gap(requests: &[Request], rollouts: &[Rollout], model: &Qwen2) -> Result<f64> {
    let sequence = |(request, rollout): (&Request, &Rollout)| Sequence {
        tokens: [request.prompt, &rollout.tokens].concat(),
        prompt: request.prompt.len(),
    };
    let sequences: Vec<Sequence> = requests.iter().zip(rollouts).take(COMPARED).map(sequence).collect();
    let batch = PackedBatch::new(sequences.iter().map(|s| (s.tokens.as_slice(), s.prompt)));
    let trained = model.detached().scores(&batch, 1.0)?.log_probs.to_vec1::<f32>()?;
    let sampled = rollouts.iter().take(COMPARED).flat_map(|r| &r.log_probs);
    let total: f64 = trained.iter().zip(sampled).map(|(t, s)| f64::from((t - s).abs())).sum();
    Ok(total / trained.len() as f64)
}
