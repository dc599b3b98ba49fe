//! The settings of a training run: every section and key, with its unit and range.

use std::fmt;
use std::path::PathBuf;

use reward::VerifierKind;
use sampler::Compute;
use schedule::{Decay, LearningRate};
use serde::{Deserialize, Serialize, Serializer};
use toml::{Table, Value};

pub use crate::advantage::Advantage;
pub use crate::data::BadRows;
pub use crate::loss::Aggregation;
use crate::optimizer::AdamWSettings;

use super::error::Origin;
use super::value::NONE;

/// The name of the policy that is compiled into the program.
pub const EMBEDDED: &str = "embedded";

/// The projections of a block that LoRA can adapt.
pub const LORA_TARGETS: [&str; 7] = model::lora::TARGETS;

/// All settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The run as a whole.
    pub run: Run,
    /// The policy.
    pub model: Model,
    /// The frozen policy that training is measured against.
    pub reference: Reference,
    /// The problems.
    pub data: Data,
    /// The response budget `L(t)` over the steps.
    pub schedule: Schedule,
    /// How rollouts are drawn.
    pub sampler: Sampler,
    /// How responses are scored.
    pub reward: Reward,
    /// What is minimised.
    pub loss: Loss,
    /// How the weights move.
    pub optimizer: Optimizer,
    /// The measurements on held-out problems.
    pub evaluate: Evaluate,
    /// What is kept on disk.
    pub checkpoint: Checkpoint,
}

/// `[run]`: the run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The seed of everything random; at most `i64::MAX`, the largest that TOML can hold.
    pub seed: u64,
    /// The run folder; none makes `runs/KIND-TIME-PROCESS`.
    #[serde(serialize_with = "or_none")]
    pub out: Option<PathBuf>,
    /// Where tensors live.
    pub device: DeviceChoice,
    /// CPU threads, at least 1; none takes every core.
    #[serde(serialize_with = "or_none")]
    pub threads: Option<usize>,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// CUDA or Metal when this program was built with it and the machine has it, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
    /// The Metal device.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        })
    }
}

/// `[model]`: the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// `embedded`, a folder in Hugging Face layout, or a Hub id `org/name[@revision]`.
    pub path: String,
    /// The type that the policy's matrices are kept in; master weights and moments are f32.
    pub dtype: Dtype,
    /// What the products of training are computed in, on the CPU: in bf16 their inputs are rounded, sums and everything
    /// else are f32. Other devices compute in `dtype`.
    pub compute: Dtype,
    /// Recompute each block in the backward pass instead of keeping its activations; none does so for models well above
    /// the embedded one (64M parameters).
    #[serde(serialize_with = "or_none")]
    pub recompute: Option<bool>,
    /// Tokens, prompts included, that one forward and backward pass takes; more rollouts than that are
    /// accumulated, which changes the memory needed and not the gradient. None plans it from the memory that is free when
    /// the run starts; the plan is written to the run's `config.toml`.
    #[serde(serialize_with = "or_none")]
    pub micro_batch_tokens: Option<usize>,
    /// Train low-rank adapters instead of all weights; none trains all.
    #[serde(serialize_with = "or_none")]
    pub lora: Option<Lora>,
}

/// A type of numbers that a policy's matrices are kept in, or products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory, and twice the speed of products where the CPU multiplies it.
    Bf16,
}

impl From<Dtype> for model::kernels::packed::Compute {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl From<Dtype> for Compute {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// `model.lora`: low-rank adapters `W + (alpha / rank) · B A`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rows of `A` and columns of `B`, at least 1.
    pub rank: usize,
    /// The scale's numerator, above 0.
    pub alpha: f64,
    /// The projections to adapt, out of [`LORA_TARGETS`].
    pub targets: Vec<String>,
}

impl From<&Lora> for model::lora::Settings {
    fn from(lora: &Lora) -> Self {
        Self { rank: lora.rank, alpha: lora.alpha, targets: lora.targets.clone() }
    }
}

/// `[reference]`: the frozen policy that training is measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The weight of the KL penalty, 0 or more; SIRI has none.
    pub kl_beta: f64,
    /// The share of rollouts, 0 to 1, whose KL to the reference is measured; a penalty needs all of them.
    pub track: f64,
}

impl Reference {
    /// Whether the KL to the reference is measured or penalised, so that it is loaded.
    pub fn is_used(&self) -> bool {
        self.kl_beta > 0.0 || self.track > 0.0
    }
}

/// `[data]`: the problems. Each is `countdown` or a `.jsonl` file, or a `.parquet` file in a build with the feature
/// `parquet`; data sets on the Hub have to be downloaded first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The problems to train on.
    pub train: String,
    /// The problems to evaluate on, held out from training.
    pub eval: String,
    /// Problems whose rendered prompt is longer than this many tokens are left out.
    pub max_prompt_tokens: usize,
    /// What becomes of rows of a file that are no problems.
    pub bad_rows: BadRows,
}

