//! The innermost loops of [`super::product`] in AVX-512 intrinsics.
//!
//! The generic one computes the f32 sums in the same order, but the optimiser stores its accumulators on the stack at every
//! step; here they stay in registers. Each of these functions makes one panel's outputs of all rows.

use super::packed::PANEL;
use super::product::{Columns, Input};
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
};

/// Rows of a tile: with two registers a row, enough sums in flight to hide the latency of a multiply-add.
const ROWS: usize = 8;

impl Columns {
    /// What one row's sums start from.
    ///
    /// # Safety
    /// As for [`Self::store`].
    #[target_feature(enable = "avx512f")]
    unsafe fn start(self, row: usize) -> [__m512; 2] {
        if !self.add {
            return [_mm512_setzero_ps(); 2];
        }
        let mask = ((1u64 << self.width) - 1) as u32;
        // SAFETY: as in [`Self::store`].
        unsafe {
            let at = self.at.wrapping_add(row * self.stride);
            [_mm512_maskz_loadu_ps(mask as u16, at), _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16))]
        }
    }

    /// Writes one row's sums.
    ///
    /// # Safety
    /// `at` has that row, and nobody else reads or writes these outputs of it.
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, row: usize, sums: [__m512; 2]) {
        let mask = ((1u64 << self.width) - 1) as u32;
        // SAFETY: the masks leave `width` elements of the row, which the caller vouches for; `wrapping_add` since the
        // upper half of a narrow row, of which nothing is stored, may lie outside.
        unsafe {
            let at = self.at.wrapping_add(row * self.stride);
            _mm512_mask_storeu_ps(at, mask as u16, sums[0]);
            _mm512_mask_storeu_ps(at.wrapping_add(16), (mask >> 16) as u16, sums[1]);
        }
    }
}

/// A matrix of pairs in memory, rows `stride` apart.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    /// The pairs.
    pub data: &'a [u32],
    /// Rows of them.
    pub rows: usize,
    /// From one row to the next.
    pub stride: usize,
}

/// Calls `$tile::<R>(first row)` for all rows, by eights and then for the rest.
macro_rules! by_rows {
    ($rows:expr, |$first:ident, $R:ident| $tile:expr) => {
        let mut $first = 0;
        while $first < $rows {
            match ROWS.min($rows - $first) {
                1 => {
                    const $R: usize = 1;
                    $tile
                }
                2 => {
                    const $R: usize = 2;
                    $tile
                }
                3 => {
                    const $R: usize = 3;
                    $tile
                }
                4 => {
                    const $R: usize = 4;
                    $tile
                }
                5 => {
                    const $R: usize = 5;
                    $tile
                }
                6 => {
                    const $R: usize = 6;
                    $tile
                }
                7 => {
                    const $R: usize = 7;
                    $tile
                }
                _ => {
                    const $R: usize = ROWS;
                    $tile
                }
            }
            $first += ROWS;
        }
    };
}

/// `y = x panel` for `x: [rows, k]`, however it lies, and `panel: [k, PANEL]`.
///
/// # Safety
/// `y` has as many rows as `x`, and nobody else reads or writes these outputs of them.
///
/// # Panics
/// When a slice is too short for its shape.
#[target_feature(enable = "avx512f")]
pub unsafe fn product(x: Input, panel: &[f32], y: Columns) {
    x.check(panel);
    assert!(y.width <= PANEL);
    // SAFETY: `check` gives the shapes; the caller vouches for `y`.
    by_rows!(x.rows, |row, R| unsafe { tile::<R>(x, panel, y, row) });
}

/// [`product`] of the `R` rows from `row` on.
///
/// # Safety
/// `x` has these rows, of `panel.len() / PANEL` elements; for `y` as in [`product`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize>(x: Input, panel: &[f32], y: Columns, row: usize) {
    let k = panel.len() / PANEL;
    let (first, w) = (x.data.as_ptr().wrapping_add(row * x.row), panel.as_ptr());
    // SAFETY: as the caller vouches.
    let mut sums: [[__m512; 2]; R] = std::array::from_fn(|r| unsafe { y.start(row + r) });
    for depth in 0..k {
        // SAFETY: row `depth < k` of `panel` has `PANEL = 32` elements.
        let (low, high) = unsafe {
            (_mm512_loadu_ps(w.wrapping_add(depth * PANEL)), _mm512_loadu_ps(w.wrapping_add(depth * PANEL + 16)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < R` and `depth < k`, so it is an element of `x`.
            let value = _mm512_set1_ps(unsafe { *first.wrapping_add(r * x.row + depth * x.depth) });
            sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
            sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { y.store(row + r, *sums) };
    }
}

/// `y = x panel` in bf16 with f32 sums, for the first `k` pairs of each row of `x` and `panel: [k, PANEL]`: two
/// products a step.
///
/// # Safety
/// `y` has as many rows as `x`, and nobody else reads or writes these outputs of them.
///
/// # Panics
/// When a slice is not whole rows.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn product_bf16(x: Pairs, panel: &[u32], y: Columns) {
    let k = panel.len() / PANEL;
    let last = (x.rows.max(1) - 1) * x.stride + k;
    assert!(panel.len() == k * PANEL && (x.rows == 0 || last <= x.data.len()) && y.width <= PANEL);
    // SAFETY: the assertion gives the shapes; the caller vouches for `y`.
    by_rows!(x.rows, |row, R| unsafe { tile_bf16::<R>(x, panel, y, row) });
}

/// [`product_bf16`] of the `R` rows from `row` on.
///
/// # Safety
/// `x` has `R` rows of `panel.len() / PANEL`; for `y` as in [`product`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16<const R: usize>(x: Pairs, panel: &[u32], y: Columns, row: usize) {
    let k = panel.len() / PANEL;
    let (first, w) = (x.data.as_ptr().wrapping_add(row * x.stride), panel.as_ptr().cast::<__m512i>());
    // SAFETY: as the caller vouches.
    let mut sums: [[__m512; 2]; R] = std::array::from_fn(|r| unsafe { y.start(row + r) });
    for depth in 0..k {
        // SAFETY: row `depth < k` of `panel` has `PANEL = 32` pairs, two registers.
        let (low, high) = unsafe {
            (_mm512_loadu_si512(w.wrapping_add(2 * depth)), _mm512_loadu_si512(w.wrapping_add(2 * depth + 1)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < R` and `depth < k`, so it is a pair of `x`.
            let value = pair(_mm512_set1_epi32(unsafe { *first.wrapping_add(r * x.stride + depth) }.cast_signed()));
            sums[0] = _mm512_dpbf16_ps(sums[0], value, pair(low));
            sums[1] = _mm512_dpbf16_ps(sums[1], value, pair(high));
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { y.store(row + r, *sums) };
    }
}

/// The same bits as pairs of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pair(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes for which every bit pattern is valid.
    unsafe { std::mem::transmute(bits) }
}
