//! Launches of `log_prob.cu`: the head by strips of the vocabulary, each a product in f32, so that the logits of all tokens
//! never exist at once.

use super::rows::{Groups, Sums, gather, sum_into};
use super::{Argument, Grid, Kernel, Machine, Product, Target, View, suffix};
use crate::ops::log_prob::Scored;
use candle_core::{DType, Result, bail};
use std::sync::Arc;

/// Logits of a strip, of all tokens: 256 MiB in f32.
const LOGITS: usize = 1 << 26;
/// Least tokens of the vocabulary in a strip: a product of fewer columns does not fill a GPU.
const LEAST: usize = 1024;

/// How much of the vocabulary is multiplied at a time.
pub(crate) fn strip(scored: usize, vocab: usize) -> usize {
    (LOGITS / scored.max(1)).max(LEAST).next_multiple_of(64).min(vocab)
}

/// The head over the scored rows of the hidden states.
pub(crate) struct Head<'a, D: Machine> {
    pub machine: &'a D,
    /// `[tokens, width]`.
    pub hidden: View<'a, D::Memory>,
    /// `[vocab, width]`, of the same type.
    pub w: View<'a, D::Memory>,
    pub width: usize,
    pub scored: &'a Scored,
    /// Rows of the head that are multiplied at a time.
    pub strip: usize,
}

/// Where the gradient of the head goes.
pub(crate) struct HeadGradient<'a, M> {
    pub memory: &'a mut M,
    pub offset: usize,
    /// f32, or the type of the head.
    pub dtype: DType,
    /// Added to what is there.
    pub add: bool,
}

