//! The head over a large vocabulary: by groups of tokens and, within a group, by strips of the vocabulary.
//!
//! The same formulas as in [`super::log_prob`]. There every task has the whole head for itself, and a gradient of it,
//! which a vocabulary of 150,000 cannot pay for. Here the threads share the products of one strip at a time. Of its logits the
//! forward pass keeps maximum and sums alone (a softmax streamed over the vocabulary); the backward pass has the sum of
//! all from what the forward pass gave, makes each logit once more, and adds the gradient of a strip where the gradient of
//! the head is summed.

use super::linear::packed_rows;
use super::log_prob::Scored;
use crate::kernels::packed::{Compute, Packed};
use crate::kernels::pairs;
use crate::kernels::sums::HostSum;
use crate::kernels::weights::{Element, Weights};
use crate::kernels::{for_each_chunk, map_tasks, math, vectorized};
use std::ops::Range;

/// Rows of the head in a strip.
const STRIP: usize = 4096;
/// Tokens in a group: the logits that exist at once are those of a group in a strip, 16 MiB of them.
const GROUP: usize = 1024;
/// Tokens whose logits one task looks at.
const ROWS: usize = 32;

/// The most bytes that scoring needs beside hidden states, head, and their gradients, for a head `[vocab, width]`: logits of a
/// group in a strip, the same rounded (twice), the strip packed in both ways, and the group's hidden states three times.
pub fn workspace_bytes(vocab: usize, width: usize) -> usize {
    let strip = STRIP.min(vocab);
    size_of::<f32>() * (2 * GROUP * strip + 2 * strip * width + 3 * GROUP * width)
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
    /// Over no logits.
    const NONE: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 };

    /// Over logits that are divided by `1 / inverse`.
    #[inline(always)]
    fn of(z: &[f32], inverse: f32) -> Self {
        let max = math::max(z) * inverse;
        let (sum, weighted) = math::softmax_sums(z, inverse, max);
        Self { max, sum: sum.into(), weighted: weighted.into() }
    }

    /// Over these logits and others.
    fn and(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        let moved = |part: Self| {
            if part.sum == 0.0 {
                return (0.0, 0.0);
            }
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

impl Head<'_> {
    fn vocab(&self) -> usize {
        self.w.len() / self.width
    }

    fn strips(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.vocab();
        (0..vocab).step_by(STRIP).map(move |first| first..vocab.min(first + STRIP))
    }

    fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.scored.rows.len();
        (0..count).step_by(GROUP).map(move |first| first..count.min(first + GROUP))
    }

    fn gather(&self, rows: &[u32]) -> Vec<f32> {
        rows.iter().flat_map(|&r| self.hidden[r as usize * self.width..][..self.width].iter().copied()).collect()
    }

    fn inverse_temperature(&self) -> f32 {
        1.0 / self.scored.temperature
    }

    /// A strip for `x w^T`.
    fn packed(&self, strip: &Range<usize>) -> Packed {
        let range = strip.start * self.width..strip.end * self.width;
        match self.w {
            Weights::F32(w) => packed_rows(&w[range], self.width, self.scored.compute),
            Weights::Bf16(w) => packed_rows(&w[range], self.width, self.scored.compute),
        }
    }

    /// A strip for `x w`.
    fn packed_columns(&self, strip: &Range<usize>) -> Packed {
        let range = strip.start * self.width..strip.end * self.width;
        match self.w {
            Weights::F32(w) => Packed::columns(&w[range], self.width, self.scored.compute),
            Weights::Bf16(w) => Packed::columns(&w[range], self.width, self.scored.compute),
        }
    }

    /// Log-probabilities, then entropies of the scored tokens.
    pub fn forward(&self) -> Vec<f32> {
        let inverse = self.inverse_temperature();
        let (mut log_probs, mut entropies, mut z) = (Vec::new(), Vec::new(), Vec::new());
        for group in self.groups() {
            let x = self.gather(&self.scored.rows[group.clone()]);
            let targets = &self.scored.targets[group];
            let mut softmaxes = vec![Softmax::NONE; targets.len()];
            let mut at_targets = vec![f32::NAN; targets.len()];
            for strip in self.strips() {
                z.resize(targets.len() * strip.len(), 0.0);
                self.packed(&strip).matmul(&x, &mut z);
                let found = softmaxes_of(&z, strip.len(), inverse);
                for (row, (softmax, found)) in softmaxes.iter_mut().zip(found).enumerate() {
                    *softmax = softmax.and(found);
                    if let Some(column) = within(&strip, targets[row]) {
                        at_targets[row] = z[row * strip.len() + column];
                    }
                }
            }
            for (softmax, at_target) in softmaxes.iter().zip(at_targets) {
                log_probs.push((f64::from(at_target) * f64::from(inverse) - softmax.log_sum()) as f32);
                entropies.push(softmax.entropy() as f32);
            }
        }
        log_probs.extend(entropies);
        log_probs
    }

    /// The gradient of the hidden states for the gradients `g` of what [`Self::forward`] gave, which was `scores`; that of
    /// the head is added to `dw` if it is wanted.
    pub fn backward(&self, scores: &[f32], g: &[f32], mut dw: Option<HostSum>) -> Vec<f32> {
        let (width, count) = (self.width, self.scored.rows.len());
        let mut dx = vec![0.0; self.hidden.len()];
        let (mut z, mut of_strip) = (Vec::new(), Vec::new());
        for group in self.groups() {
            let rows = &self.scored.rows[group.clone()];
            let x = self.gather(rows);
            let targets = &self.scored.targets[group.clone()];
            let gradient = LogitGradient {
                log_sums: self.log_sums(&x, targets, &scores[group.clone()]),
                entropies: &scores[count..][group.clone()],
                of_log_probs: &g[group.clone()],
                of_entropies: &g[count..][group],
                targets,
                inverse: self.inverse_temperature(),
            };
            let columns = Packed::columns(&x, width, self.scored.compute);
            let mut dx_group = vec![0.0; x.len()];
            for strip in self.strips() {
                z.resize(rows.len() * strip.len(), 0.0);
                self.packed(&strip).matmul(&x, &mut z);
                gradient.replace(&mut z, &strip);
                match &mut dw {
                    Some(HostSum::F32(dw)) => {
                        columns.matmul_transposed_add(&z, &mut dw[strip.start * width..strip.end * width]);
                    }
                    Some(dw) => {
                        of_strip.resize(strip.len() * width, 0.0);
                        columns.matmul_transposed(&z, &mut of_strip);
                        dw.add(strip.start * width, &of_strip);
                    }
                    None => {}
                }
                self.packed_columns(&strip).matmul_add(&z, &mut dx_group);
            }
            vectorized!({
                for (&row, part) in rows.iter().zip(dx_group.chunks_exact(width)) {
                    math::axpy(&mut dx[row as usize * width..][..width], 1.0, part);
                }
            });
        }
        dx
    }

    /// The logarithm of each token's sum, from its log-probability and the one logit that this is of.
    fn log_sums(&self, x: &[f32], targets: &[u32], log_probs: &[f32]) -> Vec<f32> {
        let (width, inverse) = (self.width, self.inverse_temperature());
        let row = |target: u32| {
            let range = target as usize * width..(target as usize + 1) * width;
            match self.w {
                Weights::F32(w) => as_multiplied(&w[range], self.scored.compute),
                Weights::Bf16(w) => as_multiplied(&w[range], self.scored.compute),
            }
        };
        let rows = x.chunks_exact(width).zip(targets).zip(log_probs);
        rows.map(|((x, &target), log_prob)| {
            let (x, w) = (as_multiplied(x, self.scored.compute), row(target));
            let logit: f64 = x.iter().zip(&w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            (logit * f64::from(inverse) - f64::from(*log_prob)) as f32
        })
        .collect()
    }
}

/// The numbers that a product multiplies.
fn as_multiplied<T: Element>(x: &[T], compute: Compute) -> Vec<f32> {
    match compute {
        Compute::F32 => x.iter().map(|x| x.widen()).collect(),
        Compute::Bf16 => pairs::of_rows(x, x.len()).into_iter().flat_map(pairs::both).take(x.len()).collect(),
    }
}

/// A target's place in a strip, if it is there.
fn within(strip: &Range<usize>, target: u32) -> Option<usize> {
    (target as usize).checked_sub(strip.start).filter(|&column| column < strip.len())
}

/// Of each row of `z: [rows, len]`.
fn softmaxes_of(z: &[f32], len: usize, inverse: f32) -> Vec<Softmax> {
    let parts = map_tasks(z.len().div_ceil(ROWS * len), |i| {
        let z = &z[i * ROWS * len..z.len().min((i + 1) * ROWS * len)];
        let mut all = Vec::with_capacity(ROWS);
        vectorized!({
            for z in z.chunks_exact(len) {
                all.push(Softmax::of(z, inverse));
            }
        });
        all
    });
    parts.into_iter().flatten().collect()
}

/// What the gradient of a group's logits is made of, one value a token.
struct LogitGradient<'a> {
    log_sums: Vec<f32>,
    entropies: &'a [f32],
    of_log_probs: &'a [f32],
    of_entropies: &'a [f32],
    targets: &'a [u32],
    inverse: f32,
}

