//! The settings of `trainer sft`, the supervised warm start that makes a policy worth improving.

use serde::{Deserialize, Serialize};

use super::settings::Run;
use crate::data::traces::TraceStyle;

/// The name of the embedded policy's architecture, without its weights.
pub const EMBEDDED_ARCHITECTURE: &str = "embedded-architecture";

/// All settings of a supervised warm start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftConfig {
    /// The run as a whole; `out` is the folder that the policy is written to.
    pub run: Run,
    /// The architecture, whose weights start random.
    pub model: SftModel,
    /// The traces.
    pub data: SftData,
    /// The optimisation.
    pub train: SftTrain,
    /// The measurement at the end.
    pub evaluate: SftEvaluate,
}

/// `[model]` of a warm start: the architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftModel {
    /// `embedded-architecture`, or a folder with `config.json` and the tokenizer's files.
    pub path: String,
    /// The standard deviation of the normal distribution that weights start from, above 0.
    pub init_std: f64,
}

/// `[data]` of a warm start: what it imitates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftData {
    /// The task whose traces are generated.
    pub kind: SftTask,
    /// How much the traces think.
    pub traces: TraceStyle,
}

/// A task whose traces can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SftTask {
    /// Reach a target from three numbers.
    Countdown,
}

/// `[train]` of a warm start: the optimisation, next-token cross-entropy on the response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftTrain {
    /// Tokens to train on in all, at least `batch_tokens`.
    pub tokens: usize,
    /// Tokens an update, at least `max_length`.
    pub batch_tokens: usize,
    /// Traces longer than this many tokens, prompt included, are cut; a problem whose prompt is as long is left out.
    pub max_length: usize,
    /// The step size after warm-up, above 0.
    pub learning_rate: f64,
    /// Updates over which the step size rises linearly, fewer than there are; 0 is none.
    pub warmup_steps: usize,
    /// The share of `learning_rate`, 0 to 1, that the step size falls to by the last update.
    pub final_share: f64,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
    /// Decay of the first moment, 0 up to but not 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 up to but not 1.
    pub beta2: f64,
    /// Added to the root of the second moment, above 0.
    pub epsilon: f64,
    /// The gradient is scaled down to this norm, above 0.
    pub max_grad_norm: f64,
}

impl SftTrain {
    /// Updates in all.
    pub fn updates(&self) -> usize {
        self.tokens.div_ceil(self.batch_tokens.max(1))
    }
}

/// `[evaluate]` of a warm start: held-out problems after the last update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftEvaluate {
    /// Held-out problems, at least 1.
    pub problems: usize,
    /// Tokens a response may have, at least 1.
    pub max_tokens: usize,
}
