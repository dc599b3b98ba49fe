//! `trainer bench`: how many tokens a second a policy samples or learns from, and the memory that takes, as JSON.

use std::time::{Duration, Instant};

use anyhow::Result;
use model::PackedBatch;
use sampler::{Control, Engine, Limits, Local, Request, Rollout, Sampling, pick};
use serde::Serialize;

use super::ready;
use crate::cli::{BenchArgs, BenchKind};
use crate::commands::{UsageError, print};
use crate::config::{Dtype, LORA_TARGETS, Lora};
use crate::doctor::memory;
use crate::optimizer::{AdamW, AdamWSettings, Gradients};
use crate::policy::Policy;
use crate::update::{self, Pass, Sequence};

/// Repeats after the first, which is not counted: at least so many ..
const LEAST_REPEATS: usize = 3;
/// .. and, until [`PATIENCE`] is spent, at most so many.
const MOST_REPEATS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows whose log-probs are compared with those of training.
const COMPARED: usize = 4;
/// The stream of the random token ids.
const IDS: u64 = 0x6265_6e63;
/// The seed of fresh adapters.
const SEED: u64 = 1;

/// What is printed.
#[derive(Serialize)]
struct Figures {
    bench: &'static str,
    model: String,
    device: &'static str,
    dtype: Dtype,
    threads: usize,
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// What `tokens_per_second` counts: the new tokens of a rollout, all tokens of an update.
    tokens: usize,
    repeats: usize,
    /// The median over the repeats.
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    tokens_per_second: f64,
    /// Of an update: the mean of `-log p` over the new tokens, before the first and before the last.
    loss_first: Option<f64>,
    loss_last: Option<f64>,
    /// Of rollouts: the mean absolute difference, in nats, between the log-probs that were sampled with and those that
    /// training computes for the same tokens, over the first [`COMPARED`] rows.
    logprob_gap: Option<f64>,
    /// What `trainer doctor` would say that an update takes.
    predicted_memory_bytes: Option<u64>,
    /// The largest resident set of the process, weights and all, on the host; null where the system does not tell a
    /// process its own (anywhere but on Linux).
    peak_memory_bytes: Option<u64>,
}

/// Measures speed.
pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let mut policy = ready::load(&args.model, args.dtype, args.device)?;
    if args.kind == BenchKind::Train {
        policy = policy.computed_in(args.compute.unwrap_or(args.dtype));
    }
    if let Some(rank) = args.lora_rank {
        policy = policy.with_adapters(&every_projection(rank), SEED)?;
    }
    let config = policy.model.config();
    let length = args.prompt_tokens.saturating_add(args.new_tokens);
    if length > config.max_positions {
        let (p, n, limit) = (args.prompt_tokens, args.new_tokens, config.max_positions);
        let message = format!("--prompt-tokens {p} and --new-tokens {n} are beyond the model's limit of {limit}");
        return Err(UsageError::new(format!("{message}; lower them")).into());
    }
    let (seconds, losses, gap) = match args.kind {
        BenchKind::Rollout => {
            let (seconds, gap) = rollout(args, &policy)?;
            (seconds, Vec::new(), Some(gap))
        }
        BenchKind::Train => {
            let (seconds, losses) = train(args, &policy)?;
            (seconds, losses, None)
        }
    };
    let predicted = memory::update(&memory::Update {
        shape: config,
        dtype: args.dtype,
        lora: policy.model.lora(),
        tokens: (args.batch * length).min(args.micro_batch_tokens).max(length),
        recompute: None,
        moments: args.moments,
    });
    let tokens = args.batch * if args.kind == BenchKind::Rollout { args.new_tokens } else { length };
    let median = median(&seconds);
    let figures = Figures {
        bench: if args.kind == BenchKind::Rollout { "rollout" } else { "train" },
        model: policy.source.to_string(),
        device: device_name(policy.model.device()),
        dtype: args.dtype,
        threads: rayon::current_num_threads(),
        batch: args.batch,
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        tokens,
        repeats: seconds.len(),
        seconds: median,
        seconds_min: seconds.iter().copied().fold(f64::INFINITY, f64::min),
        seconds_max: seconds.iter().copied().fold(0.0, f64::max),
        tokens_per_second: tokens as f64 / median,
        loss_first: losses.first().copied(),
        loss_last: losses.last().copied(),
        logprob_gap: gap,
        predicted_memory_bytes: (args.kind == BenchKind::Train).then(|| predicted.total()),
        peak_memory_bytes: std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(peak),
    };
    print(&format!("{}\n", serde_json::to_string_pretty(&figures)?))
}

