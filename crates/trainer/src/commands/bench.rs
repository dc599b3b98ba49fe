//! `trainer bench`: how many tokens a second a policy samples or learns from, and the memory that takes, as JSON.

mod lengths;
mod rollout;
mod timing;
mod train;

use std::path::Path;

use anyhow::{Context, Result};
use model::{Config as Shape, Qwen2, device, init};
use sampler::{Compute, pick};
use serde::Serialize;

use super::ready;
use crate::cli::{BenchArgs, BenchKind};
use crate::commands::{UsageError, print};
use crate::config::{DeviceChoice, Dtype, LORA_TARGETS, Lora};
use crate::policy::{compute_type, open_device};

/// The stream of the random token ids.
const IDS: u64 = 0x6265_6e63;
/// The seed of fresh adapters and of random weights.
const SEED: u64 = 1;
/// What `--model` begins with where weights are random, and the standard deviation that they have: transformers' own.
const RANDOM: &str = "random:";
const RANDOM_STD: f64 = 0.02;

/// What is printed.
#[derive(Serialize)]
struct Figures<'a> {
    bench: &'static str,
    model: String,
    device: DeviceChoice,
    dtype: Dtype,
    threads: usize,
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    lengths: Option<&'a str>,
    /// What `tokens_per_second` counts: the new tokens of a rollout, all tokens of an update but padding.
    tokens: usize,
    repeats: usize,
    /// The median over the repeats.
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    tokens_per_second: f64,
    #[serde(flatten)]
    kind: Kind,
    /// The largest resident set of the process, weights and all, on the host; null where the system does not tell a
    /// process its own (anywhere but on Linux).
    peak_memory_bytes: Option<u64>,
    /// The most memory that tensors took on a CUDA device, weights and all; null elsewhere.
    peak_device_memory_bytes: Option<u64>,
}

/// What one kind of bench has beside the others.
#[derive(Serialize)]
#[serde(untagged)]
enum Kind {
    Rollout(rollout::Figures),
    Train(train::Figures),
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
    let (bench, seconds, tokens, kind) = match args.kind {
        BenchKind::Rollout => {
            let found = rollout::run(args, &model)?;
            ("rollout", found.seconds, found.tokens, Kind::Rollout(found.figures))
        }
        BenchKind::Train => {
            let found = train::run(args, &model)?;
            ("train", found.seconds, found.tokens, Kind::Train(found.figures))
        }
    };
    let median = timing::median(&seconds);
    let figures = Figures {
        bench,
        model: name,
        device: choice_of(model.device()),
        dtype: args.dtype,
        threads: rayon::current_num_threads(),
        batch: args.batch,
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        lengths: args.lengths.as_deref(),
        tokens,
        repeats: seconds.len(),
        seconds: median,
        seconds_min: seconds.iter().copied().fold(f64::INFINITY, f64::min),
        seconds_max: seconds.iter().copied().fold(0.0, f64::max),
        tokens_per_second: tokens as f64 / median,
        kind,
        peak_memory_bytes: timing::peak_memory(),
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
        BenchKind::Train => model.computed_in(training_compute(args)?.into()),
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

/// What the products of an update are computed in.
fn training_compute(args: &BenchArgs) -> Result<Dtype> {
    match args.compute {
        None => Ok(args.dtype),
        Some(Compute::F32) => Ok(Dtype::F32),
        Some(Compute::Bf16) => Ok(Dtype::Bf16),
        Some(Compute::Int8) => Err(UsageError::new("--compute int8: rollouts alone are computed in eight bits").into()),
    }
}

/// New tokens of each response.
fn lengths(args: &BenchArgs) -> Result<Vec<usize>> {
    lengths::lengths(args.lengths.as_deref(), args.batch, args.new_tokens)
}

/// Adapters of every projection, with the usual scale of 2.
fn every_projection(rank: usize) -> Lora {
    Lora { rank, alpha: 2.0 * rank as f64, targets: LORA_TARGETS.map(String::from).to_vec() }
}

/// Rows of random ids of the vocabulary, each as long as asked; the same ones each time, and the beginning of a longer row
/// is the shorter one.
fn random_rows(lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, t: usize| (pick::uniform(pick::stream(&[IDS, row as u64]), t) * vocab as f64) as u32;
    lengths.iter().enumerate().map(|(row, &length)| (0..length).map(|t| id(row, t)).collect()).collect()
}

fn choice_of(device: &candle_core::Device) -> DeviceChoice {
    match device {
        candle_core::Device::Cpu => DeviceChoice::Cpu,
        candle_core::Device::Cuda(_) => DeviceChoice::Cuda,
        candle_core::Device::Metal(_) => DeviceChoice::Metal,
    }
}
