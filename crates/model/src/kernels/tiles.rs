//! Products of strided matrices on the calling thread, of which the right one is packed once for several of them: what
//! attention multiplies.
//!
//! [`gemm()`] packs both sides in every call, which took as long as the multiplications of attention's narrow matrices. The sums
//! are the same to the bit, for up to 512 terms: in order, and added to what is there at their end.

use super::gemm::{Dims, Mat, Write, gemm};
use super::packed::PANEL;
use super::product::{Columns, Input, multiply};
use super::transpose::{Block, transpose};
use super::vectorized;

/// Rows whose sums are held before they are added to what is there.
const ROWS: usize = 64;

/// Outputs up to which a product is left to [`gemm()`], whose loops are made for small ones.
const SMALL: usize = 256;

/// A matrix `b: [k, n]`, as it lies and in panels of [`PANEL`] columns.
pub struct Tiles<'a> {
    b: Mat<'a>,
    k: usize,
    /// `[ceil(n / PANEL), k, PANEL]`, zeros beyond `n`.
    panels: Vec<f32>,
}

impl<'a> Tiles<'a> {
    /// Packs `b: [k, n]`, of which the rows or the columns lie without gaps.
    ///
    /// # Panics
    /// When `b` is too short, or neither do.
    pub fn new(b: Mat<'a>, k: usize, n: usize) -> Self {
        assert!(b.row_stride == 1 || b.col_stride == 1, "a matrix with gaps both ways");
        let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        for (p, panel) in panels.chunks_exact_mut((k * PANEL).max(1)).enumerate() {
            let lanes = PANEL.min(n - p * PANEL);
            let data = &b.data[p * PANEL * b.col_stride..];
            if b.col_stride == 1 {
                for (row, to) in data.chunks(b.row_stride).zip(panel.chunks_exact_mut(PANEL)) {
                    to[..lanes].copy_from_slice(&row[..lanes]);
                }
            } else {
                transpose(Block { data, stride: b.col_stride, rows: lanes, columns: k }, panel, PANEL);
            }
        }
        Self { b, k, panels }
    }

    /// `c = a b` or `c += a b` of the first `dims.k` rows and the first `dims.n` columns of `b`; `c` is row-major with rows
    /// `c_stride` apart.
    ///
    /// # Panics
    /// When a matrix is shorter than `dims` and its strides ask for.
    pub fn product(&self, c: &mut [f32], c_stride: usize, a: Mat, dims: Dims, write: Write) {
        let Dims { m, n, k } = dims;
        if m <= 2 || k <= 2 || m * n <= SMALL {
            return gemm(c, c_stride, a, self.b, dims, write);
        }
        assert!(
            k <= self.k && n.div_ceil(PANEL) * self.k * PANEL <= self.panels.len(),
            "a product beyond what is packed"
        );
        assert!(n <= c_stride && (m - 1) * c_stride + n <= c.len(), "a product's output is too short");
        for (p, panel) in self.panels.chunks_exact(self.k * PANEL).take(n.div_ceil(PANEL)).enumerate() {
            let (panel, width) = (&panel[..k * PANEL], PANEL.min(n - p * PANEL));
            match write {
                Write::Set => {
                    let input = Input { data: a.data, rows: m, row: a.row_stride, depth: a.col_stride };
                    let at = c[p * PANEL..].as_mut_ptr();
                    // SAFETY: `c` is borrowed mutably and has `width` elements of these columns in each of `m` rows.
                    unsafe { multiply(input, panel, Columns { at, stride: c_stride, width, add: false }) };
                }
                Write::Add => {
                    for first in (0..m).step_by(ROWS) {
                        let rows = ROWS.min(m - first);
                        let data = &a.data[first * a.row_stride..];
                        let input = Input { data, rows, row: a.row_stride, depth: a.col_stride };
                        add(input, panel, &mut c[first * c_stride + p * PANEL..], c_stride, width);
                    }
                }
            }
        }
    }
}

/// Adds the product of up to [`ROWS`] rows with one panel to `width` elements of as many rows of `c`.
fn add(input: Input, panel: &[f32], c: &mut [f32], c_stride: usize, width: usize) {
    let mut sums = [0.0f32; ROWS * PANEL];
    let columns = Columns { at: sums.as_mut_ptr(), stride: PANEL, width: PANEL, add: false };
    assert!(input.rows <= ROWS);
    // SAFETY: `sums` has `PANEL` elements for each of up to `ROWS` rows, and nobody else has it.
    unsafe { multiply(input, panel, columns) };
    vectorized!({
        for (c, sums) in c.chunks_mut(c_stride).zip(sums.chunks_exact(PANEL)).take(input.rows) {
            c[..width].iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.37).sin()).collect()
    }

    /// Every way that a side can lie, whole and of the first rows and columns of `b` alone, set and added.
    #[test]
    fn equals_gemm() {
        for (m, n, k) in [(1, 40, 9), (3, 5, 2), (17, 16, 33), (64, 70, 32), (130, 32, 64), (64, 65, 300)] {
            let (a, b) = (values(m * (k + 3), 1.0), values((k + 5) * (n + 40), 2.0));
            let lies = |data, rows: usize, columns: usize, turned: bool| {
                if turned { Mat::rows(data, rows).t() } else { Mat::rows(data, columns) }
            };
            for (turned_a, turned_b, write) in [
                (false, false, Write::Set),
                (true, false, Write::Add),
                (false, true, Write::Set),
                (true, true, Write::Add),
            ] {
                let (a, b) = (lies(&a, m, k + 3, turned_a), lies(&b, k + 5, n + 40, turned_b));
                let tiles = Tiles::new(b, k + 5, n + 40);
                let (mut got, mut want) = (vec![0.5; m * (n + 1)], vec![0.5; m * (n + 1)]);
                let dims = Dims { m, n, k };
                tiles.product(&mut got, n + 1, a, dims, write);
                gemm(&mut want, n + 1, a, b, dims, write);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let near = (got - want).abs() <= 1e-5 * (1.0 + want.abs());
                    assert!(near, "{m} {n} {k} {turned_a} {turned_b}: element {i} is {got}, not {want}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "beyond what is packed")]
    fn refuses_more_than_is_packed() {
        let b = values(64 * 64, 1.0);
        let tiles = Tiles::new(Mat::rows(&b, 64), 32, 64);
        tiles.product(&mut [0.0; 64 * 64], 64, Mat::rows(&b, 64), Dims { m: 64, n: 64, k: 33 }, Write::Set);
    }
}