impl LogitGradient<'_> {
    /// Logits `z: [tokens, strip]` become `[j = y] g - p_j (g + h (log p_j + entropy))`, over the temperature, for gradients
    /// `g` of the log-probability and `h` of the entropy.
    fn replace(&self, z: &mut [f32], strip: &Range<usize>) {
        for_each_chunk(z, ROWS * strip.len(), |i, z| {
            for (row, z) in (i * ROWS..).zip(z.chunks_exact_mut(strip.len())) {
                let (log_sum, entropy, inverse) = (self.log_sums[row], self.entropies[row], self.inverse);
                let (g, h) = (self.of_log_probs[row], self.of_entropies[row]);
                vectorized!({
                    for z in z.iter_mut() {
                        let log_p = *z * inverse - log_sum;
                        *z = -math::exp(log_p) * (g + h * (log_p + entropy)) * inverse;
                    }
                });
                if let Some(column) = within(strip, self.targets[row]) {
                    z[column] += g * inverse;
                }
            }
        });
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

    /// More rows than a group and more logits than two strips.
    fn inputs(temperature: f32) -> (Var, Var, Scored) {
        let (hidden, w) = (variable(&[1300, 24], 1), variable(&[9000, 24], 2));
        let rows: Arc<[u32]> = (0..1290).map(|i| (i * 3) % 1300).collect();
        let targets: Arc<[u32]> = (0..1290).map(|i| (i * 701) % 9000).collect();
        (hidden, w, Scored { rows, targets, temperature, compute: Compute::F32 })
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
                let values = head.forward();
                let dx = head.backward(&values, &g, trained.then_some(HostSum::F32(&mut dw)));
                Ok((values, dx, dw))
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