/// Exactly `new_tokens` tokens for each of `batch` random prompts; prompts are read, no stop token ends a response.
///
/// Also returns the gap between sampled and trained log-probs.
fn rollout(args: &BenchArgs, policy: &Policy) -> Result<(Vec<f64>, f64)> {
    let prompts = random_rows(args, args.prompt_tokens, policy.model.config().vocab_size);
    let mut engine = Local::new(Limits { max_rows: args.batch, cache_bytes: None }, args.dtype.into());
    engine.load_weights(&policy.model)?;
    let requests: Vec<Request> = prompts
        .iter()
        .zip(0..)
        .map(|(prompt, stream)| Request { prompt, stream, max_new_tokens: args.new_tokens })
        .collect();
    let sampling = Sampling::at(1.0, &[]);
    let mut rollouts = Vec::new();
    let seconds = repeat(args.repeats, || {
        rollouts = engine.generate(&requests, &sampling, &mut |_| Control::Continue)?;
        Ok(())
    })?;
    Ok((seconds, gap(&requests, &rollouts, policy)?))
}

fn gap(requests: &[Request], rollouts: &[Rollout], policy: &Policy) -> Result<f64> {
    let sequence = |(request, rollout): (&Request, &Rollout)| Sequence {
        tokens: [request.prompt, &rollout.tokens].concat(),
        prompt: request.prompt.len(),
    };
    let sequences: Vec<Sequence> = requests.iter().zip(rollouts).take(COMPARED).map(sequence).collect();
    let batch = PackedBatch::new(sequences.iter().map(|s| (s.tokens.as_slice(), s.prompt)));
    let trained = policy.model.detached().scores(&batch, 1.0)?.log_probs.to_vec1::<f32>()?;
    let sampled = rollouts.iter().take(COMPARED).flat_map(|r| &r.log_probs);
    let total: f64 = trained.iter().zip(sampled).map(|(t, s)| f64::from((t - s).abs())).sum();
    Ok(total / trained.len() as f64)
}

/// One update by the log-probs of the `new_tokens` of each row: forward, backward, AdamW.
///
/// Also returns the loss before each update.
fn train(args: &BenchArgs, policy: &Policy) -> Result<(Vec<f64>, Vec<f64>)> {
    let length = args.prompt_tokens + args.new_tokens;
    let rows = random_rows(args, length, policy.model.config().vocab_size);
    let sequences: Vec<Sequence> =
        rows.into_iter().map(|tokens| Sequence { tokens, prompt: args.prompt_tokens }).collect();
    let passes = update::micro_batches(&vec![length; args.batch], args.micro_batch_tokens);
    let pass = Pass { temperature: 1.0, recompute: None };
    let scale = -1.0 / (args.batch * args.new_tokens) as f64;
    let settings = AdamWSettings { narrow_moments: args.moments == Dtype::Bf16, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(policy.model.variables(), settings)?;
    let mut gradients = Gradients::new(policy.model.variables())?;
    let mut losses = Vec::new();
    let seconds = repeat(args.repeats, || {
        let loss = |_, scores: &model::ops::HeadScores| {
            let loss = (scores.log_probs.sum_all()? * scale)?;
            let value = loss.to_scalar::<f32>()?;
            Ok((loss, f64::from(value)))
        };
        let parts = update::gradients(&mut gradients, &policy.model, (&sequences, &passes), pass, loss)?;
        optimizer.step(&gradients, args.learning_rate)?;
        losses.push(parts.iter().sum());
        Ok(())
    })?;
    Ok((seconds, losses))
}

/// Adapters of every projection, with the usual scale of 2.
fn every_projection(rank: usize) -> Lora {
    Lora { rank, alpha: 2.0 * rank as f64, targets: LORA_TARGETS.map(String::from).to_vec() }
}

/// `batch` rows of `length` random ids of the vocabulary; the same ones each time.
fn random_rows(args: &BenchArgs, length: usize, vocab: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, t: usize| (pick::uniform(pick::stream(&[IDS, row as u64]), t) * vocab as f64) as u32;
    (0..args.batch).map(|row| (0..length).map(|t| id(row, t)).collect()).collect()
}

/// Seconds of each of so many repeats; of 0, of the first, which the others do not count.
fn repeat(repeats: Option<usize>, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    // The first fills caches and allocates.
    let first = Instant::now();
    work()?;
    if repeats == Some(0) {
        return Ok(vec![first.elapsed().as_secs_f64()]);
    }
    let started = Instant::now();
    let mut seconds = Vec::new();
    let more = |done: usize| match repeats {
        Some(repeats) => done < repeats,
        None => done < LEAST_REPEATS || (done < MOST_REPEATS && started.elapsed() < PATIENCE),
    };
    while more(seconds.len()) {
        let one = Instant::now();
        work()?;
        seconds.push(one.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// `VmHWM` of Linux's `/proc/self/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn device_name(device: &candle_core::Device) -> &'static str {
    match device {
        candle_core::Device::Cpu => "cpu",
        candle_core::Device::Cuda(_) => "cuda",
        candle_core::Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even_many() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_peak_is_read_from_what_linux_says() {
        let status = "Name:\ttrainer\nVmPeak:\t  300000 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n";
        assert_eq!(peak(status), Some(2 << 20));
        assert_eq!(peak("Name:\ttrainer\n"), None);
    }
}
