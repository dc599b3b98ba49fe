//! The language-model head with log-probability and entropy, by chunks of tokens: `[tokens, vocab]` never exists.
//!
//! With `z = W h / temperature` and `p = softmax(z)`: `log_prob = z_y - logsumexp(z)`, `entropy = -sum p log p`.
//! Backward recomputes `z`: `d log_prob / dz_j = [j = y] - p_j`, `d entropy / dz_j = -p_j (log p_j + entropy)`.

use super::{elements, fallbacks, fused, linear, output, streamed_head, weights, with_elements, with_weights};
use crate::kernels::gemm::{Dims, Mat, Write, gemm};
use crate::kernels::packed::Compute;
use crate::kernels::sums::HostSum;
use crate::kernels::weights::Weights;
use crate::kernels::{map_tasks, math, vectorized};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// Logits that one task holds at a time: 4 MiB of them.
const LOGITS_PER_TASK: usize = 1 << 20;

/// Numbers of a head above which its product is shared out by strips of the vocabulary: each task of the other way has a
/// gradient of the whole head.
const SHARED_OUT_ABOVE: usize = 1 << 22;

/// Which tokens are scored, and at what temperature.
#[derive(Clone)]
pub struct Scored {
    /// Rows of the hidden states whose next token is scored.
    pub rows: Arc<[u32]>,
    /// The next token of each such row.
    pub targets: Arc<[u32]>,
    /// Divides the logits; log-probabilities are those of the distribution that was sampled.
    pub temperature: f32,
    /// What the products with the head are computed in on the CPU.
    pub compute: Compute,
}

/// One value a scored token, both `[scored]`, f32 and differentiable.
pub struct HeadScores {
    /// Log-probability of the target, in nats.
    pub log_probs: Tensor,
    /// Entropy of the whole distribution, in nats.
    pub entropy: Tensor,
}

/// `hidden: [tokens, width]`, `w: [vocab, width]` -> the scores of `scored.rows`.
pub fn log_prob(hidden: &Tensor, w: &Tensor, scored: &Scored) -> Result<HeadScores> {
    check(hidden, w, scored)?;
    let both = if fused(hidden) {
        hidden.contiguous()?.apply_op2(&typed(w, hidden)?, LogProb { scored: scored.clone() })?
    } else {
        fallbacks::note("log_prob");
        composed(hidden, w, scored)?
    };
    HeadScores::of(&both)
}

impl HeadScores {
    /// From both, `[2, scored]`.
    fn of(both: &Tensor) -> Result<Self> {
        Ok(Self { log_probs: both.get(0)?, entropy: both.get(1)? })
    }
}

fn check(hidden: &Tensor, w: &Tensor, scored: &Scored) -> Result<()> {
    let ((tokens, width), (vocab, inner)) = (hidden.dims2()?, w.dims2()?);
    let in_range = |values: &[u32], limit: usize| values.iter().all(|&v| (v as usize) < limit);
    if width != inner || scored.rows.len() != scored.targets.len() {
        bail!("log_prob: hidden states of {width} for a head of {inner}, or rows and targets differ in number");
    }
    if !in_range(&scored.rows, tokens) || !in_range(&scored.targets, vocab) {
        bail!("log_prob: a row beyond {tokens} tokens or a target beyond the vocabulary of {vocab}");
    }
    Ok(())
}

/// The same of plain tensor ops, on any device; `[2, scored]`: log-probabilities, entropies.
pub fn composed(hidden: &Tensor, w: &Tensor, scored: &Scored) -> Result<Tensor> {
    let device = hidden.device();
    let rows = Tensor::new(&*scored.rows, device)?;
    let targets = Tensor::new(&*scored.targets, device)?.unsqueeze(1)?;
    let logits = linear::composed(&hidden.index_select(&rows, 0)?, w, None, scored.compute)?.to_dtype(DType::F32)?;
    let logits = (logits / scored.temperature as f64)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let picked = log_p.gather(&targets, 1)?.squeeze(1)?;
    let entropy = (log_p.exp()? * &log_p)?.sum(D::Minus1)?.neg()?;
    Tensor::stack(&[picked, entropy], 0)
}

