//! What any source of rollouts offers the trainer, in this process or on another machine.

use crate::pick::Sampling;
use crate::rollout::{Finish, Rollout};
use model::Qwen2;

/// One response to sample.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Token ids of the prompt; at least one.
    pub prompt: &'a [u32],
    /// The stream of random numbers of this row: the same stream, weights and prompt give the same response.
    pub stream: u64,
    /// The budget `L(t)`: tokens the response may have, thinking and the token that ends it included; at least one.
    pub max_new_tokens: usize,
}

/// A token that was just sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Index of its request.
    pub request: usize,
    /// Its id.
    pub token: u32,
    /// How the response ended, where this is its last token.
    pub finish: Option<Finish>,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Sample on.
    Continue,
    /// Stop now; the call ends with [`Error::Stopped`].
    Stop,
}

impl Control {
    /// Stops if one of both does.
    pub(crate) fn and(self, other: Self) -> Self {
        if self == Self::Stop { self } else { other }
    }
}

/// What can go wrong with sampling.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No weights were loaded.
    #[error("the engine has no weights yet")]
    NoWeights,
    /// A request that cannot be served.
    #[error("{0}")]
    Request(String),
    /// The caller asked to stop.
    #[error("sampling was stopped")]
    Stopped,
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A source of rollouts.
pub trait Engine {
    /// Takes a model's current weights.
    ///
    /// # Errors
    /// When the engine cannot hold or run them.
    fn load_weights(&mut self, model: &Qwen2) -> Result<()>;

    /// Samples every request; rollouts come back in the order of the requests. `watch` is called with each
    /// token as it comes: those of one response in order, those of several in any.
    ///
    /// # Errors
    /// When a request cannot be served, or `watch` asks to stop.
    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(Sampled) -> Control,
    ) -> Result<Vec<Rollout>>;

    /// Gives back what only sampling needs of the device's memory, until the next call of [`Engine::generate`]: training
    /// comes next. On the CPU nothing is given back, since rollouts and updates fit beside each other.
    fn rest(&mut self) {}
}
