//! The head over a large vocabulary: by chunks of tokens and, within a chunk, by strips of the vocabulary.
//!
//! The same formulas as in [`super::log_prob`]. There every task has the whole head for itself, and a gradient of it,
//! which a vocabulary of 150,000 cannot pay for. Here the threads share one chunk of tokens: each multiplies it with strips
//! of the head, of which only maximum and sums are kept in the forward pass (a softmax streamed over the vocabulary), and
//! in the backward pass the gradient of a strip is added where the gradient of the head is summed.

use super::log_prob::Scored;
use crate::kernels::gemm::{Dims, Mat, Write, gemm};
use crate::kernels::weights::Weights;
use crate::kernels::{map_chunks, map_tasks, math, vectorized};

/// Rows of the head that one task multiplies at a time.
const STRIP: usize = 4096;
/// Logits that exist at once in the backward pass: 128 MiB of them.
pub const LOGITS: usize = 1 << 25;
/// Fewest and most tokens of a chunk.
const TOKENS: (usize, usize) = (16, 256);

/// Tokens whose logits exist at once.
pub fn tokens_at_once(vocab: usize) -> usize {
    (LOGITS / vocab).clamp(TOKENS.0, TOKENS.1)
}

/// The head and its input.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// `[tokens, width]`.
    pub hidden: &'a [f32],
    /// `[vocab, width]`.
    pub w: Weights<'a>,
    /// Width of a hidden state.
    pub width: usize,
    /// What is scored.
    pub scored: &'a Scored,
}

/// What a softmax over some of the logits needs to know of them: with `s = z / temperature`, `(max, sum e^(s - max),
/// sum e^(s - max) (s - max))`.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f64,
    weighted: f64,
}

impl Softmax {
    /// Over logits that are divided by `1 / inverse`.
    #[inline(always)]
    fn of(z: &[f32], inverse: f32) -> Self {
        let max = math::max(z) * inverse;
        let sum = math::sum_by(z, |z| math::exp(z * inverse - max));
        let weighted = math::sum_by(z, |z| {
            let s = z * inverse - max;
            math::exp(s) * s
        });
        Self { max, sum: sum.into(), weighted: weighted.into() }
    }

    /// Over these logits and others.
    fn and(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        let moved = |part: Self| {
            let shift = f64::from(part.max) - f64::from(max);
            (shift.exp() * part.sum, shift.exp() * (part.weighted + shift * part.sum))
        };
        let (a, b) = (moved(self), moved(other));
        Self { max, sum: a.0 + b.0, weighted: a.1 + b.1 }
    }