/// Whether the threads share the product with the head instead of the tokens.
fn shared_out(w: Weights, compute: Compute) -> bool {
    w.narrow().is_some() || compute == Compute::Bf16 || w.len() > SHARED_OUT_ABOVE
}

/// Whether [`backward_into`] is how the CPU goes back through the head `w`.
pub(crate) fn is_shared_out(w: &Tensor, compute: Compute) -> Result<bool> {
    with_weights(w, "log_prob", |w| Ok(shared_out(w, compute)))
}

/// The gradients of the hidden states and, if it is trained, of the head `w` for the gradients `g: [2, scored]` of the scores
/// `both: [2, scored]` that [`log_prob`] gave, where its kernels run.
pub(crate) fn gradients(
    hidden: &Tensor,
    w: &Tensor,
    scored: &Scored,
    [both, g]: [&Tensor; 2],
) -> Result<(Tensor, Option<Tensor>)> {
    let op = LogProb { scored: scored.clone() };
    match op.bwd(hidden, &typed(w, hidden)?, both, g)? {
        (Some(dx), dw) => Ok((dx, dw)),
        (None, _) => bail!("log_prob: no gradient of the hidden states"),
    }
}

/// The CPU widens the head strip by strip, a GPU multiplies one type.
fn typed(w: &Tensor, hidden: &Tensor) -> Result<Tensor> {
    if hidden.device().is_cpu() { Ok(w.clone()) } else { w.to_dtype(hidden.dtype()) }
}

/// The gradient of `hidden: [tokens, width]` for the gradients `g: [2, scored]` of `scores`; that of the head `w: [vocab, width]`, if it is wanted, is added to `dw`, so that no second one exists. On the CPU.
///
/// # Errors
/// When a tensor is not on the CPU, `hidden` or `g` is not f32, or the shapes do not fit.
pub fn backward_into(
    hidden: &Tensor,
    w: &Tensor,
    scored: &Scored,
    (scores, g): (&HeadScores, &Tensor),
    dw: Option<HostSum>,
) -> Result<Vec<f32>> {
    check(hidden, w, scored)?;
    let scores = Tensor::cat(&[&scores.log_probs, &scores.entropy], 0)?;
    if scores.dims() != [2 * scored.rows.len()]
        || g.dims() != [2, scored.rows.len()]
        || dw.as_ref().is_some_and(|dw| dw.len() != w.elem_count())
    {
        bail!("log_prob: gradients {:?} of {} tokens, or of another head", g.dims(), scored.rows.len());
    }
    let width = hidden.dim(1)?;
    with_elements(hidden, "log_prob", |hidden| {
        with_weights(w, "log_prob", |w| {
            let head = streamed_head::Head { hidden, w, width, scored };
            with_elements(&scores, "log_prob", |scores| {
                with_elements(g, "log_prob", |g| Ok(head.backward(scores, g, dw)))
            })
        })
    })
}

/// The gradient of `hidden: [tokens, width]` for the gradients `g: [2, scored]` of the scores `both: [2, scored]` that
/// [`log_prob`] gave; that of the head `w: [vocab, width]`, if it is wanted, is added to the f32 `sum` in place. On a GPU.
///
/// # Errors
/// When a tensor is not on the GPU, or the shapes do not fit.
#[cfg(any(feature = "cuda", feature = "metal"))]
pub(crate) fn backward_on_device(
    hidden: &Tensor,
    w: &Tensor,
    scored: &Scored,
    [both, g]: [&Tensor; 2],
    sum: Option<&Tensor>,
) -> Result<Tensor> {
    check(hidden, w, scored)?;
    if sum.is_some_and(|sum| sum.dtype() != DType::F32 || sum.shape() != w.shape()) {
        bail!("log_prob: a sum of gradients that is not one of the head, in f32");
    }
    #[cfg(feature = "metal")]
    if hidden.device().is_metal() {
        return super::metal::head::backward(hidden, w, scored, g, sum);
    }
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return backward_on_cuda(hidden, w, scored, [both, g], sum);
    }
    let _ = (both, g);
    bail!("log_prob: no kernel for the device of the hidden states")
}

