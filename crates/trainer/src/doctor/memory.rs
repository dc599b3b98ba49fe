//! How much memory a run needs, estimated from the model's shape and the settings before anything is loaded.

use model::config::Config as Shape;
use model::decode::enough_rows;
use model::lora;
use model::ops::head_workspace_bytes;

use sampler::Compute;

use super::machine::{self, Memory};
use crate::config::{Config, DeviceChoice, Dtype};

/// Bytes of an f32 and of a bf16.
const F32: u64 = 4;
const BF16: u64 = 2;
/// Parameters above which a reference copy is bf16.
pub const NARROW_REFERENCE_ABOVE: usize = model::backward::RECOMPUTE_ABOVE;
/// What the program itself takes: code, tokenizer, thread stacks, what the allocator keeps.
pub(super) const PROGRAM: u64 = 100 << 20;
/// What a GPU's driver and its libraries take before the first tensor: the context, kernels, workspace of products.
const CONTEXT: u64 = 768 << 20;
/// Logits that a GPU's head holds at a time.
const GPU_LOGITS: u64 = 1 << 26;
/// Tokens of a step of generation on a GPU, beside one of each row that decodes: long prompts are fed by parts.
const STEP_TOKENS: usize = 2048;
/// A planned micro-batch is at most so many tokens, unless a sequence is longer: more are no faster.
const LARGEST_PLAN: usize = 16384;

/// When memory is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All the time. On the CPU everything is, because rollouts and updates keep their buffers.
    Always,
    /// While tokens are sampled; on a GPU updates have it afterwards.
    Rollouts,
    /// While the policy is updated; on a GPU rollouts have it afterwards.
    Updates,
}

/// One thing that takes memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// When it is needed.
    pub phase: Phase,
    /// How many bytes it takes.
    pub bytes: u64,
    /// How that was found.
    pub formula: String,
}

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The parts.
    pub items: Vec<Item>,
}

impl Need {
    /// What is needed at once, in bytes: what is needed always, and the larger of what rollouts and updates need.
    pub fn total(&self) -> u64 {
        let of = |phase: Phase| {
            let items = self.items.iter().filter(|item| item.phase == phase);
            items.fold(0u64, |sum, item| sum.saturating_add(item.bytes))
        };
        of(Phase::Always).saturating_add(of(Phase::Rollouts).max(of(Phase::Updates)))
    }

    /// The item of this name, in bytes; 0 where there is none.
    pub fn bytes(&self, name: &str) -> u64 {
        self.items.iter().find(|item| item.name == name).map_or(0, |item| item.bytes)
    }

    fn add(&mut self, name: &'static str, phase: Phase, bytes: u64, formula: impl Into<String>) {
        self.items.push(Item { name, phase, bytes, formula: formula.into() });
    }
}

/// What decides the memory of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The model's shape.
    pub shape: &'a Shape,
    /// The type that its matrices are kept in.
    pub dtype: Dtype,
    /// Adapters, where they are what is trained.
    pub lora: Option<&'a lora::Settings>,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// `model.recompute`.
    pub recompute: Option<bool>,
    /// Where it is, [resolved](super::machine::resolve).
    pub device: DeviceChoice,
    /// `optimizer.state`.
    pub state: Dtype,
}

/// Whether tensors are in a GPU's memory: activations and cache are in the type of the weights there, and rollouts and
/// updates hand memory to each other.
fn on_gpu(device: DeviceChoice) -> bool {
    matches!(device, DeviceChoice::Cuda | DeviceChoice::Metal)
}

/// The phase of what rollouts or updates alone need on a GPU.
fn during(phase: Phase, device: DeviceChoice) -> Phase {
    if on_gpu(device) { phase } else { Phase::Always }
}

