//! Launches over logits: log-probability, entropy and the gradient (`log_prob.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::Result;

/// Threads of a group.
const THREADS: usize = 256;

/// Logits of some of the scored tokens.
pub struct Logits<'a, M> {
    /// `[rows, vocab]`.
    pub logits: View<'a, M>,
    /// Their type.
    pub scalar: Scalar,
    /// Rows of `logits`.
    pub rows: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// The next token of each scored token, `[all]`, u32.
    pub targets: View<'a, M>,
    /// Which scored token the first row is of.
    pub first: usize,
    /// Scored tokens.
    pub all: usize,
    /// Divides the logits.
    pub temperature: f32,
}

impl<M> Logits<'_, M> {
    fn launch<G: Gpu<Memory = M>>(&self, gpu: &G, function: &'static str, other: View<M>) -> Result<()> {
        let (scoring, logits) = (function == "score_rows", self.logits);
        let (logits, other) = if scoring { (Read(logits), Write(other)) } else { (Write(logits), Read(other)) };
        let sizes = [U32(count(self.vocab)?), U32(count(self.first)?), U32(count(self.all)?)];
        gpu.launch(Launch {
            library: Library::new(Source::LogProb, self.scalar),
            function,
            arguments: [logits, Read(self.targets), other]
                .into_iter()
                .chain(sizes)
                .chain([F32(1.0 / self.temperature)])
                .collect(),
            groups: [self.rows, 1, 1],
            threads: THREADS,
        })
    }

    /// Log-probabilities and entropies into their places of `scores: [2, all]`, f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn score<G: Gpu<Memory = M>>(&self, gpu: &G, scores: View<M>) -> Result<()> {
        self.launch(gpu, "score_rows", scores)
    }

    /// The logits become their gradient, for gradients `g: [2, all]` of the scores, f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn differentiate<G: Gpu<Memory = M>>(&self, gpu: &G, g: View<M>) -> Result<()> {
        self.launch(gpu, "logit_gradients", g)
    }
}

/// `sum += part`, `sum: [n]` in f32, `part: [n]` in `scalar`.
///
/// # Errors
/// Those of the device.
pub fn add_to<G: Gpu>(gpu: &G, sum: View<G::Memory>, part: View<G::Memory>, scalar: Scalar, n: usize) -> Result<()> {
    gpu.launch(Launch {
        library: Library::new(Source::LogProb, scalar),
        function: "add_to",
        arguments: vec![Write(sum), Read(part), U32(count(n)?)],
        groups: [n.div_ceil(THREADS), 1, 1],
        threads: THREADS,
    })
}
