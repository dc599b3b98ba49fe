//! The innermost loop of [`super::int8`] in AVX-512 VNNI intrinsics: sixty-four products an instruction.

use super::int8::{BLOCK, GROUP, Panel, Rounded};
use super::packed::PANEL;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Rows of a tile: twelve registers of whole sums and twelve of scaled ones, beside two of weights.
const ROWS: usize = 6;

/// `sums[row] = sum_b s_x[row, b] sum_k q_x q_w` of all rows of `x`.
///
/// # Panics
/// When `x` and `panel` are of different widths or `sums` is not as many rows as `x`.
#[target_feature(enable = "avx512f,avx512vnni")]
pub fn multiply(x: &Rounded, panel: Panel, sums: &mut [[f32; PANEL]]) {
    x.check(panel, sums.len());
    let (tiles, rest) = sums.as_chunks_mut::<ROWS>();
    let first = tiles.len() * ROWS;
    for (i, sums) in tiles.iter_mut().enumerate() {
        tile(x, panel, i * ROWS, sums);
    }
    let (pairs, last) = rest.as_chunks_mut::<2>();
    for (i, sums) in pairs.iter_mut().enumerate() {
        tile(x, panel, first + 2 * i, sums);
    }
    if let [sums] = last {
        tile(x, panel, x.rows() - 1, std::array::from_mut(sums));
    }
}

/// [`multiply`] of the `R` rows from `row` on.
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const R: usize>(x: &Rounded, panel: Panel, row: usize, out: &mut [[f32; PANEL]; R]) {
    const GROUPS: usize = BLOCK / GROUP;
    let words: [&[u32]; R] = std::array::from_fn(|r| x.words(row + r));
    let scales: [&[f32]; R] = std::array::from_fn(|r| x.scales(row + r));
    let mut totals: [[__m512; 2]; R] = [[_mm512_setzero_ps(); 2]; R];
    let blocks = panel.weights.chunks_exact(BLOCK * PANEL).zip(panel.offsets.as_chunks::<PANEL>().0);
    for (block, (weights, offsets)) in blocks.enumerate() {
        // SAFETY: there are `PANEL = 32` offsets of a block, two registers.
        let start = unsafe {
            [_mm512_loadu_si512(offsets.as_ptr().cast()), _mm512_loadu_si512(offsets.as_ptr().wrapping_add(16).cast())]
        };
        let mut sums: [[__m512i; 2]; R] = [start; R];
        let w = weights.as_ptr().cast::<__m512i>();
        let words: [&[u32]; R] = std::array::from_fn(|r| &words[r][block * GROUPS..(block + 1) * GROUPS]);
        for group in 0..GROUPS {
            // SAFETY: a block's weights are `GROUPS` times `PANEL * GROUP = 128` bytes, two registers.
            let (low, high) = unsafe {
                (_mm512_loadu_si512(w.wrapping_add(2 * group)), _mm512_loadu_si512(w.wrapping_add(2 * group + 1)))
            };
            for (sums, words) in sums.iter_mut().zip(words) {
                // SAFETY: a row has `GROUPS` words of a block.
                let word = _mm512_set1_epi32(unsafe { *words.as_ptr().wrapping_add(group) }.cast_signed());
                sums[0] = _mm512_dpbusd_epi32(sums[0], word, low);
                sums[1] = _mm512_dpbusd_epi32(sums[1], word, high);
            }
        }
        for ((totals, sums), scales) in totals.iter_mut().zip(sums).zip(scales) {
            let scale = _mm512_set1_ps(scales[block]);
            totals[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[0]), scale, totals[0]);
            totals[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[1]), scale, totals[1]);
        }
    }
    for (totals, out) in totals.iter().zip(out) {
        // SAFETY: a row of `out` has `PANEL = 32` numbers, two registers.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), totals[0]);
            _mm512_storeu_ps(out.as_mut_ptr().wrapping_add(16), totals[1]);
        }
    }
}
