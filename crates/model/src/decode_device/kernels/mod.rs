//! The device decoder's step made of kernels: written against [`Machine`], so that tests run it on the CPU, over the same
//! sources that a GPU runs.
//!
//! Everything that a step computes in is allocated beforehand, and what differs from step to step lies in one list of
//! numbers that is copied to the device: so a step can be captured once and replayed.

mod buffers;
mod layout;
mod pass;

#[cfg(feature = "cuda")]
pub(crate) use self::buffers::bytes;
use self::buffers::{Buffers, Sizes, sizes};
pub(crate) use self::layout::Layout;
use self::pass::Pass;
use super::Draws;
use super::plan::Plan;
use crate::block::{Layer, Projection};
use crate::error::{Error, Result};
use crate::lora::Adapter;
use crate::ops::cuda::decode::{self, Cached};
use crate::ops::cuda::{Machine, View};
use crate::ops::sample::Distribution;
use crate::qwen2::Qwen2;
use candle_core::{DType, Tensor};

/// A machine whose memory tensors are in, and that the host can write to and read from.
pub(crate) trait Ends: Machine {
    /// What keeps a tensor's memory readable.
    type Held<'a>;

    /// Holds a contiguous tensor's memory.
    fn hold<'a>(&self, tensor: &'a Tensor) -> Result<Self::Held<'a>>;

    /// The elements of a held tensor.
    fn view<'a>(&self, held: &'a Self::Held<'_>) -> Result<View<'a, Self::Memory>>;

    /// Copies numbers to the beginning of `to`.
    fn upload(&self, values: &[u32], to: &mut Self::Memory) -> Result<()>;

    /// Waits for everything before, and copies the first `len` numbers of `from`.
    fn download(&self, from: &Self::Memory, len: usize) -> Result<Vec<u32>>;
}

/// A model's step on a machine.
pub(crate) struct Kernels<M: Ends> {
    machine: M,
    buffers: Option<Buffers<M::Memory>>,
    sizes: Sizes,
    /// The adapters as products take them, in the type of the weights and times their scale.
    adapters: Vec<[Option<Adapter>; 7]>,
}

impl<M: Ends> Kernels<M> {
    /// # Errors
    /// When the weights are of several types, or of one that no kernel takes.
    pub fn new(machine: M, model: &Qwen2) -> Result<Self> {
        let dtype = model.embedding.dtype();
        if let Some((name, var)) = model.weights().iter().find(|(_, var)| var.dtype() != dtype) {
            let found = var.dtype();
            return Err(Error::Unsupported(format!(
                "tensor {name} is {found:?} and the embedding {dtype:?}; kernels take one type"
            )));
        }
        crate::ops::cuda::suffix(dtype)?;
        Ok(Self { machine, buffers: None, sizes: Sizes::default(), adapters: adapters(model)? })
    }

