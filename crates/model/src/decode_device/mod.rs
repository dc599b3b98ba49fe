//! Generation on a device: weights that are the trainer's own, a cache of blocks in the device's memory, and a step that
//! gives sampled tokens.
//!
//! A step is laid out on the host ([`plan`]) and computed in one of three forms ([`Form`]): of plain tensor operations, of
//! kernels launched one by one, or, where every row feeds one token, as a captured graph of the same kernels. The decoder
//! of the CPU is [`crate::decode`]; tests hold that both sample the same tokens.

mod composed;
pub mod plan;
pub mod store;

use crate::config::Config;
use crate::decode::Span;
use crate::error::{Error, Result};
use crate::ops::sample::{Distribution, sample};
use crate::qwen2::Qwen2;
use candle_core::DType;
use plan::Plan;
pub use store::Blocks;

/// How steps are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Of plain tensor operations, on any device. Tokens are drawn on the host.
    Composed,
    /// Of kernels of our own, launched one by one (CUDA).
    Kernels,
    /// The same, and a step in which every row feeds one token is one captured graph a number of rows (CUDA).
    Graphs,
}

/// What is drawn in a step.
pub struct Draws<'a> {
    /// The distribution, of all rows.
    pub from: Distribution,
    /// By span, numbers in `[0, 1)`: a token is drawn at each.
    pub at: &'a [Vec<f64>],
}

/// The tokens that each span drew, with their log-probs; `None` for a span that wanted none.
pub type Drawn = Vec<Option<Vec<(u32, f32)>>>;

/// A model's weights where they are, and what steps are computed in.
pub struct DeviceDecoder {
    model: Qwen2,
    form: Form,
    plan: Plan,
}

impl DeviceDecoder {
    /// A decoder over a model's weights, of which no copy is made, in a form that its device has.
    ///
    /// # Errors
    /// When the device does not have the form.
    pub fn new(model: &Qwen2, form: Form) -> Result<Self> {
        if form != Form::Composed {
            let message = "this program has no kernels for the device of the weights; the composed form runs everywhere";
            return Err(Error::Unsupported(message.into()));
        }
        Ok(Self { model: model.detached(), form, plan: Plan::default() })
    }

    /// The fastest form that a model's device has.
    pub fn best_form(model: &Qwen2) -> Form {
        let _ = model;
        Form::Composed
    }

    /// Takes a model's current weights, if they are those that are here already; says whether they are.
    ///
    /// # Errors
    /// When the device fails.
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        Ok(self.model.is_same_view(model))
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// How steps are computed.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The type of keys and values: that of the activations.
    pub fn cache_dtype(&self) -> DType {
        if self.model.device().is_cpu() { DType::F32 } else { self.model.embedding.dtype() }
    }

    /// A cache of so many blocks.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn blocks(&self, count: usize) -> Result<Blocks> {
        Blocks::new(self.config(), self.cache_dtype(), self.model.device(), count)
    }

    /// Bytes of one block of the cache.
    pub fn block_bytes(&self) -> usize {
        Blocks::block_bytes(self.config(), self.cache_dtype())
    }

    /// Bytes that a cache may take beside the weights and what steps of so many rows are computed in; `None` where the
    /// device does not tell.
    ///
    /// # Errors
    /// When the device fails.
    pub fn room(&self, max_rows: usize) -> Result<Option<u64>> {
        let _ = max_rows;
        Ok(None)
    }

    /// Gives back what steps are computed in; the next one takes it again.
    pub fn rest(&mut self) {
        self.plan = Plan::default();
    }

    /// Feeds the spans, and draws from the logits behind the last token of each that wants them.
    ///
    /// # Errors
    /// When a token is beyond the vocabulary, a sequence beyond its room or the model's positions, or the device fails.
    pub fn step(&mut self, blocks: &mut Blocks, mut spans: Vec<Span<u32>>, draws: &Draws) -> Result<Drawn> {
        self.plan.fill(&mut spans, self.model.config(), 0)?;
        let logits = composed::forward(&self.model, blocks, &self.plan)?;
        plan::advance(&mut spans);
        let mut logits = logits.map_or_else(|| Ok(Vec::new()), |logits| logits.to_vec2::<f32>())?;
        let draw = |(row, at): (&Option<usize>, &Vec<f64>)| {
            let logits = logits.get_mut((*row)?)?;
            // Drawing overwrites the logits.
            Some(at.iter().map(|&u| sample(&mut logits.clone(), &draws.from, u)).collect())
        };
        Ok(self.plan.logits_of.iter().zip(draws.at).map(draw).collect())
    }
}