/// Estimates what forward, backward and AdamW take.
///
/// With `P` parameters of `w` bytes, of which `T` are trained (all, or the adapters), `h` hidden, `f` feed-forward, `q` and
/// `k` the widths of queries and of keys, `n` blocks, `V` tokens of the vocabulary, `m` tokens of a micro-batch, `s` the
/// smaller of 4096 and `V`:
///
/// | part | bytes on the CPU | on a GPU |
/// | --- | --- | --- |
/// | program, context | 100 MiB | 768 MiB |
/// | weights | `w P` | `w P` |
/// | gradients | `4 T`, or `2 T` in bf16 | `4 T` |
/// | AdamW | `8 T`, or `4 T` with moments in bf16; `4 T` more for the master copy of bf16 weights | the same, moments in f32 |
/// | activations | `4 m ((n + 1) h + B)` with recomputation, else `4 m (n (4h + 3q + 3k + 3f) + B)`; `B = 6h + 4q + 4k + 5f + 2a` is a block on its way back, `a` the outputs of its adapted projections | the same times `w / 4` |
/// | head | `4 (2048 s + 2 s h + 3072 h)`: logits of a strip of the vocabulary, the strip, the hidden states | `(4 + w) min(2^26, m V)`: logits and their gradient |
/// | widening | `8 f h`: one matrix packed, and its gradient's other side | |
/// | gradients on their way | | of the embedding or a block, `w max(h V, T / n)` |
pub fn update(of: &Update) -> Need {
    let shape = of.shape;
    let gpu = on_gpu(of.device);
    let phase = during(Phase::Updates, of.device);
    let parameters = shape.parameters() as u64;
    let (width, name) = match of.dtype {
        Dtype::F32 => (F32, "4"),
        Dtype::Bf16 => (BF16, "2 (bf16)"),
    };
    let trained = of.lora.map_or(parameters, |lora| lora.parameters(shape) as u64);
    let mut need = Need { items: Vec::new() };
    if gpu {
        need.add("context", Phase::Always, CONTEXT, "driver, kernels, workspace of products");
    } else {
        need.add("program", Phase::Always, PROGRAM, "code, tokenizer, stacks");
    }
    need.add("weights", Phase::Always, width * parameters, format!("{} parameters x {name}", thousands(parameters)));
    let state = if of.state == Dtype::Bf16 { BF16 } else { F32 };
    need.add("gradients", Phase::Always, state * trained, format!("{} trained x {state}", thousands(trained)));
    let master = of.dtype == Dtype::Bf16 && of.lora.is_none();
    let moments = 2 * state;
    let per_number = if master { moments + F32 } else { moments };
    let copies = if master { "moments and master copy" } else { "moments" };
    need.add("AdamW", Phase::Always, per_number * trained, format!("trained x {per_number} ({copies})"));
    let recompute = of.recompute.unwrap_or(shape.parameters() > model::backward::RECOMPUTE_ABOVE);
    let tokens = of.tokens as u64;
    let adapted = of.lora.map_or(0, |lora| 2 * lora.outputs(shape)) as u64;
    let computed = if gpu { width } else { F32 };
    need.add("activations", phase, tokens.saturating_mul(computed * (activations(shape, recompute) + adapted)), {
        let how = if recompute { "blocks recomputed" } else { "blocks kept" };
        format!("{} tokens of a micro-batch, {how}", thousands(tokens))
    });
    let (h, f, vocab) = (shape.hidden_size as u64, shape.intermediate_size as u64, shape.vocab_size as u64);
    let head = if gpu {
        (F32 + width) * GPU_LOGITS.min(tokens.saturating_mul(vocab))
    } else {
        head_workspace_bytes(shape.vocab_size, shape.hidden_size) as u64
    };
    need.add("head", phase, head, "logits of a strip of the vocabulary, and what they are made of");
    if gpu {
        let part = if of.lora.is_none() { h * vocab } else { 0 }.max(trained / shape.num_layers as u64);
        need.add("on their way", phase, width * part, "gradients of the embedding or a block before they are summed");
    } else {
        need.add("widening", phase, 2 * F32 * f * h, "one matrix packed, and what its gradient is made of");
    }
    need
}

/// Numbers that exist for one token at the height of the backward pass.
fn activations(shape: &Shape, recompute: bool) -> u64 {
    let (h, f, n) = (shape.hidden_size, shape.intermediate_size, shape.num_layers);
    let (q, k) = shape.widths();
    let back = 6 * h + 4 * q + 4 * k + 5 * f;
    let kept = if recompute { (n + 1) * h } else { n * (4 * h + 3 * q + 3 * k + 3 * f) };
    (kept + back) as u64
}

