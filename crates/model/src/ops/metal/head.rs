//! The language-model head by chunks of tokens, on candle's tensors: its products are candle's, what is done with logits is
//! ours (`log_prob.metal`).
//!
//! Logits are in the type of the hidden states, as the composed twin's are; everything behind them is f32.

use super::device::resident;
use super::gpu::{Gpu, Scalar, View};
use super::log_prob::{Logits, add_to};
use super::rows::Picked;
use super::tensors::{Place, storage, tensor, whole};
use crate::ops::log_prob::Scored;
use candle_core::{DType, Layout, MetalDevice, MetalStorage, Result, Shape, Tensor};
use candle_metal_kernels::metal::Buffer;
use std::sync::Arc;

/// Logits that exist at once: 128 MiB in bf16.
const LOGITS: usize = 1 << 26;

/// Fewest and most tokens of a chunk.
const TOKENS: (usize, usize) = (16, 4096);

/// The head and what it scores.
struct Head<'a> {
    device: MetalDevice,
    /// `[tokens, width]`.
    hidden: Tensor,
    /// `[vocab, width]`, in the type of `hidden`.
    w: Tensor,
    scored: &'a Scored,
    targets: Arc<Buffer>,
}

/// Some of the scored tokens.
struct Chunk {
    first: usize,
    /// Their hidden states, `[rows, width]`.
    x: Tensor,
    /// Their logits, `[rows, vocab]`.
    z: Tensor,
}

impl<'a> Head<'a> {
    fn new(hidden: &Tensor, w: &Tensor, scored: &'a Scored) -> Result<Self> {
        let device = hidden.device().as_metal_device()?.clone();
        let targets = resident(&device, &scored.targets)?;
        let w = w.detach().to_dtype(hidden.dtype())?;
        Ok(Self { device, hidden: hidden.detach(), w, scored, targets })
    }

    fn scored(&self) -> usize {
        self.scored.rows.len()
    }

    fn chunks(&self) -> Result<impl Iterator<Item = Result<Chunk>> + '_> {
        let rows = Tensor::new(&*self.scored.rows, self.hidden.device())?;
        let size = (LOGITS / self.w.dim(0)?).clamp(TOKENS.0, TOKENS.1);
        Ok((0..self.scored()).step_by(size).map(move |first| {
            let rows = rows.narrow(0, first, size.min(self.scored() - first))?;
            let x = self.hidden.index_select(&rows.contiguous()?, 0)?;
            let z = x.matmul(&self.w.t()?)?;
            Ok(Chunk { first, x, z })
        }))
    }

    /// Calls `f` with the logits of a chunk.
    fn with(&self, chunk: &Chunk, f: impl FnOnce(&Logits<Buffer>) -> Result<()>) -> Result<()> {
        let place = Place::of(&chunk.z)?;
        let (rows, vocab) = chunk.z.dims2()?;
        f(&Logits {
            logits: place.view()?,
            scalar: Scalar::of(chunk.z.dtype())?,
            rows,
            vocab,
            targets: View::all(&*self.targets),
            first: chunk.first,
            all: self.scored(),
            temperature: self.scored.temperature,
        })
    }

    /// `sum += part` of the head's gradient, `sum` in f32.
    fn add(&self, sum: &Tensor, part: &Tensor) -> Result<()> {
        let (to, from) = (Place::of(sum)?, Place::of(part)?);
        add_to(&self.device, to.view()?, from.view()?, Scalar::of(part.dtype())?, part.elem_count())
    }
}

/// `hidden: [tokens, width]`, `w: [vocab, width]` -> `[2, scored]` in f32: log-probabilities, entropies.
pub(crate) fn forward(
    (hidden, lh): (&MetalStorage, &Layout),
    (w, lw): (&MetalStorage, &Layout),
    scored: &Scored,
) -> Result<(MetalStorage, Shape)> {
    let head = Head::new(&whole(hidden, lh)?, &whole(w, lw)?, scored)?;
    let shape = Shape::from((2, head.scored()));
    let scores = head.device.allocate(shape.elem_count() * 4)?;
    for chunk in head.chunks()? {
        head.with(&chunk?, |logits| logits.score(&head.device, View::all(&scores)))?;
    }
    Ok((storage(&head.device, scores, shape.elem_count(), DType::F32), shape))
}

/// The gradient of `hidden` for the gradient `g: [2, scored]` of the scores; that of the head, if it is wanted, is added to
/// the f32 `sum` in place.
pub(crate) fn backward(
    hidden: &Tensor,
    w: &Tensor,
    scored: &Scored,
    g: &Tensor,
    sum: Option<&Tensor>,
) -> Result<Tensor> {
    let head = Head::new(hidden, w, scored)?;
    let g = g.to_dtype(DType::F32)?.contiguous()?;
    let at_g = Place::of(&g)?;
    let mut parts = Vec::new();
    for chunk in head.chunks()? {
        let chunk = chunk?;
        head.with(&chunk, |logits| logits.differentiate(&head.device, at_g.view()?))?;
        parts.push(chunk.z.matmul(&head.w)?);
        if let Some(sum) = sum {
            head.add(sum, &chunk.z.t()?.matmul(&chunk.x)?)?;
        }
    }
    let (tokens, width) = hidden.dims2()?;
    if parts.is_empty() {
        return hidden.zeros_like();
    }
    let parts = Tensor::cat(&parts, 0)?;
    let at_parts = Place::of(&parts)?;
    let scalar = Scalar::of(parts.dtype())?;
    let picked = Picked { parts: at_parts.view()?, scalar, width, rows: &scored.rows };
    let dx = picked.gather_sums(&head.device, tokens)?;
    Ok(tensor(&head.device, dx, (tokens, width), hidden.dtype()))
}
