//! One sampled response.

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said a stop token.
    Stop,
    /// The budget was spent.
    Length,
}

impl Finish {
    /// The name that OpenAI-compatible servers use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// One sampled response, without its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Token ids, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the distribution it was drawn from, nats.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// How many times the engine's weights had been loaded when it was sampled.
    pub weight_version: u64,
}

impl Rollout {
    /// Whether the budget cut it off.
    pub fn truncated(&self) -> bool {
        self.finish == Finish::Length
    }
}
