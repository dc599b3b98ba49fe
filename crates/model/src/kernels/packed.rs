//! Weights packed once for decoding, and the product with a batch of rows.
//!
//! A `gemm` call packs its right side each time, which a decode step of a few dozen rows cannot pay for. Here it is
//! packed once per weight update, in panels of [`PANEL`] outputs, and each output is summed over `k` in order: a row's
//! result never depends on the other rows of the batch, which is what makes rollouts independent of batching.
//!
//! Products are in f32 or in bf16, see [`Compute`].

use super::product::Product;
use super::weights::{Element, rounded};
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
    /// Of generation alone: weights and inputs are rounded to eight bits ([`super::int8`]); the head is in bf16.
    Int8,
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
    /// `[ceil(out / PANEL), ceil(k / 2), PANEL, 2]`, for products in bf16.
    Pairs(Vec<bf16>),
}

impl Packed {
    /// Packs row-major matrices `[out_i, k]`, stacked one under the other, widened to f32 where they are not.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let (out, panels) = stacked(parts, k, 1, |value| value.widen());
        Self { out, k, panels: Panels::F32(panels) }
    }

    /// [`Self::stack`] that keeps bf16 weights in bf16.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack_narrow(parts: &[&[bf16]], k: usize) -> Self {
        let (out, panels) = stacked(parts, k, 1, |value| value);
        Self { out, k, panels: Panels::Bf16(panels) }
    }

    /// [`Self::stack`] for products in bf16: weights are rounded to it where they are not.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack_pairs<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let (out, panels) = stacked(parts, k, 2, |value| bf16::from_f32(value.widen()));
        Self { out, k, panels: Panels::Pairs(panels) }
    }

    /// Packs `b: [k, n]`, row-major, for `y = x b`: the transpose of what [`Self::stack`] takes.
    ///
    /// # Panics
    /// When `b` is not whole rows of `n`.
    pub fn columns<T: Element>(b: &[T], n: usize) -> Self {
        let k = b.len() / n;
        assert_eq!(b.len(), k * n, "a packed matrix is not whole rows");
        let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        for (p, panel) in panels.chunks_exact_mut(k * PANEL).enumerate() {
            let columns = p * PANEL..n.min((p + 1) * PANEL);
            for (row, lanes) in b.chunks_exact(n).zip(panel.chunks_exact_mut(PANEL)) {
                for (lane, value) in lanes.iter_mut().zip(&row[columns.clone()]) {
                    *lane = value.widen();
                }
            }
        }
        Self { out: n, k, panels: Panels::F32(panels) }
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
        let m = x.len() / self.k;
        assert_eq!(x.len(), m * self.k);
        assert_eq!(y.len(), m * self.out);
        if m == 0 {
            return;
        }
        let narrow = match self.panels {
            Panels::Pairs(_) => rounded(x, self.k, 2),
            _ => Vec::new(),
        };
        self.share(&Product::new(self, x, &narrow, y), m);
    }

    /// `y[m, out] = x w^T` of an f32 matrix for `x` that lies transposed, `xt: [k, m]`: the same bits as of its transpose.
    ///
    /// # Panics
    /// When `xt` is not `k` rows, `y` is not `m` rows, or the matrix is not packed in f32.
    pub fn matmul_transposed(&self, xt: &[f32], y: &mut [f32]) {
        let m = xt.len() / self.k;
        assert!(xt.len() == m * self.k && y.len() == m * self.out && matches!(self.panels, Panels::F32(_)));
        if m == 0 {
            return;
        }
        if Product::takes_transposed() {
            self.share(&Product::new(self, xt, &[], y).transposed(), m);
        } else {
            self.matmul(&transpose(xt, m), y);
        }
    }

    /// Shares the panels of a product of `m` rows out over the threads, where that helps.
    fn share(&self, product: &Product, m: usize) {
        let panels = self.out.div_ceil(PANEL);
        let share = if super::may_fork() && m * self.k * self.out >= SHARED {
            panels.div_ceil(4 * rayon::current_num_threads())
        } else {
            panels
        };
        let run = |start: usize| {
            // SAFETY: each task makes other panels' outputs, which lie in other columns of `y`.
            unsafe { product.panels(start..panels.min(start + share)) }
        };
        if share < panels {
            (0..panels.div_ceil(share)).into_par_iter().for_each(|task| run(task * share));
        } else {
            run(0);
        }
    }

    /// The packed matrix's bytes.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val(panels.as_slice()),
            Panels::Bf16(panels) | Panels::Pairs(panels) => size_of_val(panels.as_slice()),
        }
    }
}

