//! One sampled response.

pub use crate::times::Times;

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said a stop token or what an [`crate::Ending`] waits for.
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

/// One sampled response, without its prompt. Two are equal when everything but their [`Times`] is.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Token ids, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the distribution it was drawn from, nats.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// How many times the engine's weights had been loaded when it was sampled.
    pub weight_version: u64,
    /// When that was; zeros where a rollout was not sampled here but read back.
    pub times: Times,
}

impl PartialEq for Rollout {
    fn eq(&self, other: &Self) -> bool {
        let Self { tokens, log_probs, finish, weight_version, times: _ } = other;
        (&self.tokens, &self.log_probs, &self.finish, &self.weight_version)
            == (tokens, log_probs, finish, weight_version)
    }
}

impl Rollout {
    /// Whether the budget cut it off.
    pub fn truncated(&self) -> bool {
        self.finish == Finish::Length
    }
}
