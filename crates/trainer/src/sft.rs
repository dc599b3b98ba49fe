//! The supervised warm start: next-token cross-entropy on over-thinking traces, which makes the embedded policy.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use model::backward::Pass;
use model::{Config as Shape, Files, Qwen2, Source, Text, embedded, init, weights};
use sampler::{Engine, Limits, Local, Sampling};
use schedule::{Decay, LearningRate};
use std::path::Path;

use crate::checkpoint;
use crate::commands::{UsageError, note};
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

/// Problems in a row whose prompts leave no room for a response: as many are no accident.
const HOPELESS: usize = 1000;
/// The settings that a policy was made with, in its folder.
const SETTINGS_FILE: &str = "sft.toml";

/// Trains a policy from random weights and writes it to the folder `out` in Hugging Face layout, beside its settings.
///
/// # Errors
/// When a setting, the device or the output folder is unusable.
pub fn run(config: &SftConfig, out: &Path) -> Result<()> {
    let device = open_device(config.run.device)?;
    let files = architecture(&config.model.path)?;
    let text = Text::new(&files)?;
    let shape = Shape::parse(&files.config, &files.path("config.json"))?;
    let model = init::random(shape, config.model.init_std, config.run.seed, DType::F32, &device)?;
    let mut traces = Traces { config, text: &text, problem: 0 };
    let first = traces.batch()?;
    // That nothing can be written, or that there are no traces, is found out before hours are spent.
    begin(out)?;
    train(&mut traces, first, &model)?;
    weights::save_folder(&model, &files, out, DType::BF16)?;
    checkpoint::write_whole(&out.join(SETTINGS_FILE), config.to_toml().as_bytes())?;
    let row = measure(config, out, &text)?;
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

/// Makes the folder and tries it with a file that goes again: an interrupted warm start leaves it empty, and can be
/// repeated.
fn begin(out: &Path) -> Result<()> {
    let file = out.join(SETTINGS_FILE);
    let tried = std::fs::create_dir_all(out)
        .and_then(|()| std::fs::write(&file, ""))
        .and_then(|()| std::fs::remove_file(&file));
    Ok(tried.map_err(|error| UsageError::new(format!("{}: cannot write: {error}", out.display())))?)
}

fn train(traces: &mut Traces, first: Vec<Sequence>, model: &Qwen2) -> Result<()> {
    let train = &traces.config.train;
    let steps = train.updates();
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
    let mut first = Some(first);
    for step in 0..steps {
        let batch = first.take().map_or_else(|| traces.batch(), Ok)?;
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

/// The stream of traces, apart from that of problems.
const TRACES: u64 = 0x7472_6163;

/// The traces that are trained on, one after the other.
struct Traces<'a> {
    config: &'a SftConfig,
    text: &'a Text,
    /// The next problem.
    problem: u64,
}

impl Traces<'_> {
    /// The next traces, cut at `max_length`, until `batch_tokens` are full. A problem whose prompt leaves no room for a
    /// response has nothing to imitate and is left out.
    fn batch(&mut self) -> Result<Vec<Sequence>> {
        let train = &self.config.train;
        let (mut sequences, mut tokens, mut left_out) = (Vec::new(), 0, 0);
        while tokens < train.batch_tokens {
            match self.next()? {
                Some(sequence) => {
                    tokens += sequence.tokens.len();
                    sequences.push(sequence);
                    left_out = 0;
                }
                None => left_out += 1,
            }
            if left_out == HOPELESS {
                let problem = "prompts alone are as long, which leaves nothing of a response; raise it";
                return Err(UsageError::new(format!("train.max_length = {}: {problem}", train.max_length)).into());
            }
        }
        Ok(sequences)
    }

    fn next(&mut self) -> Result<Option<Sequence>> {
        let Self { config, text, problem: index } = *self;
        self.problem += 1;
        let problem = countdown::problem(config.run.seed, index, Split::Train);
        let mut rng = Rng::keyed(&[config.run.seed, TRACES, index]);
        let response = traces::trace(&problem, &config.data.traces, &mut rng);
        let mut tokens = text.prompt(&problem.prompt())?;
        let prompt = tokens.len();
        tokens.extend(text.encode(&response)?);
        tokens.extend(text.stop_tokens().first());
        tokens.truncate(config.train.max_length);
        Ok((tokens.len() > prompt).then_some(Sequence { tokens, prompt }))
    }
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