/// The rows of all parts by panels, `run` neighbours of `k` together, with their number.
fn stacked<T: Copy, U: Copy + Default>(
    parts: &[&[T]],
    k: usize,
    run: usize,
    convert: impl Fn(T) -> U,
) -> (usize, Vec<U>) {
    let rows: Vec<&[T]> = parts
        .iter()
        .flat_map(|part| {
            assert_eq!(part.len() % k, 0, "a packed part is not whole rows");
            part.chunks_exact(k)
        })
        .collect();
    let size = k.next_multiple_of(run) * PANEL;
    let mut panels = vec![U::default(); rows.len().div_ceil(PANEL) * size];
    for (panel, rows) in panels.chunks_exact_mut(size).zip(rows.chunks(PANEL)) {
        for (lane, row) in rows.iter().enumerate() {
            for (depth, &value) in row.iter().enumerate() {
                panel[(depth / run * PANEL + lane) * run + depth % run] = convert(value);
            }
        }
    }
    (rows.len(), panels)
}

/// `x: [rows, columns]`, row-major, with rows and columns exchanged.
///
/// # Panics
/// When `x` is not whole rows.
pub fn transpose(x: &[f32], columns: usize) -> Vec<f32> {
    /// Both sides of a block stay in the first-level cache.
    const BLOCK: usize = 16;
    let rows = x.len() / columns;
    assert_eq!(x.len(), rows * columns, "a matrix is not whole rows");
    let mut out = vec![0.0; x.len()];
    for column in (0..columns).step_by(BLOCK) {
        for row in (0..rows).step_by(BLOCK) {
            for c in column..columns.min(column + BLOCK) {
                for r in row..rows.min(row + BLOCK) {
                    out[c * rows + r] = x[r * columns + c];
                }
            }
        }
    }
    out
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
        Packed::columns(&b, n).matmul(&x, &mut direct);
        Packed::stack(&[transpose(&b, n).as_slice()], k).matmul(&x, &mut by_rows);
        assert_eq!(direct, by_rows);
        assert_eq!(transpose(&transpose(&b, n), k), b);
    }

    #[test]
    fn a_transposed_input_gives_the_same_bits() {
        for (m, k, out) in [(1, 5, 3), (8, 40, 32), (13, 33, 70), (100, 300, 200)] {
            let (x, w) = (values(m * k, 2.0), values(out * k, 5.0));
            let packed = Packed::stack(&[&w[..]], k);
            let (mut want, mut got) = (vec![0.0; m * out], vec![0.0; m * out]);
            packed.matmul(&x, &mut want);
            packed.matmul_transposed(&transpose(&x, k), &mut got);
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
        assert_eq!(product(Packed::columns(narrow_b, 9)), product(Packed::columns(b, 9)));
        assert_eq!(2 * Packed::stack_narrow(&[&narrow[..]], k).bytes(), Packed::stack(&[&wide[..]], k).bytes());
    }

    #[test]
    fn products_in_bf16_round_the_input_and_nothing_else() {
        // Enough of them in the last for several threads.
        for (m, k, out) in [(1, 2, 1), (3, 71, 45), (8, 64, 32), (17, 129, 100), (40, 300, 400)] {
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
