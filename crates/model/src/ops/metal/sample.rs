//! Launches of drawing tokens (`sample.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use crate::ops::sample::Distribution;
use candle_core::{Result, bail};
use std::sync::Arc;

/// Threads of a group.
const THREADS: usize = 256;

/// Tokens of the largest vocabulary.
pub(crate) const LARGEST: usize = 1 << 19;

/// What was drawn.
pub struct Drawn<M> {
    /// `[draws]`, u32.
    pub tokens: Arc<M>,
    /// Log-probabilities under the distribution that was drawn from, `[draws]`, f32.
    pub log_probs: Arc<M>,
}

/// A number of `[0, 1)` as the kernel takes it: the largest float that is not above it, which is below 1 as well.
pub fn number(u: f64) -> u32 {
    (((u * f64::from(1 << 24)).floor() / f64::from(1 << 24)) as f32).to_bits()
}

/// Draws a token for each of `numbers`, from the row of `logits: [rows, vocab]` that `rows_of` says.
///
/// # Errors
/// Those of the device, and a vocabulary beyond 2^19 tokens.
pub fn draw<G: Gpu>(
    gpu: &G,
    (logits, scalar, vocab): (View<G::Memory>, Scalar, usize),
    (rows_of, numbers): (&[u32], &[f64]),
    from: Distribution,
) -> Result<Drawn<G::Memory>> {
    if vocab > LARGEST {
        bail!("no Metal kernel draws from a vocabulary of {vocab}; up to {LARGEST} tokens");
    }
    let draws = rows_of.len();
    let (tokens, log_probs) = (gpu.allocate(draws * 4)?, gpu.allocate(draws * 4)?);
    let numbers: Vec<u32> = numbers.iter().map(|&u| number(u)).collect();
    let (rows_of, numbers) = (gpu.upload(rows_of)?, gpu.upload(&numbers)?);
    let inverse = if from.temperature > 0.0 { 1.0 / from.temperature as f32 } else { 0.0 };
    gpu.launch(Launch {
        library: Library::new(Source::Sample, scalar),
        function: "sample",
        arguments: vec![
            Read(logits),
            Read(View::all(&*rows_of)),
            Read(View::all(&*numbers)),
            Write(View::all(&*tokens)),
            Write(View::all(&*log_probs)),
            U32(count(vocab)?),
            F32(inverse),
            U32(count(from.top_k)?),
            F32(from.top_p as f32),
        ],
        groups: [draws, 1, 1],
        threads: THREADS,
    })?;
    Ok(Drawn { tokens, log_probs })
}