    #[cfg(feature = "cuda")]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Takes a model's current adapters; says whether there are some, whose memory is then another.
    #[cfg(feature = "cuda")]
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        self.adapters = adapters(model)?;
        Ok(model.lora().is_some())
    }

    /// Of so many bytes that steps compute in, those that have yet to be allocated.
    #[cfg(feature = "cuda")]
    pub fn missing(&self, bytes: u64) -> u64 {
        if self.buffers.is_some() { 0 } else { bytes }
    }

    /// Gives the memory back that steps compute in.
    #[cfg(feature = "cuda")]
    pub fn rest(&mut self) {
        (self.buffers, self.sizes) = (None, Sizes::default());
    }

    /// Copies the blocks that forks have asked for, list by list.
    pub fn copy(&mut self, model: &Qwen2, cache: &mut [Cached<M::Memory>], lists: &[Vec<(u32, u32)>]) -> Result<()> {
        let (width, dtype) = (model.config().widths().1, model.embedding.dtype());
        for list in lists {
            let words: Vec<u32> = list.iter().flat_map(|&(from, to)| [from, to]).collect();
            let mut pairs = self.machine.allocate(DType::U32, words.len())?;
            self.machine.upload(&words, &mut pairs)?;
            for layer in cache.iter_mut() {
                let pairs = View::whole(&pairs, DType::U32, words.len());
                decode::copy_blocks(&self.machine, pairs, layer, (width, dtype))?;
            }
        }
        Ok(())
    }

    /// Sends a step to the device, with room to compute it; says whether memory that an earlier step used is elsewhere now.
    pub fn send(
        &mut self,
        model: &Qwen2,
        plan: &Plan,
        layout: &Layout,
        draws: &[(u32, f64)],
        spare: u32,
    ) -> Result<bool> {
        let need = sizes(model, layout);
        let moved = self.buffers.is_none() || need.iter().zip(&self.sizes).any(|(need, there)| need > there);
        if moved {
            // Freed before its successor is made.
            self.buffers = None;
            self.sizes = std::array::from_fn(|i| need[i].max(self.sizes[i]));
            self.buffers = Some(Buffers::allocate(&self.machine, &self.sizes, model.embedding.dtype())?);
        }
        let buffers = self.buffers.as_mut().ok_or_else(|| Error::Unsupported("a step without memory".into()))?;
        self.machine.upload(&layout.words(plan, draws, spare), &mut buffers.step)?;
        Ok(moved)
    }

    /// Launches everything of the step that was sent: the forward pass, and the draws.
    pub fn launch(
        &mut self,
        model: &Qwen2,
        cache: &mut [Cached<M::Memory>],
        layout: &Layout,
        from: &Distribution,
    ) -> Result<()> {
        let buffers = self.buffers.as_mut().ok_or_else(|| Error::Unsupported("a step without memory".into()))?;
        let pass = Pass { machine: &self.machine, model, layout, dtype: model.embedding.dtype() };
        pass.run(buffers, cache, &self.adapters, from)
    }

    /// The tokens that were drawn, with their log-probs: the first `draws` of them.
    pub fn receive(&self, layout: &Layout, draws: usize) -> Result<Vec<(u32, f32)>> {
        let Some(buffers) = self.buffers.as_ref().filter(|_| layout.draws > 0) else { return Ok(Vec::new()) };
        let words = self.machine.download(&buffers.result, 2 * layout.draws)?;
        let (tokens, bits) = words.split_at(layout.draws);
        Ok(tokens.iter().copied().zip(bits.iter().map(|&bits| f32::from_bits(bits))).take(draws).collect())
    }
}

/// The draws of a step in the order of its rows: the row of logits of each, and where it inverts the distribution.
pub(crate) fn draws(plan: &Plan, draws: &Draws) -> Vec<(u32, f64)> {
    let rows = plan.logits_of.iter().zip(draws.at).filter_map(|(row, at)| Some(((*row)? as u32, at)));
    rows.flat_map(|(row, at)| at.iter().map(move |&u| (row, u))).collect()
}

fn adapters(model: &Qwen2) -> Result<Vec<[Option<Adapter>; 7]>> {
    let dtype = model.embedding.dtype();
    let adapted = |projection: &Projection| -> Result<Option<Adapter>> {
        let Some(adapter) = &projection.adapter else { return Ok(None) };
        let a = adapter.a.detach().to_dtype(dtype)?;
        Ok(Some(Adapter { a, b: (adapter.b.detach() * adapter.scale)?.to_dtype(dtype)?, scale: 1.0 }))
    };
    let of = |l: &Layer| -> Result<[Option<Adapter>; 7]> {
        let [q, k, v, o] = [&l.q, &l.k, &l.v, &l.o].map(adapted);
        let [gate, up, down] = [&l.gate, &l.up, &l.down].map(adapted);
        Ok([q?, k?, v?, o?, gate?, up?, down?])
    };
    model.layers.iter().map(of).collect()
}
