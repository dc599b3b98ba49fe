//! Generation on a device: weights that are the trainer's own, a cache of blocks in the device's memory, and a step that
//! gives sampled tokens.
//!
//! A step is laid out on the host (`plan`) and computed in one of three forms ([`Form`]): of plain tensor operations, of
//! kernels launched one by one, or, where every row feeds one token, as a captured graph of the same kernels. The decoder
//! of the CPU is [`crate::decode`]; tests hold that both sample the same tokens.

mod composed;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod graphs;
#[cfg(any(feature = "cuda", test))]
mod kernels;
#[cfg(feature = "metal")]
mod metal;
mod plan;
mod store;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::decode::Span;
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;
use crate::ops::sample::Distribution;
use crate::qwen2::Qwen2;
use candle_core::DType;
use plan::Plan;
pub use store::Blocks;

/// How steps are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Of plain tensor operations, on any device. Tokens are drawn on the host.
    Composed,
    /// Of kernels of our own, launched one by one (CUDA, Metal).
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

/// Tokens of one step, beside those of rows that decode: what a scheduler may feed, and memory is planned for.
pub const STEP_TOKENS: usize = 2048;

/// The least blocks that a row of a step's tables has room for.
#[cfg(feature = "cuda")]
const LEAST_WIDTH: usize = 64;

/// A model's weights where they are, and what steps are computed in.
pub struct DeviceDecoder {
    model: Qwen2,
    plan: Plan,
    form: Forms,
}

enum Forms {
    Composed,
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Cuda>, Form),
    #[cfg(feature = "metal")]
    Metal,
}

impl DeviceDecoder {
    /// A decoder over a model's weights, of which no copy is made, in a form that its device has.
    ///
    /// # Errors
    /// When the device does not have the form, or the weights are of a type that no kernel takes.
    pub fn new(model: &Qwen2, form: Form) -> Result<Self> {
        let model = model.detached();
        let form = match form {
            Form::Composed => Forms::Composed,
            #[cfg(feature = "metal")]
            Form::Kernels if metal::fits(&model) => Forms::Metal,
            #[cfg(feature = "cuda")]
            _ => Forms::Cuda(Box::new(cuda::Cuda::new(&model, form == Form::Graphs)?), form),
            #[cfg(not(feature = "cuda"))]
            _ => {
                let message = "this program was built without CUDA, and has no kernels for this form of generation";
                return Err(Error::Unsupported(message.into()));
            }
        };
        Ok(Self { model, plan: Plan::default(), form })
    }

    /// The fastest form that a model's device has.
    pub fn best_form(model: &Qwen2) -> Form {
        #[cfg(feature = "metal")]
        if metal::fits(model) {
            return Form::Kernels;
        }
        if model.device().is_cuda() { Form::Graphs } else { Form::Composed }
    }

    /// Takes a model's current weights, if they are those that are here already; says whether they are.
    ///
    /// # Errors
    /// When the device fails.
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        if !self.model.is_same_view(model) {
            return Ok(false);
        }
        match &mut self.form {
            Forms::Composed => {}
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => cuda.refresh(&self.model)?,
            #[cfg(feature = "metal")]
            Forms::Metal => {}
        }
        Ok(true)
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// How steps are computed.
    pub fn form(&self) -> Form {
        match &self.form {
            Forms::Composed => Form::Composed,
            #[cfg(feature = "cuda")]
            Forms::Cuda(_, form) => *form,
            #[cfg(feature = "metal")]
            Forms::Metal => Form::Kernels,
        }
    }

    /// Steps that were replayed from a captured graph so far, and why no more are captured, if the driver refused.
    pub fn graphs(&self) -> (usize, Option<&str>) {
        match &self.form {
            Forms::Composed => (0, None),
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => cuda.graphs(),
            #[cfg(feature = "metal")]
            Forms::Metal => (0, None),
        }
    }

    /// The type of keys and values: that of the activations.
    pub fn cache_dtype(&self) -> DType {
        if self.model.device().is_cpu() { DType::F32 } else { self.model.embedding.dtype() }
    }

    /// A cache of so many blocks, allocated now.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn blocks(&self, count: usize) -> Result<Blocks> {
        match &self.form {
            Forms::Composed => Blocks::new(self.config(), self.cache_dtype(), self.model.device(), count),
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => Ok(Blocks::in_cuda(cuda.blocks(&self.model, count)?, count)),
            #[cfg(feature = "metal")]
            Forms::Metal => Blocks::new(self.config(), self.cache_dtype(), self.model.device(), count),
        }
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
        match &self.form {
            Forms::Composed => {
                let _ = max_rows;
                Ok(None)
            }
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => Ok(Some(cuda.room(&self.model, max_rows)?)),
            #[cfg(feature = "metal")]
            Forms::Metal => Ok(metal::room(&self.model, max_rows)),
        }
    }

    /// Gives back what steps are computed in; the next one takes it again.
    pub fn rest(&mut self) {
        self.plan = Plan::default();
        match &mut self.form {
            Forms::Composed => {}
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => cuda.rest(),
            #[cfg(feature = "metal")]
            Forms::Metal => {}
        }
    }

    /// Feeds the spans, and draws from the logits behind the last token of each that wants them.
    ///
    /// # Errors
    /// When a token is beyond the vocabulary, a sequence beyond its room or the model's positions, or the device fails.
    pub fn step(&mut self, blocks: &mut Blocks, mut spans: Vec<Span<u32>>, draws: &Draws) -> Result<Drawn> {
        let drawn = match &mut self.form {
            Forms::Composed => {
                self.plan.fill(&mut spans, self.model.config(), 0)?;
                composed::step(&self.model, blocks, &self.plan, draws)?
            }
            #[cfg(feature = "metal")]
            Forms::Metal => {
                self.plan.fill(&mut spans, self.model.config(), 0)?;
                split(&self.plan, draws, metal::step(&self.model, blocks, &self.plan, draws)?)
            }
            #[cfg(feature = "cuda")]
            Forms::Cuda(cuda, _) => {
                // The width is part of what is captured: it doubles, so that few widths come.
                let longest = spans.iter().map(|s| s.sequence.len() + s.tokens.len()).max().unwrap_or(0);
                let width = longest.div_ceil(crate::cache::LANES).next_power_of_two().max(LEAST_WIDTH);
                self.plan.fill(&mut spans, self.model.config(), width)?;
                split(&self.plan, draws, cuda.step(&self.model, blocks, &self.plan, draws)?)
            }
        };
        plan::advance(&mut spans);
        Ok(drawn)
    }
}

/// The tokens of all draws, given to the spans that they are of.
#[cfg(any(feature = "cuda", feature = "metal", test))]
fn split(plan: &Plan, draws: &Draws, drawn: Vec<(u32, f32)>) -> Drawn {
    let mut drawn = drawn.into_iter();
    let of = |(row, at): (&Option<usize>, &Vec<f64>)| row.map(|_| drawn.by_ref().take(at.len()).collect());
    plan.logits_of.iter().zip(draws.at).map(of).collect()
}
