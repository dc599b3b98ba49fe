//! Weights rounded to eight bits for generation, and the product with rows that are rounded on the way.
//!
//! Each output's weights have a scale, and so has each block of [`BLOCK`] inputs of a row: with `q = round(127 v / max |v|)`
//! of both, `y = s_w sum_b s_x[b] sum_(k in b) q_x q_w`, where `s = max |v| / 127` (symmetric, after Jacob et al. 2018, arXiv
//! 1712.05877, section 2). One scale a row would leave too little to the many small inputs beside a few large ones: it
//! put the log-probs of a 0.5B Qwen2.5 off by twice as much. Sums within a block are exact integers and blocks are added in
//! order with fused multiply-adds, so every form gives the same bits, and a row's result never depends on the other rows.

use super::packed::PANEL;
use super::weights::Element;
use super::{math, vectorized};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Neighbours of `k` that lie together: what one instruction multiplies and adds.
pub(super) const GROUP: usize = 4;

/// Inputs that share a scale.
pub const BLOCK: usize = 128;

/// What is added to a rounded input, so that it has no sign: the instruction takes unsigned by signed numbers.
const OFFSET: i32 = 128;

/// Multiplications of one product from which on the threads share it.
const SHARED: usize = 1 << 22;

/// A matrix `w: [out, k]` for `y = x w^T`.
pub struct Int8 {
    out: usize,
    k: usize,
    /// `[ceil(out / PANEL), ceil(k / BLOCK), BLOCK / GROUP, PANEL, GROUP]`, zeros beyond `out` and `k`.
    panels: Vec<i8>,
    /// `-OFFSET sum_k q_w` of each block, which takes away what the offset of the input adds:
    /// `[ceil(out / PANEL), ceil(k / BLOCK), PANEL]`.
    offsets: Vec<i32>,
    /// `s_w`, `[out]`.
    scales: Vec<f32>,
}

/// [`PANEL`] outputs.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// `[blocks, BLOCK / GROUP, PANEL, GROUP]`.
    pub weights: &'a [i8],
    /// `[blocks, PANEL]`.
    pub offsets: &'a [i32],
}

/// Rows of an input, rounded.
pub(super) struct Rounded {
    blocks: usize,
    /// `[rows, blocks, BLOCK / GROUP, GROUP]`: `q_x + OFFSET`, four to a word; anything beyond `k`.
    words: Vec<u32>,
    /// `s_x`, `[rows, blocks]`.
    scales: Vec<f32>,
}

impl Int8 {
    /// Rounds and packs row-major matrices `[out_i, k]`, stacked one under the other.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let rows: Vec<&[T]> = parts
            .iter()
            .flat_map(|part| {
                assert_eq!(part.len() % k, 0, "a packed part is not whole rows");
                part.chunks_exact(k)
            })
            .collect();
        let (blocks, count) = (k.div_ceil(BLOCK), rows.len().div_ceil(PANEL));
        let mut panels = vec![0; count * blocks * BLOCK * PANEL];
        let mut offsets = vec![0; count * blocks * PANEL];
        let mut scales = vec![0.0; rows.len()];
        for (out, row) in rows.iter().enumerate() {
            let wide: Vec<f32> = row.iter().map(|w| w.widen()).collect();
            let (scale, inverse) = scale(&wide);
            scales[out] = scale;
            let (panel, lane) = (out / PANEL, out % PANEL);
            for (depth, &w) in wide.iter().enumerate() {
                let q = round(w, inverse);
                let word = (panel * blocks * BLOCK + depth / GROUP * GROUP) * PANEL + lane * GROUP;
                panels[word + depth % GROUP] = q as i8;
                offsets[(panel * blocks + depth / BLOCK) * PANEL + lane] -= OFFSET * q;
            }
        }
        Self { out: rows.len(), k, panels, offsets, scales }
    }

    /// Outputs of the product.
    pub fn out(&self) -> usize {
        self.out
    }

    /// The packed matrix's bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.as_slice()) + size_of_val(self.scales.as_slice()) + size_of_val(self.offsets.as_slice())
    }

    /// `y[m, out] = x[m, k] w^T`, both row-major; over the thread pool where that helps.
    ///
    /// # Panics
    /// When `x` or `y` is not `m` rows.
    pub fn matmul(&self, x: &[f32], y: &mut [f32]) {
        let m = x.len() / self.k;
        assert!(x.len() == m * self.k && y.len() == m * self.out, "a product of wrong shapes");
        if m == 0 {
            return;
        }
        let x = Rounded::new(x, self.k);
        let panels = self.out.div_ceil(PANEL);
        let share = if super::may_fork() && m * self.k * self.out >= SHARED {
            panels.div_ceil(4 * rayon::current_num_threads())
        } else {
            panels
        };
        let y = Shared(y.as_mut_ptr(), PhantomData);
        let run = |start: usize| {
            // SAFETY: each task makes other panels' outputs, which lie in other columns of `y`, which has `m` rows.
            unsafe { self.panels(start..panels.min(start + share), &x, y) };
        };
        if share < panels {
            (0..panels.div_ceil(share)).into_par_iter().for_each(|task| run(task * share));
        } else {
            run(0);
        }
    }

    /// Makes the outputs of some panels, of every row.
    ///
    /// # Safety
    /// `y` has `out` elements for every row of `x`, and nobody else reads or writes those of these panels.
    unsafe fn panels(&self, range: Range<usize>, x: &Rounded, y: Shared) {
        let mut sums = vec![[0.0; PANEL]; x.rows()];
        for p in range {
            multiply(x, self.panel(p), &mut sums);
            let first = p * PANEL;
            let scales = &self.scales[first..self.out.min(first + PANEL)];
            for (row, sums) in sums.iter().enumerate() {
                let at = y.0.wrapping_add(row * self.out + first);
                // SAFETY: as the caller vouches.
                let y = unsafe { std::slice::from_raw_parts_mut(at, scales.len()) };
                y.iter_mut().zip(sums).zip(scales).for_each(|((y, sum), scale)| *y = sum * scale);
            }
        }
    }

    fn panel(&self, p: usize) -> Panel<'_> {
        let blocks = self.k.div_ceil(BLOCK);
        Panel {
            weights: &self.panels[p * blocks * BLOCK * PANEL..(p + 1) * blocks * BLOCK * PANEL],
            offsets: &self.offsets[p * blocks * PANEL..(p + 1) * blocks * PANEL],
        }
    }
}

