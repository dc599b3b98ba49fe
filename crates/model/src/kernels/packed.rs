//! Weights packed once for decoding, and the product with a batch of rows.
//!
//! A `gemm` call packs its right side each time, which a decode step of a few dozen rows cannot pay for. Here it is
//! packed once per weight update, in panels of [`PANEL`] outputs, and each output is summed over `k` in order: a row's
//! result never depends on the other rows of the batch, which is what makes rollouts independent of batching.
//!
//! Weights in bf16 may stay so: a panel is widened when its turn comes, and the product is that of the widened weights.

use super::vectorized;
use super::weights::Element;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

/// Outputs a panel: two AVX-512 registers, four AVX2 or eight NEON registers.
pub const PANEL: usize = 32;

/// A matrix `w: [out, k]` packed for `y = x w^T`.
pub struct Packed {
    out: usize,
    k: usize,
    panels: Panels,
}

/// `[ceil(out / PANEL), k, PANEL]`, zeros beyond `out`.
enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Packed {
    /// Packs row-major matrices `[out_i, k]`, stacked one under the other, widened to f32 where they are not.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack<T: Element>(parts: &[&[T]], k: usize) -> Self {
        let (out, panels) = stacked(parts, k, |value| value.widen());
        Self { out, k, panels: Panels::F32(panels) }
    }

    /// [`Self::stack`] that keeps bf16 weights in bf16.
    ///
    /// # Panics
    /// When a matrix is not a whole number of rows of `k`.
    pub fn stack_narrow(parts: &[&[bf16]], k: usize) -> Self {
        let (out, panels) = stacked(parts, k, |value| value);
        Self { out, k, panels: Panels::Bf16(panels) }
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

    /// `y[m, out] = x[m, k] w^T`, both row-major, on the calling thread.
    ///
    /// # Panics
    /// When `x` or `y` is not `m` rows.
    pub fn matmul(&self, x: &[f32], y: &mut [f32]) {
        let m = x.len() / self.k;
        assert_eq!(x.len(), m * self.k);
        assert_eq!(y.len(), m * self.out);
        Arch::new().dispatch(Product { w: self, x, y });
    }

    /// The packed matrix's bytes.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val(panels.as_slice()),
            Panels::Bf16(panels) => size_of_val(panels.as_slice()),
        }
    }
}

/// The rows of all parts by panels, with their number.
fn stacked<T: Copy, U: Copy + Default>(parts: &[&[T]], k: usize, convert: impl Fn(T) -> U) -> (usize, Vec<U>) {
    let rows: Vec<&[T]> = parts
        .iter()
        .flat_map(|part| {
            assert_eq!(part.len() % k, 0, "a packed part is not whole rows");
            part.chunks_exact(k)
        })
        .collect();
    let mut panels = vec![U::default(); rows.len().div_ceil(PANEL) * k * PANEL];
    for (panel, rows) in panels.chunks_exact_mut(k * PANEL).zip(rows.chunks(PANEL)) {
        for (lane, row) in rows.iter().enumerate() {
            for (depth, &value) in row.iter().enumerate() {
                panel[depth * PANEL + lane] = convert(value);
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

struct Product<'a> {
    w: &'a Packed,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Rows a tile: as many accumulators as the registers hold, beside the panel's row and a broadcast.
        match S::F32_LANES {
            16 => self.run::<S, 8, 2>(simd),
            8 => self.run::<S, 3, 4>(simd),
            4 => self.run::<S, 3, 8>(simd),
            _ => self.run_scalar(),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(mut self, simd: S) {
        self.each_panel(
            #[inline(always)]
            |product, panel, columns| product.panel::<S, ROWS, VECTORS>(simd, panel, columns),
        );
    }

    /// Calls `work(self, panel, columns)` for each panel, in f32.
    #[inline(always)]
    fn each_panel(&mut self, mut work: impl FnMut(&mut Self, &[f32], std::ops::Range<usize>)) {
        let Packed { out, k, ref panels } = *self.w;
        let columns = |p: usize| p * PANEL..out.min((p + 1) * PANEL);
        match panels {
            Panels::F32(panels) => {
                for (p, panel) in panels.chunks_exact(k * PANEL).enumerate() {
                    work(self, panel, columns(p));
                }
            }
            Panels::Bf16(panels) => {
                let mut wide = vec![0.0; k * PANEL];
                for (p, panel) in panels.chunks_exact(k * PANEL).enumerate() {
                    vectorized!(wide.iter_mut().zip(panel).for_each(|(w, n)| *w = n.widen()));
                    work(self, &wide, columns(p));
                }
            }
        }
    }

    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        panel: &[f32],
        columns: std::ops::Range<usize>,
    ) {
        let Packed { out, k, .. } = *self.w;
        let mut row = 0;
        let rows = self.x.len() / k;
        while row + ROWS <= rows {
            let x = &self.x[row * k..(row + ROWS) * k];
            let y = &mut self.y[row * out..(row + ROWS) * out];
            tile::<S, ROWS, VECTORS>(simd, x, panel, y, columns.clone());
            row += ROWS;
        }
        while row < rows {
            let x = &self.x[row * k..(row + 1) * k];
            let y = &mut self.y[row * out..(row + 1) * out];
            tile::<S, 1, VECTORS>(simd, x, panel, y, columns.clone());
            row += 1;
        }
    }

    #[inline(always)]
    fn run_scalar(mut self) {
        let Packed { out, k, .. } = *self.w;
        self.each_panel(|product, panel, columns| {
            for (x, y) in product.x.chunks_exact(k).zip(product.y.chunks_exact_mut(out)) {
                let mut acc = [0.0f32; PANEL];
                for (&x, w) in x.iter().zip(panel.chunks_exact(PANEL)) {
                    for (acc, &w) in acc.iter_mut().zip(w) {
                        *acc += x * w;
                    }
                }
                y[columns.clone()].copy_from_slice(&acc[..columns.len()]);
            }
        });
    }
}

/// `y[:, columns] = x panel` for `ROWS` rows, all sums held in registers.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    x: &[f32],
    panel: &[f32],
    y: &mut [f32],
    columns: std::ops::Range<usize>,
) {
    let k = x.len() / ROWS;
    let out = y.len() / ROWS;
    let (weights, _) = S::as_simd_f32s(panel);
    let weights = &weights[..k * VECTORS];
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &x[r * k..(r + 1) * k]);
    let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (depth, w) in weights.chunks_exact(VECTORS).enumerate() {
        for r in 0..ROWS {
            // SAFETY: `weights` was cut to `k * VECTORS`, so `depth < k`, and each row was cut to `k` elements. Eight
            // bounds checks a step cost more than its sixteen multiply-adds.
            let value = simd.splat_f32s(unsafe { *rows[r].get_unchecked(depth) });
            for v in 0..VECTORS {
                acc[r][v] = simd.mul_add_f32s(value, w[v], acc[r][v]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let mut full = [0.0f32; PANEL];
        let (vectors, _) = S::as_mut_simd_f32s(&mut full);
        vectors[..VECTORS].copy_from_slice(acc);
        let width = columns.len();
        y[r * out + columns.start..r * out + columns.end].copy_from_slice(&full[..width]);
    }
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
