//! What the scheduler asks of a device: blocks for a cache, and steps that end in sampled tokens.

use crate::engine::Result;
use crate::pick::{Sampling, pick};
use model::Config;
use model::cache::{Host, Store};
use model::decode::{Decoder, Span, Workspace};

/// A row's part of a step.
pub type SpanOf<'a, B> = Span<'a, <<B as Backend>::Store as Store>::Payload>;

/// The tokens that one row drew, with their log-probs; `None` for a row that wanted none.
pub type Drawn = Option<Vec<(u32, f32)>>;

/// A model's weights on a device, and how they take a step there.
///
/// A row's tokens have to depend on its own span, cache and draws alone: then nothing that the scheduler does changes what
/// is sampled.
pub trait Backend {
    /// Where its cache is.
    type Store: Store;

    /// The model's shape.
    fn config(&self) -> &Config;

    /// Rows at a time from which on a token does not become cheaper; none where every row helps.
    fn enough_rows(&self) -> Option<usize> {
        None
    }

    /// Bytes of one block of the cache.
    fn block_bytes(&self) -> usize;

    /// Bytes that a cache may take beside what is on the device already and what steps of so many rows take; `None` where
    /// only the limit counts.
    ///
    /// # Errors
    /// When the device does not tell.
    fn room(&self, max_rows: usize) -> Result<Option<u64>>;

    /// Bytes of this device's memory that a cache holds now, beyond those that count in [`Backend::room`].
    fn held(&self, store: &Self::Store) -> u64;

    /// Whether a cache of the last call can serve for so many blocks.
    fn fits(&self, store: &Self::Store, blocks: usize) -> bool;

    /// A cache of at most so many blocks.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn store(&self, blocks: usize) -> Result<Self::Store>;

    /// Feeds the spans. Of row `i` one token is drawn at each of `draws[i]`, uniform in `[0, 1)`, all from the logits behind
    /// its last token, if its span wants those. What was drawn comes back in the order of the rows.
    ///
    /// # Errors
    /// When a span cannot be fed, or the device fails.
    fn step(
        &mut self,
        store: &mut Self::Store,
        spans: Vec<SpanOf<Self>>,
        sampling: &Sampling,
        draws: &[Vec<f64>],
    ) -> Result<Vec<Drawn>>;
}

/// The CPU: weights packed for it, blocks in its memory.
pub struct Packed {
    decoder: Decoder,
    workspace: Workspace,
}

impl Packed {
    pub fn new(decoder: Decoder, workspace: Workspace) -> Self {
        Self { decoder, workspace }
    }

    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// What steps compute in, for the next decoder.
    pub fn into_workspace(self) -> Workspace {
        self.workspace
    }
}

impl Backend for Packed {
    type Store = Host;

    fn config(&self) -> &Config {
        self.decoder.config()
    }

    fn enough_rows(&self) -> Option<usize> {
        self.decoder.enough_rows()
    }

    fn block_bytes(&self) -> usize {
        Host::block_bytes(self.decoder.config())
    }

    fn room(&self, _max_rows: usize) -> Result<Option<u64>> {
        Ok(None)
    }

    fn held(&self, _store: &Host) -> u64 {
        0
    }

    fn fits(&self, _store: &Host, _blocks: usize) -> bool {
        true
    }

    fn store(&self, _blocks: usize) -> Result<Host> {
        Ok(Host::new(self.decoder.config()))
    }

    fn step(
        &mut self,
        _store: &mut Host,
        spans: Vec<Span>,
        sampling: &Sampling,
        draws: &[Vec<f64>],
    ) -> Result<Vec<Drawn>> {
        let pick = |i: usize, logits: &mut [f32]| pick_all(logits, sampling, &draws[i]);
        Ok(self.decoder.step(&mut self.workspace, spans, pick)?)
    }
}

/// One token for each draw from the same logits.
fn pick_all(logits: &mut [f32], sampling: &Sampling, draws: &[f64]) -> Vec<(u32, f32)> {
    let Some((last, others)) = draws.split_last() else { return Vec::new() };
    let mut picked: Vec<(u32, f32)> = others.iter().map(|&u| pick(&mut logits.to_vec(), sampling, u)).collect();
    picked.push(pick(logits, sampling, *last));
    picked
}
