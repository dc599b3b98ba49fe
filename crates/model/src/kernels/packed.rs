//! Weights packed once for decoding, and the product with a batch of rows.
//!
//! A `gemm` call packs its right side each time, which a decode step of a few dozen rows cannot pay for. Here it is
//! packed once per weight update, in panels of [`PANEL`] outputs, and each output is summed over `k` in order: a row's
//! result never depends on the other rows of the batch, which is what makes rollouts independent of batching.
//!
//! Products are in f32 or in bf16, see [`Compute`].

use super::product::{Product, ROWS};
use super::transpose::transposed;
use super::weights::Element;
use super::{packing, pairs, vectorized};
use half::bf16;
use rayon::prelude::*;

/// Outputs a panel: two AVX-512 registers, four AVX2 or eight NEON registers.
pub const PANEL: usize = 32;

/// Multiplications of one product from which on the threads share it.
const SHARED: usize = 1 << 22;

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32. Weights in bf16 are widened, a panel at a time.
    #[default]
    F32,
    /// Weights and inputs are rounded to bf16, and sums are f32: twice as fast where the CPU multiplies bf16.
    Bf16,
}

/// A matrix `w: [out, k]` packed for `y = x w^T`.
pub struct Packed {
    pub(super) out: usize,
    pub(super) k: usize,
    pub(super) panels: Panels,
}

/// Zeros beyond `out` and `k`.
pub(super) enum Panels {
    /// `[ceil(out / PANEL), k, PANEL]`.
    F32(Vec<f32>),
    /// The same, to be widened.
    Bf16(Vec<bf16>),
    /// `[ceil(out / PANEL), ceil(k / 2), PANEL]` of [`pairs`], for products in bf16.
    Pairs(Vec<u32>),
}

