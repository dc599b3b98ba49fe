//! `trainer bench`: how many tokens a second a policy samples or learns from, and the memory that takes, as JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use model::{Config as Shape, PackedBatch, Qwen2, device, init};
use sampler::{Control, Engine, Limits, Local, Request, Rollout, Sampling, pick};
use serde::Serialize;

use super::ready;
use crate::cli::{BenchArgs, BenchKind};
use crate::commands::{UsageError, print};
use crate::config::{DeviceChoice, Dtype, LORA_TARGETS, Lora};
use crate::doctor::memory;
use crate::optimizer::{AdamW, AdamWSettings, Gradients};
use crate::policy::{compute_type, open_device};
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
/// The seed of fresh adapters and of random weights.
const SEED: u64 = 1;
/// What `--model` begins with where weights are random, and the standard deviation that they have: transformers' own.
const RANDOM: &str = "random:";
const RANDOM_STD: f64 = 0.02;

/// What is printed.
#[derive(Serialize)]
struct Figures {
    bench: &'static str,
    model: String,
    device: DeviceChoice,
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
    /// The most memory that tensors took on a CUDA device, weights and all; null elsewhere.
    peak_device_memory_bytes: Option<u64>,
}

/// Measures speed.
pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let (name, model) = load(args)?;
    let config = model.config();
    let length = args.prompt_tokens.saturating_add(args.new_tokens);
    if length > config.max_positions {
        let (p, n, limit) = (args.prompt_tokens, args.new_tokens, config.max_positions);
        let message = format!("--prompt-tokens {p} and --new-tokens {n} are beyond the model's limit of {limit}");
        return Err(UsageError::new(format!("{message}; lower them")).into());
    }
    let (seconds, losses, gap) = match args.kind {
        BenchKind::Rollout => {
            let (seconds, gap) = rollout(args, &model)?;
            (seconds, Vec::new(), Some(gap))
        }
        BenchKind::Train => {
            let (seconds, losses) = train(args, &model)?;
            (seconds, losses, None)
        }
    };
    let predicted = memory::update(&memory::Update {
        shape: config,
        dtype: args.dtype,
        lora: model.lora(),
        tokens: (args.batch * length).min(args.micro_batch_tokens).max(length),
        recompute: None,
        device: choice_of(model.device()),
        moments: args.moments,
    });
    let tokens = args.batch * if args.kind == BenchKind::Rollout { args.new_tokens } else { length };
    let median = median(&seconds);
    let figures = Figures {
        bench: if args.kind == BenchKind::Rollout { "rollout" } else { "train" },
        model: name,
        device: choice_of(model.device()),
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
        peak_device_memory_bytes: device::peak(model.device()),
    };
    print(&format!("{}\n", serde_json::to_string_pretty(&figures)?))
}

/// What `--model` names, with the adapters of `--lora-rank`, and what to call it.
fn load(args: &BenchArgs) -> Result<(String, Qwen2)> {
    let (name, model) = match args.model.strip_prefix(RANDOM) {
        Some(path) => (args.model.clone(), random(args, Path::new(path))?),
        None => {
            let policy = ready::load(&args.model, args.dtype, args.device)?;
            (policy.source.to_string(), policy.model)
        }
    };
    let model = match args.kind {
        BenchKind::Train => model.computed_in(args.compute.unwrap_or(args.dtype).into()),
        BenchKind::Rollout => model,
    };
    match args.lora_rank {
        Some(rank) => Ok((name, model.with_adapters((&every_projection(rank)).into(), SEED)?)),
        None => Ok((name, model)),
    }
}

/// Random weights in the shape that a `config.json`, or one in a folder, describes.
fn random(args: &BenchArgs, path: &Path) -> Result<Qwen2> {
    let device = open_device(args.device)?;
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let text = std::fs::read_to_string(&file)
        .map_err(|error| UsageError::new(format!("--model {}: {}: {error}", args.model, file.display())))?;
    let shape = Shape::parse(&text, &file).map_err(|error| UsageError::new(error.to_string()))?;
    init::random(shape, RANDOM_STD, SEED, compute_type(args.dtype), &device)
        .context("there is no memory for the weights")
}

/// Exactly `new_tokens` tokens for each of `batch` random prompts; prompts are read, no stop token ends a response.
///
/// Also returns the gap between sampled and trained log-probs.
fn rollout(args: &BenchArgs, model: &Qwen2) -> Result<(Vec<f64>, f64)> {
    let prompts = random_rows(args, args.prompt_tokens, model.config().vocab_size);
    let mut engine = Local::new(Limits { max_rows: args.batch, cache_bytes: None }, args.dtype.into());
    engine.load_weights(model)?;
    let of = |max_new_tokens| -> Vec<Request> {
        prompts.iter().zip(0..).map(|(prompt, stream)| Request { prompt, stream, max_new_tokens }).collect()
    };
    let (requests, warm_up) = (of(args.new_tokens), of(args.warm_up_tokens.unwrap_or(args.new_tokens)));
    let sampling = Sampling::at(1.0, &[]);
    let mut rollouts = Vec::new();
    let seconds = repeat(args.repeats, |counted| {
        let requests = if counted { &requests } else { &warm_up };
        rollouts = engine.generate(requests, &sampling, &mut |_| Control::Continue)?;
        Ok(model.device().synchronize()?)
    })?;
    Ok((seconds, gap(&requests, &rollouts, model)?))
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

/// One update by the log-probs of the `new_tokens` of each row: forward, backward, AdamW.
///
/// Also returns the loss before each update.
fn train(args: &BenchArgs, model: &Qwen2) -> Result<(Vec<f64>, Vec<f64>)> {
    let length = args.prompt_tokens + args.new_tokens;
    let rows = random_rows(args, length, model.config().vocab_size);
    let sequences: Vec<Sequence> =
        rows.into_iter().map(|tokens| Sequence { tokens, prompt: args.prompt_tokens }).collect();
    let passes = update::micro_batches(&vec![length; args.batch], args.micro_batch_tokens);
    let pass = Pass { temperature: 1.0, recompute: None };
    let scale = -1.0 / (args.batch * args.new_tokens) as f64;
    let settings = AdamWSettings { narrow_moments: args.moments == Dtype::Bf16, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(model.variables(), settings)?;
    let mut gradients = Gradients::new(model.variables())?;
    let mut losses = Vec::new();
    let seconds = repeat(args.repeats, |_| {
        let loss = |_, scores: &model::ops::HeadScores| {
            let loss = (scores.log_probs.sum_all()? * scale)?;
            let value = loss.to_scalar::<f32>()?;
            Ok((loss, f64::from(value)))
        };
        let parts = update::gradients(&mut gradients, model, (&sequences, &passes), pass, loss)?;
        optimizer.step(&gradients, args.learning_rate)?;
        losses.push(parts.iter().sum());
        Ok(model.device().synchronize()?)
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

/// Seconds of each of so many repeats; of 0, of the first, which the others do not count. `work` is told whether its time
/// counts, and is done when its device is.
fn repeat(repeats: Option<usize>, mut work: impl FnMut(bool) -> Result<()>) -> Result<Vec<f64>> {
    // The first fills caches and allocates.
    let first = Instant::now();
    work(repeats == Some(0))?;
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
        work(true)?;
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

fn choice_of(device: &candle_core::Device) -> DeviceChoice {
    match device {
        candle_core::Device::Cpu => DeviceChoice::Cpu,
        candle_core::Device::Cuda(_) => DeviceChoice::Cuda,
        candle_core::Device::Metal(_) => DeviceChoice::Metal,
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