#[cfg(feature = "cuda")]
fn backward_on_cuda(
    hidden: &Tensor,
    w: &Tensor,
    scored: &Scored,
    [both, g]: [&Tensor; 2],
    sum: Option<&Tensor>,
) -> Result<Tensor> {
    use super::cuda::{device, log_prob};
    let (w, width) = (w.to_dtype(hidden.dtype())?, hidden.dim(1)?);
    let strip = log_prob::strip(scored.rows.len(), w.dim(0)?);
    device::with([hidden, &w, both, g], |gpu, [states, w, both, g]| {
        let head = log_prob::Head { machine: gpu, hidden: states, w, width, scored, strip };
        let Some(sum) = sum else { return Ok(device::tensor(head.backward(both, g, None)?, hidden.shape())) };
        let mut dx = None;
        device::write(sum, |(memory, offset), dtype| {
            let dw = log_prob::HeadGradient { memory, offset, dtype, add: true };
            dx = Some(head.backward(both, g, Some(dw))?);
            Ok(())
        })?;
        match dx {
            Some(dx) => Ok(device::tensor(dx, hidden.shape())),
            None => bail!("log_prob: the gradient was not computed"),
        }
    })
}

struct LogProb {
    scored: Scored,
}

/// The head's inputs as slices.
#[derive(Clone, Copy)]
struct Head<'a> {
    hidden: &'a [f32],
    w: &'a [f32],
    width: usize,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.w.len() / self.width
    }

    fn gather(&self, rows: &[u32]) -> Vec<f32> {
        rows.iter().flat_map(|&r| self.hidden[r as usize * self.width..][..self.width].iter().copied()).collect()
    }

    /// Logits before the temperature, `[rows, vocab]`.
    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let (m, n, k) = (x.len() / self.width, self.vocab(), self.width);
        let mut z = vec![0.0; m * n];
        gemm(&mut z, n, Mat::rows(x, k), Mat::rows(self.w, k).t(), Dims { m, n, k }, Write::Set);
        z
    }
}

impl LogProb {
    fn rows_per_task(&self, vocab: usize) -> usize {
        (LOGITS_PER_TASK / vocab).clamp(1, 1024)
    }

    fn forward(&self, head: Head) -> Vec<f32> {
        let size = self.rows_per_task(head.vocab());
        let (rows, targets) = (&self.scored.rows, &self.scored.targets);
        let parts = map_tasks(rows.len().div_ceil(size), |i| {
            let range = i * size..rows.len().min((i + 1) * size);
            let mut z = head.logits(&head.gather(&rows[range.clone()]));
            let inverse = 1.0 / self.scored.temperature;
            let mut scores = Vec::with_capacity(range.len());
            vectorized!({
                for (z, &target) in z.chunks_exact_mut(head.vocab()).zip(&targets[range.clone()]) {
                    scores.push(score_row(z, target as usize, inverse));
                }
            });
            scores
        });
        let both = || parts.iter().flatten();
        both().map(|s| s.0).chain(both().map(|s| s.1)).collect()
    }

