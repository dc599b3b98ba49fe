//! Sixteen by sixteen elements of four bytes transposed in registers.

use super::transpose::Word;
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Rows and columns.
const SIDE: usize = 16;

/// `to[c * to_stride + r] = from[r * from_stride + c]` for all `r, c < 16`.
///
/// # Safety
/// The CPU has AVX-512F.
///
/// # Panics
/// When a slice is too short.
#[target_feature(enable = "avx512f")]
pub unsafe fn square<T: Word>(from: &[T], from_stride: usize, to: &mut [T], to_stride: usize) {
    assert!((SIDE - 1) * from_stride + SIDE <= from.len() && (SIDE - 1) * to_stride + SIDE <= to.len());
    let mut rows = [_mm512_setzero_si512(); SIDE];
    for (r, row) in rows.iter_mut().enumerate() {
        // SAFETY: the assertion leaves sixteen elements, 64 bytes of a `Word`, at the start of each of the sixteen rows.
        *row = unsafe { _mm512_loadu_si512(from.as_ptr().add(r * from_stride).cast()) };
    }
    for (c, column) in transposed(rows).into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(c * to_stride).cast(), column) };
    }
}

#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // Within each 128-bit lane: 4x4 blocks. Afterwards `quads[4 g + c]` has, in lane `l`, column `4 l + c` of rows `4 g..4 g + 4`.
    let mut quads = [_mm512_setzero_si512(); SIDE];
    for g in 0..4 {
        let [a, b, c, d] = [rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quads[4 * g] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quads[4 * g + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quads[4 * g + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quads[4 * g + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // The lanes: a 4x4 transpose of them, for each column within a lane.
    let mut out = [_mm512_setzero_si512(); SIDE];
    for c in 0..4 {
        let [a, b, x, y] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (xy_even, xy_odd) = (_mm512_shuffle_i32x4::<0x88>(x, y), _mm512_shuffle_i32x4::<0xdd>(x, y));
        out[c] = _mm512_shuffle_i32x4::<0x88>(ab_even, xy_even);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(ab_odd, xy_odd);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(ab_even, xy_even);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, xy_odd);
    }
    out
}
