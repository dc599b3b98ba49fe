//! The innermost loop of [`super::product`] in NEON intrinsics, which every aarch64 CPU has: the same sums in the same order.
//!
//! There are thirty-two registers. Half a panel at a time, six rows have their sums in twenty-four of them, beside four of
//! weights and one of a row's value.

use super::packed::PANEL;
use super::product::{Columns, Input};
use std::arch::aarch64::{float32x4_t, vfmaq_n_f32, vld1q_f32, vst1q_f32};

/// Rows of a tile.
const ROWS: usize = 6;
/// Numbers a register holds.
const LANES: usize = 4;
/// Registers of weights.
const VECTORS: usize = 4;
/// Outputs of a tile.
const HALF: usize = VECTORS * LANES;

/// `y = x panel` for `x: [rows, k]`, however it lies, and `panel: [k, PANEL]`.
///
/// # Safety
/// `y` has as many rows as `x`, and nobody else reads or writes these outputs of them.
///
/// # Panics
/// When a slice is too short for its shape.
#[target_feature(enable = "neon")]
pub unsafe fn product(x: Input, panel: &[f32], y: Columns) {
    x.check(panel);
    let mut row = 0;
    while row < x.rows {
        for half in 0..y.width.div_ceil(HALF) {
            // SAFETY: `check` gives the shapes; the caller vouches for `y`.
            unsafe {
                match ROWS.min(x.rows - row) {
                    1 => tile::<1>(x, panel, y, row, half),
                    2 => tile::<2>(x, panel, y, row, half),
                    3 => tile::<3>(x, panel, y, row, half),
                    4 => tile::<4>(x, panel, y, row, half),
                    5 => tile::<5>(x, panel, y, row, half),
                    _ => tile::<ROWS>(x, panel, y, row, half),
                }
            }
        }
        row += ROWS;
    }
}

/// [`product`] of the `R` rows from `row` on, and of one half of the panel.
///
/// # Safety
/// `x` has these rows, of `panel.len() / PANEL` elements; for `y` as in [`product`].
#[target_feature(enable = "neon")]
unsafe fn tile<const R: usize>(x: Input, panel: &[f32], y: Columns, row: usize, half: usize) {
    let mut sums = [[0.0f32; HALF]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { y.read(row + r, half * HALF, sums) };
    }
    // SAFETY: as the caller vouches.
    unsafe { accumulate(x, panel, row, half, &mut sums) };
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { y.write(row + r, half * HALF, sums) };
    }
}

/// Adds to the sums of the `R` rows from `row` on. A function of its own, or the compiler keeps some of the sums on the stack.
///
/// # Safety
/// `x` has these rows, of `panel.len() / PANEL` elements.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn accumulate<const R: usize>(x: Input, panel: &[f32], row: usize, half: usize, out: &mut [[f32; HALF]; R]) {
    let k = panel.len() / PANEL;
    let (first, w) = (x.data.as_ptr().wrapping_add(row * x.row), panel.as_ptr().wrapping_add(half * HALF));
    let mut sums: [[float32x4_t; VECTORS]; R] = std::array::from_fn(|r| {
        // SAFETY: a row of `out` has as many numbers as `VECTORS` registers.
        unsafe { std::array::from_fn(|v| vld1q_f32(out[r].as_ptr().wrapping_add(v * LANES))) }
    });
    for depth in 0..k {
        let at = w.wrapping_add(depth * PANEL);
        // SAFETY: half a row `depth < k` of `panel` has `HALF = 16` elements.
        let weights: [float32x4_t; VECTORS] = unsafe { std::array::from_fn(|v| vld1q_f32(at.wrapping_add(v * LANES))) };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < R` and `depth < k`, so it is an element of `x`.
            let value = unsafe { *first.wrapping_add(r * x.row + depth * x.depth) };
            for v in 0..VECTORS {
                sums[v] = vfmaq_n_f32(sums[v], weights[v], value);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: a chunk has `LANES = 4` elements.
            unsafe { vst1q_f32(out.as_mut_ptr(), *sum) };
        }
    }
}