    fn backward(&self, head: Head, g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (rows, targets) = (&self.scored.rows, &self.scored.targets);
        let (count, vocab, width) = (rows.len(), head.vocab(), head.width);
        let size = self.rows_per_task(vocab);
        let parts = map_tasks(count.div_ceil(size), |i| {
            let range = i * size..count.min((i + 1) * size);
            let x = head.gather(&rows[range.clone()]);
            let mut z = head.logits(&x);
            let inverse = 1.0 / self.scored.temperature;
            vectorized!({
                for (z, t) in z.chunks_exact_mut(vocab).zip(range.clone()) {
                    let grads = (g[t], g[count + t]);
                    backward_row(z, targets[t] as usize, inverse, grads);
                }
            });
            let mut dx = vec![0.0; x.len()];
            let dims = Dims { m: range.len(), n: width, k: vocab };
            gemm(&mut dx, width, Mat::rows(&z, vocab), Mat::rows(head.w, width), dims, Write::Set);
            let mut dw = vec![0.0; head.w.len()];
            let dims = Dims { m: vocab, n: width, k: range.len() };
            gemm(&mut dw, width, Mat::rows(&z, vocab).t(), Mat::rows(&x, width), dims, Write::Set);
            (dx, dw)
        });
        let (mut dx, mut dw) = (vec![0.0; head.hidden.len()], vec![0.0; head.w.len()]);
        vectorized!({
            for ((part, weights), rows) in parts.iter().zip(rows.chunks(size)) {
                for (&row, part) in rows.iter().zip(part.chunks_exact(width)) {
                    math::axpy(&mut dx[row as usize * width..][..width], 1.0, part);
                }
                math::axpy(&mut dw, 1.0, weights);
            }
        });
        (dx, dw)
    }
}

/// Log-probability of `target` and the entropy; leaves `p * sum` in `z`.
#[inline(always)]
fn score_row(z: &mut [f32], target: usize, inverse: f32) -> (f32, f32) {
    let shift = math::max(z) * inverse;
    let at_target = z[target] * inverse - shift;
    // sum p (z - shift) needs z beside e^z: one more pass over the row is cheaper than a second buffer.
    let weighted = math::sum_by(z, |z| {
        let s = z * inverse - shift;
        math::exp(s) * s
    });
    let log_sum = math::exp_shifted(z, inverse);
    let lse = log_sum.ln();
    (at_target - lse, lse - weighted / log_sum)
}

/// Replaces logits by the gradient with respect to them, `g = (d/dlog_prob, d/dentropy)`.
#[inline(always)]
fn backward_row(z: &mut [f32], target: usize, inverse: f32, g: (f32, f32)) {
    let shift = math::max(z) * inverse;
    let sum = math::sum_by(z, |z| math::exp(z * inverse - shift));
    let lse = shift + sum.ln();
    let entropy = if g.1 == 0.0 {
        0.0
    } else {
        -math::sum_by(z, |z| {
            let log_p = z * inverse - lse;
            math::exp(log_p) * log_p
        })
    };
    for z in z.iter_mut() {
        let log_p = *z * inverse - lse;
        *z = -math::exp(log_p) * (g.0 + g.1 * (log_p + entropy)) * inverse;
    }
    z[target] += g.0 * inverse;
}