/// The output, written by several threads in columns of their own.
#[derive(Clone, Copy)]
struct Shared<'a>(*mut f32, PhantomData<&'a mut [f32]>);

// SAFETY: [`Int8::panels`] is called for each panel once, and panels are disjoint columns.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl Rounded {
    fn new(x: &[f32], k: usize) -> Self {
        let (rows, blocks) = (x.len() / k, k.div_ceil(BLOCK));
        let mut words = vec![0; rows * blocks * BLOCK / GROUP];
        let mut scales = vec![0.0; rows * blocks];
        vectorized!({
            let blocks = x.chunks_exact(k).flat_map(|row| row.chunks(BLOCK));
            let rounded = words.chunks_exact_mut(BLOCK / GROUP).zip(&mut scales);
            for (x, (words, block_scale)) in blocks.zip(rounded) {
                let (scale, inverse) = scale(x);
                *block_scale = scale;
                let mut bytes = [0u8; BLOCK];
                for (byte, &x) in bytes.iter_mut().zip(x) {
                    *byte = round(x, inverse).wrapping_add(OFFSET) as u8;
                }
                for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
                    *word = u32::from_le_bytes(*bytes);
                }
            }
        });
        Self { blocks, words, scales }
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.scales.len() / self.blocks
    }

    /// A row, `[blocks, BLOCK / GROUP]`.
    pub fn words(&self, row: usize) -> &[u32] {
        let width = self.blocks * BLOCK / GROUP;
        &self.words[row * width..(row + 1) * width]
    }

    /// A row's scales, `[blocks]`.
    pub fn scales(&self, row: usize) -> &[f32] {
        &self.scales[row * self.blocks..(row + 1) * self.blocks]
    }

    /// # Panics
    /// When the panel is of another width, or there are not so many rows.
    pub fn check(&self, panel: Panel, rows: usize) {
        let blocks = self.blocks;
        let fits = panel.weights.len() == blocks * BLOCK * PANEL && panel.offsets.len() == blocks * PANEL;
        assert!(fits && rows == self.rows(), "a product of wrong shapes");
    }
}

/// `max |v| / 127`, and what a value is multiplied with to be rounded; zeros of a row of zeros. Where a value is not finite
/// the scale is not a number, so that what comes of the row is none either.
#[inline(always)]
fn scale(values: &[f32]) -> (f32, f32) {
    let larger = |a: f32, v: f32| if v.abs() > a { v.abs() } else { a };
    let mut lanes = [0.0f32; math::LANES];
    let (chunks, rest) = values.as_chunks::<{ math::LANES }>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    let largest = lanes.iter().chain(rest).fold(0.0, |a, &v| larger(a, v));
    // Zero of finite values.
    let spoiled = math::sum_by(values, |v| v * 0.0);
    if largest > 0.0 { (largest / 127.0 + spoiled, 127.0 / largest) } else { (spoiled, 0.0) }
}

