//! The innermost loop of [`super::product`] in AVX2 and FMA intrinsics, for CPUs without AVX-512: the same sums in the same
//! order.
//!
//! There are sixteen registers. Half a panel at a time, six rows have their sums in twelve of them, beside two of weights
//! and one of a row's value: a multiply-add then loads two thirds of a register, which two load ports keep up with. One or
//! two rows take the whole panel at a time, to have more sums in flight. On a Zen 5 without its AVX-512: 0.98 of what
//! multiply-adds in registers reach for 64 rows, 0.89 for 8 and 0.5 for one, where the generic one reaches 0.47.

use super::packed::PANEL;
use super::product::{Columns, Input};
use std::arch::x86_64::{__m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};

/// Rows of a tile.
const ROWS: usize = 6;
/// Numbers a register holds.
const LANES: usize = 8;

/// Whether this CPU is for [`product`].
pub fn is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// `y = x panel` for `x: [rows, k]`, however it lies, and `panel: [k, PANEL]`.
///
/// # Safety
/// `y` has as many rows as `x`, and nobody else reads or writes these outputs of them.
///
/// # Panics
/// When a slice is too short for its shape.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn product(x: Input, panel: &[f32], y: Columns) {
    x.check(panel);
    let mut row = 0;
    while row < x.rows {
        // The last rows in two tiles of about the same size.
        let rows = match x.rows - row {
            left if left <= ROWS => left,
            left if left < 2 * ROWS => left.div_ceil(2),
            _ => ROWS,
        };
        // SAFETY: `check` gives the shapes; the caller vouches for `y`.
        unsafe {
            match rows {
                1 => tiles::<1, 4>(x, panel, y, row),
                2 => tiles::<2, 4>(x, panel, y, row),
                3 => tiles::<3, 2>(x, panel, y, row),
                4 => tiles::<4, 2>(x, panel, y, row),
                5 => tiles::<5, 2>(x, panel, y, row),
                _ => tiles::<ROWS, 2>(x, panel, y, row),
            }
        }
        row += rows;
    }
}

/// [`product`] of the `R` rows from `row` on, `V` registers of outputs at a time.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<const R: usize, const V: usize>(x: Input, panel: &[f32], y: Columns, row: usize) {
    for first in (0..y.width).step_by(V * LANES) {
        // SAFETY: as the caller vouches.
        unsafe { tile::<R, V>(x, panel, y, row, first) };
    }
}

/// [`product`] of the `R` rows from `row` on, and of `V` registers of the panel's outputs from `first` on.
///
/// # Safety
/// `x` has these rows, of `panel.len() / PANEL` elements; for `y` as in [`product`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(x: Input, panel: &[f32], y: Columns, row: usize, first: usize) {
    let k = panel.len() / PANEL;
    let (values, w) = (x.data.as_ptr().wrapping_add(row * x.row), panel.as_ptr().wrapping_add(first));
    let mut sums: [[__m256; V]; R] = std::array::from_fn(|r| {
        let mut start = [0.0f32; PANEL];
        // SAFETY: as the caller vouches; there are as many numbers as `V <= PANEL / LANES` registers have.
        unsafe {
            y.read(row + r, first, &mut start[..V * LANES]);
            std::array::from_fn(|v| _mm256_loadu_ps(start.as_ptr().wrapping_add(v * LANES)))
        }
    });
    for depth in 0..k {
        let at = w.wrapping_add(depth * PANEL);
        // SAFETY: row `depth < k` of `panel` has `PANEL` elements, of which these are some.
        let weights: [__m256; V] = unsafe { std::array::from_fn(|v| _mm256_loadu_ps(at.wrapping_add(v * LANES))) };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < R` and `depth < k`, so it is an element of `x`.
            let value = _mm256_set1_ps(unsafe { *values.wrapping_add(r * x.row + depth * x.depth) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_fmadd_ps(value, weights, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let mut out = [0.0f32; PANEL];
        for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: a chunk has `LANES = 8` elements.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *sum) };
        }
        // SAFETY: as the caller vouches.
        unsafe { y.write(row + r, first, &out[..V * LANES]) };
    }
}
