//! Matrices rounded to bf16 for products of pairs: two neighbours of the summed index lie in one `u32`, the first in its
//! lower half.

use super::weights::Element;
use super::{for_each_chunk, vectorized};

/// Rows or columns that one task rounds or moves.
const TASK: usize = 64;

/// The nearest bf16 (ties to even), as the upper half of an f32's bits. A NaN stays one, which a plain rounding of its bits
/// might not leave it.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (if x.is_nan() { bits | 0x40_0000 } else { nearest }) & 0xffff_0000
}

#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    rounded(second) | rounded(first) >> 16
}

/// Both numbers of a pair, exactly.
#[inline(always)]
pub fn both(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// One row `[k]` -> `[ceil(k / 2)]`; a zero beyond an odd end.
pub fn of_row<T: Element>(x: &[T], out: &mut [u32]) {
    vectorized!(row(x, out));
}

#[inline(always)]
fn row<T: Element>(x: &[T], out: &mut [u32]) {
    let pairs = x.chunks_exact(2);
    if let ([last], Some(out)) = (pairs.remainder(), out.last_mut()) {
        *out = pair(last.widen(), 0.0);
    }
    for (out, x) in out.iter_mut().zip(pairs) {
        *out = pair(x[0].widen(), x[1].widen());
    }
}

/// `x: [rows, k]` -> `[rows, ceil(k / 2)]`.
pub fn of_rows<T: Element>(x: &[T], k: usize) -> Vec<u32> {
    let pairs = k.div_ceil(2);
    let mut out = vec![0; x.len() / k * pairs];
    for_each_chunk(&mut out, TASK * pairs, |i, out| {
        let x = &x[i * TASK * k..];
        vectorized!(out.chunks_exact_mut(pairs).zip(x.chunks_exact(k)).for_each(
            #[inline(always)]
            |(out, x)| row(x, out)
        ));
    });
    out
}

/// `x: [k, columns]` -> `[ceil(k / 2), columns]`: pairs of rows.
pub fn of_columns<T: Element>(x: &[T], columns: usize) -> Vec<u32> {
    let rows = x.len() / columns;
    let mut out = vec![0; rows.div_ceil(2) * columns];
    for_each_chunk(&mut out, TASK * columns, |i, out| {
        let x = &x[2 * i * TASK * columns..];
        vectorized!(out.chunks_exact_mut(columns).zip(x.chunks(2 * columns)).for_each(
            #[inline(always)]
            |(out, x)| two_rows(x, out)
        ));
    });
    out
}

/// Two rows, one behind the other, or one with zeros for the second.
#[inline(always)]
fn two_rows<T: Element>(x: &[T], out: &mut [u32]) {
    if x.len() < 2 * out.len() {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = pair(x.widen(), 0.0));
        return;
    }
    let (first, second) = x.split_at(out.len());
    for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
        *out = pair(a.widen(), b.widen());
    }
}

#[cfg(test)]
mod tests {
    use super::super::transpose::transposed;
    use super::*;
    use half::bf16;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let values: Vec<f32> = (0..1 << 20).map(|i| f32::from_bits(i * 4093)).collect();
        for (pair, values) in of_rows(&values, 4).into_iter().zip(values.chunks_exact(2)) {
            for (got, &value) in both(pair).into_iter().zip(values) {
                let want = bf16::from_f32(value).to_f32();
                assert!(got == want || got.is_nan() && want.is_nan(), "{value} became {got}, not {want}");
            }
        }
    }

    #[test]
    fn odd_ends_are_filled_with_zeros() {
        let x: Vec<f32> = (1..=15).map(|x| x as f32).collect();
        let rows: Vec<f32> = of_rows(&x[..10], 5).into_iter().flat_map(both).collect();
        assert_eq!(rows, [1., 2., 3., 4., 5., 0., 6., 7., 8., 9., 10., 0.]);
        let columns: Vec<f32> = of_columns(&x[..6], 2).into_iter().flat_map(both).collect();
        assert_eq!(columns, [1., 3., 2., 4., 5., 0., 6., 0.]);
    }

    #[test]
    fn both_ways_to_the_same_pairs() {
        for (k, columns) in [(1, 1), (7, 3), (64, 33), (131, 200), (500, 17)] {
            let x = values(k * columns);
            let turned: Vec<f32> = (0..k * columns).map(|i| x[i % k * columns + i / k]).collect();
            assert_eq!(transposed(&of_columns(&x, columns), columns), of_rows(&turned, k), "[{k}, {columns}]");
        }
    }
}