    /// `log sum e^s`.
    fn log_sum(self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    fn entropy(self) -> f64 {
        self.sum.ln() - self.weighted / self.sum
    }
}

/// Logits of one strip before the temperature, `[rows, strip]`.
struct Strip {
    first: usize,
    len: usize,
    z: Vec<f32>,
}

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.w.len() / self.width
    }

    fn chunks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (count, size) = (self.scored.rows.len(), tokens_at_once(self.vocab()));
        (0..count).step_by(size).map(move |first| first..count.min(first + size))
    }

    fn gather(&self, rows: &[u32]) -> Vec<f32> {
        rows.iter().flat_map(|&r| self.hidden[r as usize * self.width..][..self.width].iter().copied()).collect()
    }

    fn strip(&self, index: usize, x: &[f32]) -> Strip {
        let (first, k) = (index * STRIP, self.width);
        let len = STRIP.min(self.vocab() - first);
        let w = self.w.widened(first * k..(first + len) * k);
        let m = x.len() / k;
        let mut z = vec![0.0; m * len];
        gemm(&mut z, len, Mat::rows(x, k), Mat::rows(&w, k).t(), Dims { m, n: len, k }, Write::Set);
        Strip { first, len, z }
    }

    fn inverse_temperature(&self) -> f32 {
        1.0 / self.scored.temperature
    }

    fn softmaxes(&self, strip: &Strip) -> Vec<Softmax> {
        let inverse = self.inverse_temperature();
        let mut all = Vec::with_capacity(strip.z.len() / strip.len);
        vectorized!(all.extend(strip.z.chunks_exact(strip.len).map(
            #[inline(always)]
            |z| Softmax::of(z, inverse)
        )));
        all
    }

    /// Log-probabilities, then entropies of the scored tokens.
    pub fn forward(&self) -> Vec<f32> {
        let (mut log_probs, mut entropies) = (Vec::new(), Vec::new());
        let inverse = f64::from(self.inverse_temperature());
        for chunk in self.chunks() {
            let x = self.gather(&self.scored.rows[chunk.clone()]);
            let targets = &self.scored.targets[chunk];
            let parts = map_tasks(self.vocab().div_ceil(STRIP), |i| {
                let strip = self.strip(i, &x);
                (strip.targets(targets), self.softmaxes(&strip))
            });
            for row in 0..targets.len() {
                let softmax = total(parts.iter().map(|(_, all)| all[row]));
                let target = parts.iter().find_map(|(logits, _)| logits[row]).unwrap_or(f32::NAN);
                log_probs.push((f64::from(target) * inverse - softmax.log_sum()) as f32);
                entropies.push(softmax.entropy() as f32);
            }
        }
        log_probs.extend(entropies);
        log_probs
    }

    /// The gradient of the hidden states for the gradients `g` of what [`Self::forward`] gives; that of the head is added
    /// to `dw` if it is wanted.
    pub fn backward(&self, g: &[f32], mut dw: Option<&mut [f32]>) -> Vec<f32> {
        let width = self.width;
        let mut dx = vec![0.0; self.hidden.len()];
        for chunk in self.chunks() {
            let rows = &self.scored.rows[chunk.clone()];
            let x = self.gather(rows);
            let strips = map_tasks(self.vocab().div_ceil(STRIP), |i| {
                let strip = self.strip(i, &x);
                let softmaxes = self.softmaxes(&strip);
                (strip, softmaxes)
            });
            let of_row = |row| total(strips.iter().map(|(_, all): &(_, Vec<Softmax>)| all[row]));
            let gradient = LogitGradient {
                softmaxes: (0..rows.len()).map(of_row).collect(),
                log_probs: &g[chunk.clone()],
                entropies: &g[self.scored.rows.len()..][chunk.clone()],
                targets: &self.scored.targets[chunk],
                inverse: self.inverse_temperature(),
            };
            let through = |i: usize, dw: Option<&mut [f32]>| self.through_strip(&strips[i].0, &x, &gradient, dw);
            let parts = match dw.as_deref_mut() {
                Some(dw) => map_chunks(dw, STRIP * width, |i, dw| through(i, Some(dw))),
                None => map_tasks(strips.len(), |i| through(i, None)),
            };
            vectorized!({
                for part in &parts {
                    for (&row, part) in rows.iter().zip(part.chunks_exact(width)) {
                        math::axpy(&mut dx[row as usize * width..][..width], 1.0, part);
                    }
                }
            });
        }
        dx
    }

    /// One strip's part of the gradient of the chunk `x`; the strip's own is added to `dw`.
    fn through_strip(&self, strip: &Strip, x: &[f32], gradient: &LogitGradient, dw: Option<&mut [f32]>) -> Vec<f32> {
        let (m, n, width) = (x.len() / self.width, strip.len, self.width);
        let dz = gradient.of(strip);
        if let Some(dw) = dw {
            gemm(dw, width, Mat::rows(&dz, n).t(), Mat::rows(x, width), Dims { m: n, n: width, k: m }, Write::Add);
        }
        let w = self.w.widened(strip.first * width..(strip.first + n) * width);
        let mut dx = vec![0.0; x.len()];
        gemm(&mut dx, width, Mat::rows(&dz, n), Mat::rows(&w, width), Dims { m, n: width, k: n }, Write::Set);
        dx
    }
}

/// The strips' parts together, in their order.
fn total(parts: impl Iterator<Item = Softmax>) -> Softmax {
    parts.reduce(Softmax::and).unwrap_or(Softmax { max: 0.0, sum: 1.0, weighted: 0.0 })
}

