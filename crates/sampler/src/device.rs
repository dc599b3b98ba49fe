//! A device other than the CPU: the trainer's own weights, and a cache of blocks in the device's memory.

use crate::backend::{Backend, Drawn};
use crate::engine::Result;
use crate::pick::Sampling;
use model::decode::Span;
use model::decode_device::{Blocks, DeviceDecoder, Draws, Form};
use model::{Config, Qwen2};

/// Weights on a device, and how they take a step there.
pub struct OnDevice {
    decoder: DeviceDecoder,
}

impl OnDevice {
    /// Over a model's weights, of which no copy is made.
    pub fn new(model: &Qwen2, form: Form) -> Result<Self> {
        Ok(Self { decoder: DeviceDecoder::new(model, form)? })
    }

    /// See [`DeviceDecoder::refresh`].
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        Ok(self.decoder.refresh(model)?)
    }

    /// Gives back what steps are computed in.
    pub fn rest(&mut self) {
        self.decoder.rest();
    }

    pub fn decoder(&self) -> &DeviceDecoder {
        &self.decoder
    }
}

impl Backend for OnDevice {
    type Store = Blocks;

    fn config(&self) -> &Config {
        self.decoder.config()
    }

    fn block_bytes(&self) -> usize {
        self.decoder.block_bytes()
    }

    fn room(&self, max_rows: usize) -> Result<Option<u64>> {
        Ok(self.decoder.room(max_rows)?)
    }

    fn held(&self, store: &Blocks) -> u64 {
        (store.count() * self.decoder.block_bytes()) as u64
    }

    fn fits(&self, store: &Blocks, blocks: usize) -> bool {
        blocks <= store.count()
    }

    fn store(&self, blocks: usize) -> Result<Blocks> {
        Ok(self.decoder.blocks(blocks)?)
    }

    fn step(
        &mut self,
        store: &mut Blocks,
        spans: Vec<Span<u32>>,
        sampling: &Sampling,
        draws: &[Vec<f64>],
    ) -> Result<Vec<Drawn>> {
        let draws = Draws { from: sampling.distribution(), at: draws };
        Ok(self.decoder.step(store, spans, &draws)?)
    }
}