impl Packed {
    /// Packs row-major matrices `[out_i, k]`, stacked one under the other, widened to f32 where they are not.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let rows = packing::rows_of(parts, k);
        let widen = |row: &[T], wide: &mut [f32]| {
            vectorized!(wide.iter_mut().zip(row).for_each(|(wide, value)| *wide = value.widen()));
        };
        Self { out: rows.len(), k, panels: Panels::F32(packing::words(&rows, k, widen)) }
    }

    /// [`Self::stack`] that keeps bf16 weights in bf16.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack_narrow(parts: &[&[bf16]], k: usize) -> Self {
        let rows = packing::rows_of(parts, k);
        Self { out: rows.len(), k, panels: Panels::Bf16(packing::narrow(&rows, k)) }
    }

    /// [`Self::stack`] for products in bf16: weights are rounded to it where they are not.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack_pairs<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let rows = packing::rows_of(parts, k);
        let panels = packing::words(&rows, k.div_ceil(2), pairs::of_row);
        Self { out: rows.len(), k, panels: Panels::Pairs(panels) }
    }

    /// Packs `b: [k, n]`, row-major, for `y = x b`: the transpose of what [`Self::stack`] takes.
    ///
    /// # Panics
    /// When `b` is not whole rows of `n`.
    pub fn columns<T: Element>(b: &[T], n: usize, compute: Compute) -> Self {
        let panels = match compute {
            Compute::F32 => Panels::F32(packing::columns(b, n, |value| value.widen())),
            Compute::Bf16 => Panels::Pairs(packing::column_pairs(b, n)),
        };
        Self { out: n, k: b.len() / n, panels }
    }

    /// What products with it are computed in.
    pub fn compute(&self) -> Compute {
        match self.panels {
            Panels::Pairs(_) => Compute::Bf16,
            Panels::F32(_) | Panels::Bf16(_) => Compute::F32,
        }
    }

    /// Outputs of the product.
    pub fn out(&self) -> usize {
        self.out
    }

    /// `y[m, out] = x[m, k] w^T`, both row-major; over the thread pool where that helps.
    ///
    /// # Panics
    /// When `x` or `y` is not `m` rows.
    pub fn matmul(&self, x: &[f32], y: &mut [f32]) {
        self.product(Input::Rows(x), y, false);
    }

    /// `y += x w^T`: the sums of [`Self::matmul`] start from what `y` holds.
    ///
    /// # Panics
    /// As [`Self::matmul`].
    pub fn matmul_add(&self, x: &[f32], y: &mut [f32]) {
        self.product(Input::Rows(x), y, true);
    }

    /// `y[m, out] = x w^T` for `x` that lies transposed, `xt: [k, m]`: the same bits as of its transpose.
    ///
    /// # Panics
    /// When `xt` is not `k` rows, or `y` is not `m` rows.
    pub fn matmul_transposed(&self, xt: &[f32], y: &mut [f32]) {
        self.product(Input::Columns(xt), y, false);
    }

    /// `y += x w^T` for `xt: [k, m]`.
    ///
    /// # Panics
    /// As [`Self::matmul_transposed`].
    pub fn matmul_transposed_add(&self, xt: &[f32], y: &mut [f32]) {
        self.product(Input::Columns(xt), y, true);
    }

    /// [`Self::matmul`] on the calling thread of a matrix in pairs, of its first `outputs` alone: `y[m, outputs]`.
    ///
    /// # Panics
    /// When there are not so many, the matrix is not in pairs, or `x` or `y` is not `m` rows.
    pub fn matmul_first_outputs(&self, x: &[f32], y: &mut [f32], outputs: usize) {
        let m = x.len() / self.k;
        assert!(x.len() == m * self.k && y.len() == m * outputs && outputs <= self.out, "a product's rows differ");
        let narrow = pairs::of_rows(x, self.k);
        let product = Product::of_pairs(self, &narrow, y).of_first_outputs(outputs);
        // SAFETY: nobody else has `y`, which has `outputs` elements for every row.
        unsafe { product.panels(0..outputs.div_ceil(PANEL)) };
    }

    /// [`Self::matmul`] on the calling thread of a matrix in pairs with an input of which only the first `depth` numbers of
    /// each row are there, `x[m, depth]`: as if the others were zeros.
    ///
    /// # Panics
    /// When `depth` is odd and not all, the matrix is not in pairs, or `x` or `y` is not `m` rows.
    pub fn matmul_first_depth(&self, x: &[f32], y: &mut [f32], depth: usize) {
        let m = x.len() / depth;
        assert!(x.len() == m * depth && y.len() == m * self.out, "a product's rows differ");
        assert!(depth <= self.k && (depth.is_multiple_of(2) || depth == self.k), "half a pair of a packed matrix");
        let narrow = pairs::of_rows(x, depth);
        let product = Product::of_pairs(self, &narrow, y).of_first_depth(depth);
        // SAFETY: nobody else has `y`, which has `out` elements for every row.
        unsafe { product.panels(0..self.out.div_ceil(PANEL)) };
    }

    fn product(&self, input: Input, y: &mut [f32], add: bool) {
        let (Input::Rows(x) | Input::Columns(x)) = input;
        let m = x.len() / self.k;
        assert!(x.len() == m * self.k && y.len() == m * self.out, "a product's input or output is not whole rows");
        if m == 0 {
            return;
        }
        let turned: Vec<f32>;
        let narrow: Vec<u32>;
        let mut product = match (&self.panels, input) {
            (Panels::Pairs(_), Input::Rows(x)) => {
                narrow = pairs::of_rows(x, self.k);
                Product::of_pairs(self, &narrow, y)
            }
            (Panels::Pairs(_), Input::Columns(x)) => {
                narrow = transposed(&pairs::of_columns(x, m), m);
                Product::of_pairs(self, &narrow, y)
            }
            (_, Input::Rows(x)) => Product::new(self, x, y),
            (Panels::F32(_), Input::Columns(x)) if Product::takes_transposed() => Product::new(self, x, y).transposed(),
            (_, Input::Columns(x)) => {
                turned = transposed(x, m);
                Product::new(self, &turned, y)
            }
        };
        if add {
            product = product.added();
        }
        self.share(&product, m);
    }

    /// Shares a product of `m` rows out over the threads, where that helps: its panels and, of pairs, its rows.
    fn share(&self, product: &Product, m: usize) {
        let panels = self.out.div_ceil(PANEL);
        let blocks = if self.compute() == Compute::Bf16 { m.div_ceil(ROWS) } else { 1 };
        let tasks =
            if super::may_fork() && m * self.k * self.out >= SHARED { 16 * rayon::current_num_threads() } else { 1 };
        let share = panels.div_ceil(tasks.div_ceil(blocks));
        let shares = panels.div_ceil(share);
        let run = |task: usize| {
            let (block, start) = (task / shares, task % shares * share);
            let range = start..panels.min(start + share);
            // SAFETY: each task makes other panels' outputs of other rows, which are other elements of `y`.
            unsafe {
                match self.compute() {
                    Compute::Bf16 => product.of_rows(block * ROWS..m.min((block + 1) * ROWS)).panels(range),
                    Compute::F32 => product.panels(range),
                }
            }
        };
        if tasks > 1 {
            (0..blocks * shares).into_par_iter().for_each(run);
        } else {
            (0..blocks * shares).for_each(run);
        }
    }

    /// The packed matrix's bytes.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val(panels.as_slice()),
            Panels::Bf16(panels) => size_of_val(panels.as_slice()),
            Panels::Pairs(panels) => size_of_val(panels.as_slice()),
        }
    }
}