/// Estimates what a run on `device` takes: an update, and beside it
///
/// | part | bytes on the CPU | on a GPU |
/// | --- | --- | --- |
/// | sampler's packed copy | `w P`; in eight bits `P + V h` | none: it samples from the trainer's weights |
/// | reference, if the KL is measured | none with adapters; `2 P` above 64M parameters, else `w P` | the same |
/// | logits of a step of generation | `4 · rows · V` | the same |
/// | a step of generation | | `w (2048 + rows) (4h + 2q + 2k + 3f)` |
/// | key-value cache | `4 · rows · (prompt + largest budget) · 2 n k`, at most `sampler.cache_memory` | the same times `w / 4` |
pub fn estimate(shape: &Shape, config: &Config, device: DeviceChoice) -> Need {
    let lora = config.model.lora.as_ref().map(lora::Settings::from);
    let mut need = update(&Update {
        shape,
        dtype: config.model.dtype,
        lora: lora.as_ref(),
        tokens: micro_batch(config),
        recompute: config.model.recompute,
        device,
        state: config.optimizer.state,
    });
    let gpu = on_gpu(device);
    let phase = during(Phase::Rollouts, device);
    let parameters = shape.parameters() as u64;
    let width = if config.model.dtype == Dtype::Bf16 { BF16 } else { F32 };
    let mut rows = rows(config);
    if !gpu {
        let (bytes, formula) = match config.sampler.compute {
            // The head stays in bf16.
            Compute::Int8 => {
                let head = (shape.vocab_size * shape.hidden_size) as u64;
                (parameters + head, "a byte a parameter, two in the head, packed for generation".to_string())
            }
            compute => {
                let packed = if compute == Compute::Bf16 { BF16 } else { width };
                (packed * parameters, format!("parameters x {packed}, packed for generation"))
            }
        };
        need.add("sampler's copy", Phase::Always, bytes, formula);
        let threads = config.run.threads.unwrap_or_else(machine::threads);
        let weights = usize::try_from(bytes).unwrap_or(usize::MAX);
        rows = rows.min(enough_rows(weights, threads).map_or(u64::MAX, |rows| rows as u64));
    }
    if config.reference.is_used() && lora.is_none() {
        let width = if shape.parameters() > NARROW_REFERENCE_ABOVE { BF16 } else { width };
        let formula = format!("parameters x {width} (reference.track above 0)");
        need.add("reference", Phase::Always, width * parameters, formula);
    }
    let (bytes, formula) = cache(shape, config, rows, if gpu { width } else { F32 });
    need.add("key-value cache", phase, bytes, formula);
    let logits = F32 * rows * shape.vocab_size as u64;
    need.add("logits", phase, logits, format!("of {rows} rows"));
    if gpu {
        let (q, k) = shape.widths();
        let each = (4 * shape.hidden_size + 2 * q + 2 * k + 3 * shape.intermediate_size) as u64;
        let tokens = STEP_TOKENS as u64 + rows;
        need.add("a step", phase, width * tokens * each, format!("of generation: {} tokens", thousands(tokens)));
    }
    need
}

/// The tokens of a micro-batch that fit into what is `available`, with a fifth to spare: the longest sequence, doubled as
/// often as that goes.
pub fn plan(shape: &Shape, config: &Config, device: DeviceChoice, available: u64) -> usize {
    let mut config = config.clone();
    let mut tokens = longest_sequence(&config);
    loop {
        config.model.micro_batch_tokens = Some(tokens.saturating_mul(2));
        let fits = estimate(shape, &config, device).total() <= available / 5 * 4;
        if !fits || tokens.saturating_mul(2) > LARGEST_PLAN {
            return tokens;
        }
        tokens *= 2;
    }
}

/// The settings with the size of a micro-batch filled in, where they leave it to the memory that is `there`.
pub fn planned(shape: &Shape, config: &Config, device: DeviceChoice, there: Option<Memory>) -> Config {
    let mut config = config.clone();
    if let (None, Some(there)) = (config.model.micro_batch_tokens, there) {
        config.model.micro_batch_tokens = Some(plan(shape, &config, device, there.available));
    }
    config
}

/// Tokens of a micro-batch: one sequence at least, however long.
fn micro_batch(config: &Config) -> usize {
    config.model.micro_batch_tokens.unwrap_or(0).max(longest_sequence(config))
}

/// Tokens of the longest prompt with the longest response, in training or in evaluation.
pub fn longest_sequence(config: &Config) -> usize {
    let budget = config.schedule.budget().map_or(config.schedule.l_max, |budget| budget.largest());
    config.data.max_prompt_tokens.saturating_add(budget.max(config.evaluate.max_tokens.unwrap_or(0)))
}

/// Rows that may be generated at once, in a step or in an evaluation.
fn rows(config: &Config) -> u64 {
    let (sampler, evaluate) = (&config.sampler, &config.evaluate);
    let step = sampler.prompts_per_step.saturating_mul(sampler.group_size);
    let evaluation = evaluate.problems.saturating_mul(evaluate.samples);
    sampler.max_rows.min(step.max(evaluation)) as u64
}

/// Of so many rows, of numbers of `width` bytes.
fn cache(shape: &Shape, config: &Config, rows: u64, width: u64) -> (u64, String) {
    let sampler = &config.sampler;
    let length = longest_sequence(config) as u64;
    let wanted = rows.saturating_mul(length).saturating_mul(width * shape.cache_per_token() as u64);
    match sampler.cache_bytes() {
        Some(limit) if limit < wanted => (limit, format!("sampler.cache_memory; {} would fill it all", show(wanted))),
        _ => (wanted, format!("{rows} rows of {} tokens", thousands(length))),
    }
}

/// Bytes as a person reads them: `3.2 GiB`.
pub fn show(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (1..units.len()).take_while(|&power| bytes >= 1 << (10 * power)).count();
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    if power == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[power]) }
}

/// A count with its thousands apart: `1,777,088,000`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