/// `[schedule]`: the response budget `L(t)` over the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The shape of `L(t)`; [`schedule::Budget`](::schedule::Budget) has the formulas.
    pub kind: ::schedule::Kind,
    /// Compressions with their expansions, at least 1.
    pub cycles: usize,
    /// Steps a cycle, at least 1.
    pub cycle_steps: usize,
    /// The largest budget in tokens, at least 1. `staged` does not read it.
    pub l_max: usize,
    /// The smallest budget in tokens, 1 to `l_max`. `constant` and `staged` do not read it.
    pub l_min: usize,
    /// For `staged`: `[step, budget]` pairs, each budget holding from its step on; the first step is 0. Empty for
    /// every other kind.
    pub stages: Vec<(usize, usize)>,
    /// The run ends once it has sampled so many rollout tokens, at least 1, which is how schedules are compared at
    /// equal cost; none lets every step run.
    #[serde(serialize_with = "or_none")]
    pub rollout_tokens: Option<u64>,
}

impl Schedule {
    /// The budget of every step.
    ///
    /// # Errors
    /// What [`Config::check`] refuses in this section.
    pub fn budget(&self) -> Result<::schedule::Budget, ::schedule::Error> {
        ::schedule::Budget::new(&self.unchecked())
    }

    /// The section as the schedule takes it, whatever is wrong with it.
    pub fn unchecked(&self) -> ::schedule::Settings {
        ::schedule::Settings {
            kind: self.kind,
            cycles: self.cycles,
            cycle_steps: self.cycle_steps,
            l_max: self.l_max,
            l_min: self.l_min,
            stages: self.stages.iter().map(|&(step, length)| [step, length]).collect(),
        }
    }
}

/// `[sampler]`: how rollouts are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampler {
    /// Problems a step, at least 1.
    pub prompts_per_step: usize,
    /// Rollouts a problem, at least 2, because an advantage compares them.
    pub group_size: usize,
    /// Times that a step samples further problems in the place of groups whose rollouts are all worth the same (dynamic
    /// sampling, DAPO, arXiv 2503.14476); 0 leaves such groups out.
    pub resample_tries: usize,
    /// Divides the logits, above 0.
    pub temperature: f64,
    /// Sample from the fewest tokens that hold this share of the probability, above 0 and up to 1; 1 is off.
    pub top_p: f64,
    /// Sample from this many of the likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Texts that end a response, beside the model's stop tokens; they stay in it, and evaluations have them too.
    pub stop: Vec<String>,
    /// What the products of generation are computed in, on the CPU. In bf16 they take half the time where the CPU
    /// multiplies bf16, in eight bits (`int8`) a quarter, and the log-probs differ from those of training.
    pub compute: Compute,
    /// Rows decoded at once, at least 1; on the CPU at most [those that help](model::decode::enough_rows).
    pub max_rows: usize,
    /// What the key-value cache may take, such as `4GiB`; none lets the sampler take what `max_rows` need, of a GPU's
    /// memory at most what is free.
    #[serde(serialize_with = "or_none")]
    pub cache_memory: Option<String>,
    /// Whether a step of generation on CUDA is captured as one graph a number of rows, or its kernels are launched one by
    /// one.
    pub cuda_graphs: bool,
}

impl Sampler {
    /// `cache_memory` in bytes; `None` when it is not set.
    pub fn cache_bytes(&self) -> Option<u64> {
        self.cache_memory.as_deref().and_then(bytes)
    }
}

/// A size such as `512MiB`, `4GiB` or `4 GB` in bytes; `None` if it is not one or is zero.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let total = number.parse::<f64>().ok()? * scale as f64;
    (total >= 1.0 && total < u64::MAX as f64).then_some(total as u64)
}

/// `[reward]`: how responses are scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// `auto` takes what the data say; `math`, `countdown` and `exact` overrule them.
    pub verifier: String,
    /// What becomes of responses that the budget cut off.
    pub overlong: Overlong,
    /// Cut and re-grade the outliers in length of groups that are all correct (DOT, arXiv 2601.03969).
    pub outlier_truncation: bool,
}

impl Reward {
    /// The verifier that overrules what the data say; `None` for `auto`.
    pub fn verifier_kind(&self) -> Option<VerifierKind> {
        self.verifier.parse().ok()
    }
}

/// What becomes of responses that the budget cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// They are graded as they stand and stay in the loss: SIRI's signal.
    None,
    /// They are left out of the loss (overlong filtering, DAPO, arXiv 2503.14476).
    Filter,
    /// The reward falls off linearly towards the budget (soft overlong punishment, DAPO).
    Soft,
}