/// What a packed matrix is multiplied with.
#[derive(Clone, Copy)]
enum Input<'a> {
    /// `[m, k]`.
    Rows(&'a [f32]),
    /// `[k, m]`.
    Columns(&'a [f32]),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.37).sin()).collect()
    }

    #[test]
    fn packing_columns_is_packing_the_transpose() {
        let (k, n) = (21, 37);
        let b = values(k * n, 3.0);
        let x = values(2 * k, 1.0);
        let (mut direct, mut by_rows) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
        Packed::columns(&b, n, Compute::F32).matmul(&x, &mut direct);
        Packed::stack(&[transposed(&b, n).as_slice()], k).matmul(&x, &mut by_rows);
        assert_eq!(direct, by_rows);
    }

    #[test]
    fn a_transposed_input_gives_the_same_bits() {
        for (m, k, out) in [(1, 5, 3), (8, 40, 32), (13, 33, 70), (100, 300, 200)] {
            let (x, w) = (values(m * k, 2.0), values(out * k, 5.0));
            let packed = Packed::stack(&[&w[..]], k);
            let (mut want, mut got) = (vec![0.0; m * out], vec![0.0; m * out]);
            packed.matmul(&x, &mut want);
            packed.matmul_transposed(&transposed(&x, k), &mut got);
            assert_eq!(got, want, "[{m}, {k}] x [{out}]");
        }
    }

    #[test]
    fn narrow_weights_multiply_as_their_widened_selves() {
        let (m, k, out) = (11, 70, 45);
        let x = values(m * k, 2.0);
        let narrow: Vec<bf16> = values(out * k, 5.0).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
        let product = |packed: Packed| {
            let mut y = vec![0.0; m * packed.out()];
            packed.matmul(&x, &mut y);
            y
        };
        let want = product(Packed::stack(&[&wide[..]], k));
        assert_eq!(product(Packed::stack(&[&narrow[..]], k)), want);
        assert_eq!(product(Packed::stack_narrow(&[&narrow[..]], k)), want);
        let (b, narrow_b) = (&wide[..k * 9], &narrow[..k * 9]);
        assert_eq!(product(Packed::columns(narrow_b, 9, Compute::F32)), product(Packed::columns(b, 9, Compute::F32)));
        assert_eq!(2 * Packed::stack_narrow(&[&narrow[..]], k).bytes(), Packed::stack(&[&wide[..]], k).bytes());
    }

    #[test]
    fn products_in_bf16_round_the_input_and_nothing_else() {
        // Enough of them in the last for several threads.
        for (m, k, out) in [(1, 2, 1), (3, 71, 45), (8, 64, 32), (17, 129, 100), (40, 300, 400), (300, 1301, 70)] {
            let x = values(m * k, 2.0);
            let narrow: Vec<bf16> = values(out * k, 5.0).into_iter().map(bf16::from_f32).collect();
            let round: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            let (mut want, mut got) = (vec![0.0; m * out], vec![0.0; m * out]);
            Packed::stack_narrow(&[&narrow[..]], k).matmul(&round, &mut want);
            let packed = Packed::stack_pairs(&[&narrow[..]], k);
            packed.matmul(&x, &mut got);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "[{m}, {k}] x [{out}]: {got}, not {want}");
            }
            let mut alone = vec![0.0; out];
            packed.matmul(&x[(m - 1) * k..], &mut alone);
            assert_eq!(alone, got[(m - 1) * out..], "the last row depends on the batch");
        }
    }

    #[test]
    fn equals_a_plain_product_and_ignores_the_rest_of_the_batch() {
        for (m, k, out) in [(1, 8, 5), (7, 128, 100), (19, 33, 64), (3, 384, 31)] {
            let (x, w) = (values(m * k, 0.0), values(out * k, 9.0));
            let packed = Packed::stack(&[&w[..k], &w[k..]], k);
            let mut y = vec![0.0; m * out];
            packed.matmul(&x, &mut y);
            for i in 0..m {
                for j in 0..out {
                    let want: f64 = (0..k).map(|d| x[i * k + d] as f64 * w[j * k + d] as f64).sum();
                    let got = y[i * out + j];
                    assert!(
                        (got as f64 - want).abs() < 1e-5 * (1.0 + want.abs()),
                        "[{m}, {k}] x [{out}]: y[{i}, {j}] = {got}, not {want}"
                    );
                }
                let mut alone = vec![0.0; out];
                packed.matmul(&x[i * k..(i + 1) * k], &mut alone);
                assert_eq!(alone, y[i * out..(i + 1) * out], "row {i} depends on the batch");
            }
        }
    }
}