/// The nearest whole number to `value * inverse`, ties to even.
#[inline(always)]
fn round(value: f32, inverse: f32) -> i32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    ((value * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// `sums[row] = sum_b s_x[row, b] sum_(k in b) q_x q_w`.
fn multiply(x: &Rounded, panel: Panel, sums: &mut [[f32; PANEL]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has the instructions.
        unsafe { super::avx512_int8::multiply(x, panel, sums) };
        return;
    }
    multiply_generic(x, panel, sums);
}

fn multiply_generic(x: &Rounded, panel: Panel, sums: &mut [[f32; PANEL]]) {
    x.check(panel, sums.len());
    vectorized!({
        for (row, sums) in sums.iter_mut().enumerate() {
            let mut totals = [0.0f32; PANEL];
            let words = x.words(row).chunks_exact(BLOCK / GROUP).zip(x.scales(row));
            let blocks = panel.weights.chunks_exact(BLOCK * PANEL).zip(panel.offsets.as_chunks::<PANEL>().0);
            for ((words, &scale), (weights, offsets)) in words.zip(blocks) {
                let mut whole = *offsets;
                for (word, weights) in words.iter().zip(weights.as_chunks::<{ PANEL * GROUP }>().0) {
                    let x = word.to_le_bytes().map(i32::from);
                    for (whole, w) in whole.iter_mut().zip(weights.as_chunks::<GROUP>().0) {
                        *whole += x.iter().zip(w).map(|(x, &w)| x * i32::from(w)).sum::<i32>();
                    }
                }
                for (total, whole) in totals.iter_mut().zip(whole) {
                    *total = (whole as f32).mul_add(scale, *total);
                }
            }
            *sums = totals;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.37).sin() * (1.0 + i as f32 * 0.01)).collect()
    }

    #[test]
    fn equals_the_product_of_what_was_rounded() {
        for (m, k, out) in [(1, 1, 1), (3, 71, 45), (8, 64, 32), (17, 130, 100), (40, 300, 400)] {
            let (x, w) = (values(m * k, 2.0), values(out * k, 5.0));
            let matrix = Int8::stack(&[&w[..k], &w[k..]], k);
            let mut y = vec![0.0; m * out];
            matrix.matmul(&x, &mut y);
            let whole = |v: &[f32]| {
                let scale = f64::from(v.iter().fold(0.0f32, |a, v| a.max(v.abs()))) / 127.0;
                (v.iter().map(|v| (f64::from(*v) / scale).round_ties_even()).collect::<Vec<f64>>(), scale)
            };
            let mut far = 0.0f64;
            for (x, y) in x.chunks_exact(k).zip(y.chunks_exact(out)) {
                let x: Vec<f64> = x
                    .chunks(BLOCK)
                    .flat_map(|block| {
                        let (q, scale) = whole(block);
                        q.into_iter().map(move |q| q * scale)
                    })
                    .collect();
                for (w, y) in w.chunks_exact(k).zip(y) {
                    let (w, sw) = whole(w);
                    let want = x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() * sw;
                    let size = x.iter().zip(&w).map(|(x, w)| (x * w).abs()).sum::<f64>() * sw;
                    far = far.max((f64::from(*y) - want).abs() / size.max(1e-9));
                }
            }
            // A value in the middle between two may go either way: one part in a hundred of one product.
            assert!(far < 2e-2 / (k as f64).sqrt(), "[{m}, {k}] x [{out}]: off by {far}");
        }
    }

    #[test]
    fn every_form_gives_the_same_sums_and_rows_ignore_each_other() {
        let (m, k, out) = (21, 177, 70);
        let (x, w) = (values(m * k, 2.0), values(out * k, 5.0));
        let matrix = Int8::stack(&[&w[..]], k);
        let rounded = Rounded::new(&x, k);
        let (mut fast, mut generic) = (vec![[0.0; PANEL]; m], vec![[0.0; PANEL]; m]);
        for panel in (0..out.div_ceil(PANEL)).map(|p| matrix.panel(p)) {
            multiply(&rounded, panel, &mut fast);
            multiply_generic(&rounded, panel, &mut generic);
            assert_eq!(fast, generic);
        }
        let (mut all, mut alone) = (vec![0.0; m * out], vec![0.0; out]);
        matrix.matmul(&x, &mut all);
        for (x, want) in x.chunks_exact(k).zip(all.chunks_exact(out)) {
            matrix.matmul(x, &mut alone);
            assert_eq!(alone, want);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_stays_so_and_a_row_of_zeros_is_zero() {
        let (k, w) = (9, values(9 * 40, 1.0));
        let matrix = Int8::stack(&[&w[..]], k);
        let mut y = vec![1.0; 3 * 40];
        let mut x = vec![0.0; 3 * k];
        (x[k], x[2 * k + 4]) = (f32::NAN, f32::INFINITY);
        matrix.matmul(&x, &mut y);
        assert!(y[..40].iter().all(|y| *y == 0.0) && y[40..].iter().all(|y| !y.is_finite()), "{y:?}");
    }
}