impl CustomOp2 for LogProb {
    fn name(&self) -> &'static str {
        "log_prob"
    }

    fn cpu_fwd(&self, h: &CpuStorage, lh: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = lh.shape().dims2()?.1;
        let hidden = elements(h, lh, "log_prob")?;
        let scores = match weights(w, lw, "log_prob")? {
            Weights::F32(w) if !shared_out(Weights::F32(w), self.scored.compute) => {
                self.forward(Head { hidden, w, width })
            }
            w => streamed_head::Head { hidden, w, width, scored: &self.scored }.forward(),
        };
        Ok(output(scores, (2, self.scored.rows.len())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, h: &CudaStorage, lh: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        use super::cuda::{device, log_prob};
        let (scored, width) = (&self.scored, lh.shape().dims2()?.1);
        let strip = log_prob::strip(scored.rows.len(), lw.shape().dims2()?.0);
        let (hidden, w) = (device::view(h, lh)?, device::view(w, lw)?);
        let gpu = device::Gpu::new(&h.device);
        let scores = log_prob::Head { machine: &gpu, hidden, w, width, scored, strip }.forward()?;
        Ok((scores, (2, scored.rows.len()).into()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, h: &MetalStorage, lh: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        super::metal::head::forward((h, lh), (w, lw), &self.scored)
    }

    fn bwd(&self, hidden: &Tensor, w: &Tensor, y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "metal")]
        if hidden.device().is_metal() {
            let sum = w.track_op().then(|| Tensor::zeros(w.shape(), DType::F32, w.device())).transpose()?;
            let dx = super::metal::head::backward(hidden, w, &self.scored, g, sum.as_ref())?;
            return Ok((Some(dx), sum.map(|sum| sum.to_dtype(w.dtype())).transpose()?));
        }
        #[cfg(feature = "cuda")]
        if hidden.device().is_cuda() {
            let (dx, dw) = on_cuda(hidden, w, &self.scored, [y, g])?;
            return Ok((Some(dx), dw));
        }
        let trained = w.track_op();
        let (dx, dw) = if is_shared_out(w, self.scored.compute)? {
            let mut dw = trained.then(|| vec![0.0; w.elem_count()]);
            (backward_into(hidden, w, &self.scored, (&HeadScores::of(y)?, g), dw.as_deref_mut().map(HostSum::F32))?, dw)
        } else {
            let width = hidden.dim(1)?;
            let (dx, dw) = with_elements(hidden, "log_prob", |hidden| {
                with_elements(w, "log_prob", |w| {
                    with_elements(g, "log_prob", |g| Ok(self.backward(Head { hidden, w, width }, g)))
                })
            })?;
            (dx, trained.then_some(dw))
        };
        let dx = Tensor::from_vec(dx, hidden.shape(), hidden.device())?;
        let dw = dw.map(|dw| Tensor::from_vec(dw, w.shape(), w.device())?.to_dtype(w.dtype())).transpose()?;
        Ok((Some(dx), dw))
    }
}

/// The gradients of the hidden states and, where it is trained, of the head, in their types.
#[cfg(feature = "cuda")]
fn on_cuda(hidden: &Tensor, w: &Tensor, scored: &Scored, [both, g]: [&Tensor; 2]) -> Result<(Tensor, Option<Tensor>)> {
    use super::cuda::{Machine, device, log_prob};
    let strip = log_prob::strip(scored.rows.len(), w.dim(0)?);
    device::with([hidden, w, both, g], |gpu, [states, head, both, g]| {
        let dtype = head.dtype;
        let mut memory = if w.track_op() { Some(gpu.allocate(dtype, head.len)?) } else { None };
        let head = log_prob::Head { machine: gpu, hidden: states, w: head, width: hidden.dim(1)?, scored, strip };
        let dw = memory.as_mut().map(|memory| log_prob::HeadGradient { memory, offset: 0, dtype, add: false });
        let dx = head.backward(both, g, dw)?;
        Ok((device::tensor(dx, hidden.shape()), memory.map(|memory| device::tensor(memory, w.shape()))))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn equals_its_twin() {
        let (hidden, w) = (variable(&[40, 24], 1), variable(&[50, 24], 2));
        let rows: Arc<[u32]> = (0..37).map(|i| (i * 3) % 40).collect();
        let targets: Arc<[u32]> = (0..37).map(|i| (i * 7) % 50).collect();
        for temperature in [1.0, 0.6] {
            let scored = Scored { rows: rows.clone(), targets: targets.clone(), temperature, compute: Compute::F32 };
            let fused = || {
                let scores = log_prob(&hidden, &w, &scored)?;
                Tensor::stack(&[scores.log_probs, scores.entropy], 0)
            };
            assert_twins(&[&hidden, &w], fused, || composed(&hidden, &w, &scored), 2e-5);
        }
    }

    #[test]
    fn a_uniform_head_has_the_entropy_of_its_vocabulary() {
        let hidden = variable(&[3, 8], 1);
        let w = Tensor::zeros((16, 8), DType::F32, hidden.device()).unwrap();
        let scored = Scored { rows: [0, 2].into(), targets: [3, 15].into(), temperature: 1.0, compute: Compute::F32 };
        let scores = log_prob(&hidden, &w, &scored).unwrap();
        for value in scores.entropy.to_vec1::<f32>().unwrap() {
            assert!((value - 16f32.ln()).abs() < 1e-6);
        }
        for value in scores.log_probs.to_vec1::<f32>().unwrap() {
            assert!((value + 16f32.ln()).abs() < 1e-6);
        }
    }
}