impl<D: Machine> Head<'_, D> {
    fn rows(&self) -> usize {
        self.scored.rows.len()
    }

    fn vocab(&self) -> usize {
        self.w.len / self.width
    }

    fn inverse(&self) -> Argument<'static, D::Memory> {
        Argument::F32(1.0 / self.scored.temperature)
    }

    fn targets(&self) -> Result<Arc<D::Memory>> {
        self.machine.resident_u32(&self.scored.targets)
    }

    /// `(first, rows)` of each strip of the head.
    fn strips(&self) -> impl Iterator<Item = (usize, usize)> + use<D> {
        let (vocab, strip) = (self.vocab(), self.strip);
        (0..vocab).step_by(strip).map(move |first| (first, strip.min(vocab - first)))
    }

    /// Logits `[rows, strip]` of a strip, f32.
    fn logits(&self, x: &D::Memory, (first, len): (usize, usize), z: &mut D::Memory) -> Result<()> {
        let x = View::whole(x, self.hidden.dtype, self.rows() * self.width);
        let target = Target { memory: z, offset: 0, dtype: DType::F32, add: false };
        let shape = [self.rows(), len, self.width];
        self.machine.product(&Product::by_rows(x, self.w.from(first * self.width), shape), target)
    }

    fn numbers<'b>(&self, memory: &'b D::Memory, dtype: DType, len: usize) -> Argument<'b, D::Memory> {
        Argument::Read(View::whole(memory, dtype, len))
    }

    fn check(&self) -> Result<()> {
        if self.hidden.dtype != self.w.dtype || self.width == 0 || !self.w.len.is_multiple_of(self.width) {
            bail!("log_prob: hidden states of {:?} for a head of {:?}", self.hidden.dtype, self.w.dtype);
        }
        Ok(())
    }

    /// Log-probabilities, then entropies: `[2, scored]`, f32.
    pub fn forward(&self) -> Result<D::Memory> {
        self.check()?;
        let rows = self.rows();
        let x = gather(self.machine, self.hidden, &self.scored.rows, self.width)?;
        let mut z = self.machine.allocate(DType::F32, rows * self.strip)?;
        let mut state = self.machine.zeros(DType::F32, rows * 4)?;
        let targets = self.targets()?;
        for (first, len) in self.strips() {
            self.logits(&x, (first, len), &mut z)?;
            let arguments = &mut [
                self.numbers(&z, DType::F32, rows * len),
                self.numbers(&targets, DType::U32, rows),
                Argument::Write(&mut state, 0),
                Argument::size(len)?,
                Argument::size(first)?,
                self.inverse(),
            ];
            let kernel = Kernel { file: "log_prob", name: "log_prob_strip" };
            // SAFETY: `log_prob_strip(z, targets, state, strip, first, inverse)`; a block takes one of the rows of each.
            unsafe { self.machine.launch(kernel, Grid::line(rows, 512), arguments)? };
        }
        let mut scores = self.machine.allocate(DType::F32, 2 * rows)?;
        let arguments =
            &mut [self.numbers(&state, DType::F32, rows * 4), Argument::Write(&mut scores, 0), Argument::size(rows)?];
        let kernel = Kernel { file: "log_prob", name: "log_prob_scores" };
        // SAFETY: `log_prob_scores(state, scores, rows)`; four values a row and two.
        unsafe { self.machine.launch(kernel, Grid::over(rows), arguments)? };
        Ok(scores)
    }

    /// `log sum e^(z / temperature)` of each row, from the scores that [`Self::forward`] gave.
    fn log_sums(&self, x: &D::Memory, targets: &D::Memory, scores: View<'_, D::Memory>) -> Result<D::Memory> {
        let rows = self.rows();
        let mut log_sums = self.machine.allocate(DType::F32, rows)?;
        let arguments = &mut [
            self.numbers(x, self.hidden.dtype, rows * self.width),
            Argument::Read(self.w),
            self.numbers(targets, DType::U32, rows),
            Argument::Read(scores),
            Argument::Write(&mut log_sums, 0),
            Argument::size(rows)?,
            Argument::size(self.width)?,
            self.inverse(),
        ];
        let name = format!("log_prob_log_sums_{}", suffix(self.w.dtype)?);
        // SAFETY: `log_prob_log_sums_*(hidden, head, targets, scores, log_sums, rows, width, inverse)`; a warp takes a row, and
        // the op has checked that targets are in the vocabulary.
        unsafe {
            let kernel = Kernel { file: "log_prob", name: &name };
            self.machine.launch(kernel, Grid::line(rows.div_ceil(4), 128), arguments)?;
        }
        Ok(log_sums)
    }

    /// The gradient of the hidden states for the gradients `g: [2, scored]` of the `scores` that [`Self::forward`] gave;
    /// that of the head goes to `dw`.
    pub fn backward(
        &self,
        scores: View<'_, D::Memory>,
        g: View<'_, D::Memory>,
        mut dw: Option<HeadGradient<'_, D::Memory>>,
    ) -> Result<D::Memory> {
        self.check()?;
        let (rows, width, dtype) = (self.rows(), self.width, self.hidden.dtype);
        if scores.len != 2 * rows || g.len != 2 * rows {
            bail!("log_prob: {} scores and {} gradients of {rows} tokens", scores.len, g.len);
        }
        let x = gather(self.machine, self.hidden, &self.scored.rows, width)?;
        let targets = self.targets()?;
        let log_sums = self.log_sums(&x, &targets, scores)?;
        let mut z = self.machine.allocate(DType::F32, rows * self.strip)?;
        let mut dz = self.machine.allocate(dtype, rows * self.strip)?;
        let mut dx = self.machine.zeros(DType::F32, rows * width)?;
        let name = format!("log_prob_backward_{}", suffix(dtype)?);
        for (first, len) in self.strips() {
            self.logits(&x, (first, len), &mut z)?;
            let arguments = &mut [
                self.numbers(&z, DType::F32, rows * len),
                self.numbers(&targets, DType::U32, rows),
                self.numbers(&log_sums, DType::F32, rows),
                Argument::Read(scores),
                Argument::Read(g),
                Argument::Write(&mut dz, 0),
                Argument::size(rows)?,
                Argument::size(len)?,
                Argument::size(first)?,
                self.inverse(),
            ];
            let grid = Grid { blocks: [rows, len.div_ceil(256), 1], threads: 256, shared: 0 };
            // SAFETY: `log_prob_backward_*(z, targets, log_sums, scores, gradients, dz, rows, strip, first, inverse)`; each
            // thread writes one element of `dz: [rows, strip]`.
            unsafe { self.machine.launch(Kernel { file: "log_prob", name: &name }, grid, arguments)? };
            let dz = View::whole(&dz, dtype, rows * len);
            let into = Target { memory: &mut dx, offset: 0, dtype: DType::F32, add: true };
            self.machine.product(&Product::plain(dz, self.w.from(first * width), [rows, width, len]), into)?;
            if let Some(dw) = &mut dw {
                let x = View::whole(&x, dtype, rows * width);
                let offset = dw.offset + first * width;
                let into = Target { memory: &mut *dw.memory, offset, dtype: dw.dtype, add: dw.add };
                self.machine.product(&Product::over_rows(dz, x, [len, width, rows]), into)?;
            }
        }
        let mut all = self.machine.zeros(dtype, self.hidden.len)?;
        let sums = Sums { memory: &mut all, offset: 0, len: self.hidden.len, dtype };
        let dx = View::whole(&dx, DType::F32, rows * width);
        sum_into(self.machine, dx, &Groups::of(&self.scored.rows), sums, width)?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, gradients, inputs, shim};
    use super::*;
    use crate::kernels::packed::Compute;
    use crate::ops::log_prob::composed;

    /// Rows that repeat and rows that are not scored, strips that do not fit the vocabulary.
    #[test]
    fn equals_its_twin_over_strips() {
        let Some(shim) = shim() else { return };
        let (tokens, width, vocab, count) = (40, 24, 77, 37);
        let rows: Arc<[u32]> = (0..count as u32).map(|i| i * 3 % 40).collect();
        let targets: Arc<[u32]> = (0..count as u32).map(|i| i * 29 % 77).collect();
        for (dtype, tolerance) in TYPES {
            for (temperature, strip) in [(1.0, 77), (0.6, 32)] {
                let scored =
                    Scored { rows: rows.clone(), targets: targets.clone(), temperature, compute: Compute::F32 };
                let x = inputs(&[&[tokens, width], &[vocab, width], &[2, count]], dtype);
                let g = x[2].to_dtype(DType::F32).unwrap();
                let (y, expected) = gradients(&x[..2], &g, |x| composed(&x[0], &x[1], &scored));
                let [hidden, w] = [0, 1].map(|i| Copied::new(&x[i]));
                let (hidden, w) = (hidden.view(), w.view());
                let head = Head { machine: &shim, hidden, w, width, scored: &scored, strip };
                let scores = head.forward().unwrap();
                close(&scores, &y, 2e-5);
                let (scores, g) = (View::whole(&scores, DType::F32, 2 * count), Copied::new(&g));
                for sum in [DType::F32, dtype] {
                    let mut memory = shim.zeros(sum, vocab * width).unwrap();
                    let dw = HeadGradient { memory: &mut memory, offset: 0, dtype: sum, add: sum == DType::F32 };
                    let dx = head.backward(scores, g.view(), Some(dw)).unwrap();
                    close(&dx, &expected[0], tolerance);
                    close(&memory, &expected[1], tolerance);
                }
            }
        }
    }

    #[test]
    fn strips_are_bounded() {
        assert_eq!(strip(4096, 151_936), 16_384);
        assert_eq!(strip(16_384, 151_936), 4096);
        assert_eq!(strip(1 << 20, 151_936), 1024);
        assert_eq!(strip(10, 1000), 1000);
        assert_eq!(strip(0, 1000), 1000);
    }
}