/// `[loss]`: what is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The probability ratio is clipped below at `1 - clip_low`, 0 to 1.
    pub clip_low: f64,
    /// The probability ratio is clipped above at `1 + clip_high`, 0 or more.
    pub clip_high: f64,
    /// For negative advantages the ratio is also bounded by this, above 1 (dual-clip PPO, arXiv 1912.09729); none is
    /// off.
    #[serde(serialize_with = "or_none")]
    pub dual_clip: Option<f64>,
    /// What the loss is a mean over.
    pub aggregation: Aggregation,
    /// How rewards become advantages.
    pub advantage: Advantage,
    /// The weight of the entropy that is rewarded, 0 or more.
    pub entropy_bonus: f64,
    /// Truncated importance sampling: the ratio between trainer and sampler is cut at this, above 0; none is off.
    #[serde(serialize_with = "or_none")]
    pub importance_cap: Option<f64>,
}

/// `[optimizer]`: AdamW, and how often it steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// The step size after warm-up, above 0.
    pub learning_rate: f64,
    /// Updates over which the step size rises linearly; 0 is none.
    pub warmup_steps: usize,
    /// What the step size does after its warm-up, until the end of the run.
    pub decay: Decay,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
    /// Decay of the first moment, 0 up to but not 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 up to but not 1.
    pub beta2: f64,
    /// What gradient sums and moments are kept in; bf16 halves their memory, rounded by chance. On the CPU.
    pub state: Dtype,
    /// Added to the root of the second moment, above 0.
    pub epsilon: f64,
    /// The gradient is scaled down to this norm, above 0.
    pub max_grad_norm: f64,
    /// Updates that each step's rollouts are split into, 1 to `sampler.prompts_per_step`.
    pub updates_per_step: usize,
    /// An update whose loss or gradient is infinite or not a number is skipped; the run stops, with the evidence saved,
    /// when it has skipped so many in a row, at least 1.
    pub skip_limit: usize,
}

impl Optimizer {
    /// As the optimiser takes them.
    pub fn adamw(&self) -> AdamWSettings {
        AdamWSettings {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            narrow: self.state == Dtype::Bf16,
        }
    }

    /// The learning rate of every update of a run of `steps` steps.
    ///
    /// # Errors
    /// The rate decays, but the warm-up leaves no update for it.
    pub fn rate(&self, steps: usize) -> Result<LearningRate, ::schedule::Error> {
        let updates = steps.saturating_mul(self.updates_per_step);
        LearningRate::new(self.learning_rate, self.warmup_steps)?.with_decay(self.decay, updates)
    }
}

/// `[evaluate]`: the measurements on held-out problems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    /// Steps between evaluations; 0 evaluates only at the start, each cycle's low and each cycle's high.
    pub every: usize,
    /// Held-out problems, at least 1; fewer if the data have fewer.
    pub problems: usize,
    /// Responses a problem, at least 1.
    pub samples: usize,
    /// Divides the logits, 0 or more; 0 takes the likeliest token.
    pub temperature: f64,
    /// As `sampler.top_p`.
    pub top_p: f64,
    /// Tokens a response may have; none takes the largest budget of the schedule.
    #[serde(serialize_with = "or_none")]
    pub max_tokens: Option<usize>,
}

/// `[checkpoint]`: what is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps between numbered checkpoints; 0 keeps only each cycle's low and high and the last step.
    pub every: usize,
    /// Numbered checkpoints kept, at least 1; older ones are deleted, named ones never.
    pub keep: usize,
    /// Write checkpoints while the run goes on, from a copy of what is trained; none does so where there is memory for the
    /// copy.
    #[serde(serialize_with = "or_none")]
    pub background: Option<bool>,
}

/// The flags that stand for a key: they win over files and `--set`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--cycles`: `schedule.cycles`.
    pub cycles: Option<usize>,
    /// `--seed`: `run.seed`.
    pub seed: Option<u64>,
    /// `--out`: `run.out`.
    pub out: Option<PathBuf>,
    /// `--device`: `run.device`.
    pub device: Option<DeviceChoice>,
}

impl Overrides {
    pub(super) fn layers(&self) -> impl Iterator<Item = (Table, Origin)> {
        // A number beyond i64, which TOML cannot hold, becomes a float and is refused as not whole.
        let whole = |number: u64| i64::try_from(number).map_or(Value::Float(number as f64), Value::Integer);
        let text = |text: String| Value::String(text);
        let layer = |section: &str, key: &str, value: Option<Value>, flag| {
            let inner = Table::from_iter([(key.to_string(), value?)]);
            Some((Table::from_iter([(section.to_string(), Value::Table(inner))]), Origin::Flag(flag)))
        };
        [
            layer("schedule", "cycles", self.cycles.map(|cycles| whole(cycles as u64)), "--cycles"),
            layer("run", "seed", self.seed.map(whole), "--seed"),
            layer("run", "out", self.out.as_ref().map(|out| text(out.to_string_lossy().into_owned())), "--out"),
            layer("run", "device", self.device.map(|device| text(device.to_string())), "--device"),
        ]
        .into_iter()
        .flatten()
    }
}

/// Writes an unset key as `"none"`, so that a written file says all that it resolved to.
pub(super) fn or_none<T: Serialize, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(NONE),
    }
}
