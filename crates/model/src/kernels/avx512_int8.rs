//! The innermost loop of [`super::int8`] in AVX-512 VNNI intrinsics: sixty-four products an instruction.

use super::int8::GROUP;
use super::packed::PANEL;
use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Rows of a tile: with two registers a row, enough sums in flight to hide the latency of an instruction.
const ROWS: usize = 8;

/// `sums[row] = sum_g words[row, g] · panel[g]`, for `words: [rows, groups]`, four unsigned bytes each, and
/// `panel: [groups, PANEL, GROUP]` of signed ones.
///
/// # Panics
/// When `words` is not as many rows as `sums`.
#[target_feature(enable = "avx512f,avx512vnni")]
pub fn multiply(words: &[u32], panel: &[i8], sums: &mut [[i32; PANEL]]) {
    let groups = panel.len() / (PANEL * GROUP);
    assert!(panel.len() == groups * PANEL * GROUP && words.len() == sums.len() * groups, "a product of wrong shapes");
    let (tiles, rest) = sums.as_chunks_mut::<ROWS>();
    let (words, last) = words.split_at(tiles.len() * ROWS * groups);
    for (words, sums) in words.chunks_exact(ROWS * groups).zip(tiles) {
        tile(words, panel, sums);
    }
    for (words, sums) in last.chunks_exact(groups).zip(rest) {
        tile(words, panel, std::array::from_mut(sums));
    }
}

/// [`multiply`] of `R` rows.
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const R: usize>(words: &[u32], panel: &[i8], out: &mut [[i32; PANEL]; R]) {
    let groups = words.len() / R;
    let (words, w) = (words.as_ptr(), panel[..groups * PANEL * GROUP].as_ptr().cast::<__m512i>());
    let mut sums: [[__m512i; 2]; R] = [[_mm512_setzero_si512(); 2]; R];
    for group in 0..groups {
        // SAFETY: the panel was cut to `groups` times `PANEL * GROUP = 128` bytes, two registers.
        let (low, high) = unsafe {
            (_mm512_loadu_si512(w.wrapping_add(2 * group)), _mm512_loadu_si512(w.wrapping_add(2 * group + 1)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < R` and `group < groups`, so the word is one of `words: [R, groups]`.
            let word = _mm512_set1_epi32(unsafe { *words.wrapping_add(r * groups + group) }.cast_signed());
            sums[0] = _mm512_dpbusd_epi32(sums[0], word, low);
            sums[1] = _mm512_dpbusd_epi32(sums[1], word, high);
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        let at = out.as_mut_ptr();
        // SAFETY: a row of `out` has `PANEL = 32` numbers, two registers.
        unsafe {
            _mm512_storeu_si512(at.cast(), sums[0]);
            _mm512_storeu_si512(at.wrapping_add(16).cast(), sums[1]);
        }
    }
}
