//! The supervised warm start: next-token cross-entropy on over-thinking traces, which makes the embedded policy.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use model::backward::Pass;
use model::{Config as Shape, Files, Qwen2, Source, Text, embedded, init, weights};
use sampler::{Engine, Limits, Local, Sampling};
use schedule::{Decay, LearningRate};
use std::path::Path;

use crate::commands::note;
use crate::config::{EMBEDDED_ARCHITECTURE, SftConfig};
use crate::data::countdown::{self, Split};
use crate::data::rng::Rng;
use crate::data::{self, traces};
use crate::evaluate::{self, Label};
use crate::metrics::{EvalRow, plus_minus};
use crate::optimizer::{AdamW, AdamWSettings, Gradients};
use crate::policy::open_device;
use crate::update::{self, Sequence};

/// Tokens of one micro-batch: small enough to stay near the cache, large enough for the products.
const MICRO_BATCH_TOKENS: usize = 2048;

/// Trains a policy from random weights and writes it in Hugging Face layout.
///
/// # Errors
/// When a setting, the device or the output folder is unusable.
pub fn run(config: SftConfig) -> Result<()> {
    let device = open_device(config.run.device)?;
    let files = architecture(&config.model.path)?;
    let text = Text::new(&files)?;
    let shape = Shape::parse(&files.config, &files.path("config.json"))?;
    let model = init::random(shape, config.model.init_std, config.run.seed, DType::F32, &device)?;
    train(&config, &model, &text)?;
    let out = config.run.out.clone().map_or_else(|| crate::run::folder_by_time("sft"), Ok)?;
    weights::save_folder(&model, &files, &out, DType::BF16)?;
    let row = measure(&config, &out, &text)?;
    note(&format!(
        "{} problems, at most {} tokens: {:.1}{}% right, {:.0}{} tokens, {:.1}% cut off, {:.1} \"wait\" each",
        row.problems,
        config.evaluate.max_tokens,
        100.0 * row.pass_at_1,
        plus_minus(row.pass_at_1_se.map(|error| 100.0 * error), 1),
        row.response_tokens,
        plus_minus(row.response_tokens_se, 0),
        100.0 * row.truncated,
        row.markers_per_response.unwrap_or(0.0),
    ));
    note(&format!("the policy is in {}", out.display()));
    Ok(())
}

fn architecture(path: &str) -> Result<Files> {
    if path == EMBEDDED_ARCHITECTURE {
        return Ok(embedded::files());
    }
    Files::open(&Source::Folder(path.into())).with_context(|| format!("model.path = {path}"))
}

fn train(config: &SftConfig, model: &Qwen2, text: &Text) -> Result<()> {
    let train = &config.train;
    let steps = train.tokens.div_ceil(train.batch_tokens);
    // A cosine that ends at a share of the peak is a cosine to zero on top of a constant.
    let part = |share: f64| LearningRate::new(train.learning_rate * share, train.warmup_steps);
    let floor = part(train.final_share)?;
    let falling = part(1.0 - train.final_share)?.with_decay(Decay::Cosine, steps)?;
    let settings = AdamWSettings {
        beta1: train.beta1,
        beta2: train.beta2,
        epsilon: train.epsilon,
        weight_decay: train.weight_decay,
        max_grad_norm: train.max_grad_norm,
        narrow: false,
    };
    let mut optimizer = AdamW::new(model.variables(), settings)?;
    let mut gradients = Gradients::new(model.variables())?;
    let bar = progress(steps)?;
    let mut problem = 0;
    for step in 0..steps {
        let batch = batch(config, text, &mut problem)?;
        let scored: usize = batch.iter().map(Sequence::response_len).sum();
        let lengths: Vec<usize> = batch.iter().map(|s| s.tokens.len()).collect();
        let cuts = update::micro_batches(&lengths, MICRO_BATCH_TOKENS);
        let pass = Pass { temperature: 1.0, recompute: None };
        gradients.begin(step as u64)?;
        let losses = update::gradients(&mut gradients, model, (&batch, &cuts), pass, |_, scores| {
            let loss = (scores.log_probs.sum_all()? * (-1.0 / scored as f64))?;
            let value = loss.to_scalar::<f32>()?;
            Ok((loss, f64::from(value)))
        })?;
        let report = optimizer.step(&gradients, floor.at(step) + falling.at(step))?;
        let loss: f64 = losses.iter().sum();
        bar.set_message(format!("loss {loss:.4}  gradient {:.2}", report.grad_norm));
        bar.inc(1);
        if bar.is_hidden() && (step + 1) % 50 == 0 {
            note(&format!("update {}/{steps}  loss {loss:.4}", step + 1));
        }
    }
    bar.finish();
    Ok(())
}

/// The next traces, cut at `max_length`, until `batch_tokens` are full. `problem` counts the problems used.
fn batch(config: &SftConfig, text: &Text, problem: &mut u64) -> Result<Vec<Sequence>> {
    let (mut sequences, mut tokens) = (Vec::new(), 0);
    while tokens < config.train.batch_tokens {
        let sequence = trace(config, text, *problem)?;
        *problem += 1;
        tokens += sequence.tokens.len();
        sequences.push(sequence);
    }
    Ok(sequences)
}

/// The stream of traces, apart from that of problems.
const TRACES: u64 = 0x7472_6163;

fn trace(config: &SftConfig, text: &Text, index: u64) -> Result<Sequence> {
    let problem = countdown::problem(config.run.seed, index, Split::Train);
    let mut rng = Rng::keyed(&[config.run.seed, TRACES, index]);
    let response = traces::trace(&problem, &config.data.traces, &mut rng);
    let mut tokens = text.prompt(&problem.prompt())?;
    let prompt = tokens.len();
    tokens.extend(text.encode(&response)?);
    tokens.extend(text.stop_tokens().first());
    tokens.truncate(config.train.max_length);
    Ok(Sequence { tokens, prompt })
}

/// Held-out figures of the policy as written, in bf16: what the user of the folder gets.
fn measure(config: &SftConfig, out: &Path, text: &Text) -> Result<EvalRow> {
    let written = Files::open(&Source::Folder(out.into()))?;
    let model = weights::load(&written, DType::F32, &Device::Cpu)?;
    let mut engine = Local::new(Limits { max_rows: 192, cache_bytes: None }, sampler::Compute::F32);
    engine.load_weights(&model)?;
    let source = data::Source::Countdown(None);
    let problems =
        data::load(&source, data::Use::Evaluate, &data::Reading { seed: config.run.seed, ..Default::default() })?
            .problems;
    let problems: Vec<_> = problems.first(config.evaluate.problems).into_iter().map(|(_, p)| p).collect();
    let settings = evaluate::Settings {
        samples: 1,
        max_tokens: config.evaluate.max_tokens,
        sampling: Sampling::at(1.0, text.stop_tokens()),
        seed: config.run.seed,
        extraction: crate::policy::extraction(text)?,
    };
    let samples = evaluate::sample(&mut engine, text, &problems, &settings, &mut |_| sampler::Control::Continue)?;
    let label = Label { step: 0, name: "start", data: "countdown", tokens_total: 0 };
    Ok(evaluate::summarise(&samples, &settings, label))
}

fn progress(steps: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {elapsed} of {duration}")?;
    Ok(ProgressBar::new(steps as u64).with_style(style))
}