impl Strip {
    /// The logits of those targets that are in the strip.
    fn targets(&self, targets: &[u32]) -> Vec<Option<f32>> {
        let at = |(row, &target): (usize, &u32)| {
            let column = (target as usize).checked_sub(self.first).filter(|&c| c < self.len)?;
            Some(self.z[row * self.len + column])
        };
        targets.iter().enumerate().map(at).collect()
    }
}

/// What the gradient of a chunk's logits is made of, one value a token.
struct LogitGradient<'a> {
    softmaxes: Vec<Softmax>,
    log_probs: &'a [f32],
    entropies: &'a [f32],
    targets: &'a [u32],
    inverse: f32,
}

impl LogitGradient<'_> {
    /// `[j = y] g - p_j (g + h (log p_j + entropy))`, over the temperature, for gradients `g` of the log-probability and
    /// `h` of the entropy.
    fn of(&self, strip: &Strip) -> Vec<f32> {
        let inverse = self.inverse;
        let mut dz = strip.z.clone();
        for (row, dz) in dz.chunks_exact_mut(strip.len).enumerate() {
            let (log_sum, entropy) = (self.softmaxes[row].log_sum() as f32, self.softmaxes[row].entropy() as f32);
            let (g, h) = (self.log_probs[row], self.entropies[row]);
            vectorized!(dz.iter_mut().for_each(
                #[inline(always)]
                |z| {
                    let log_p = *z * inverse - log_sum;
                    *z = -math::exp(log_p) * (g + h * (log_p + entropy)) * inverse;
                }
            ));
            if let Some(column) = (self.targets[row] as usize).checked_sub(strip.first)
                && let Some(z) = dz.get_mut(column)
            {
                *z += g * inverse;
            }
        }
        dz
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_prob::{Scored, composed};
    use super::super::testing::{gap, variable};
    use super::super::{with_elements, with_weights};
    use super::*;
    use candle_core::{DType, Tensor, Var};
    use std::sync::Arc;

    /// More rows than a chunk and more logits than two strips.
    fn inputs(temperature: f32) -> (Var, Var, Scored) {
        let (hidden, w) = (variable(&[300, 24], 1), variable(&[9000, 24], 2));
        let rows: Arc<[u32]> = (0..290).map(|i| (i * 3) % 300).collect();
        let targets: Arc<[u32]> = (0..290).map(|i| (i * 701) % 9000).collect();
        (hidden, w, Scored { rows, targets, temperature })
    }

    fn check(w: &Tensor, hidden: &Var, scored: &Scored, trained: bool) {
        let twin = composed(hidden, w, scored).unwrap();
        let weights = variable(twin.dims(), 77).as_detached_tensor();
        let store = (&twin * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let g = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (values, dx, dw) = with_elements(hidden, "test", |hidden| {
            with_weights(w, "test", |w| {
                let head = Head { hidden, w, width: 24, scored };
                let mut dw = vec![0.0; w.len()];
                let dx = head.backward(&g, trained.then_some(&mut dw[..]));
                Ok((head.forward(), dx, dw))
            })
        })
        .unwrap();
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).unwrap();
        assert!(gap(&tensor(values, &twin), &twin) < 2e-5);
        assert!(gap(&tensor(dx, hidden), store.get(hidden.as_tensor()).unwrap()) < 2e-5);
        if trained {
            assert!(gap(&tensor(dw, w), store.get(w).unwrap()) < 2e-5);
        }
    }

    #[test]
    fn equals_its_twin_over_chunks_and_strips() {
        for temperature in [1.0, 0.6] {
            let (hidden, w, scored) = inputs(temperature);
            check(w.as_tensor(), &hidden, &scored, true);
        }
    }

    #[test]
    fn a_frozen_head_in_bf16_equals_its_twin() {
        let (hidden, w, scored) = inputs(1.0);
        check(&w.as_detached_tensor().to_dtype(DType::BF16).unwrap(), &hidden, &scored, false);
    }
}
