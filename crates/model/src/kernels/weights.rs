//! Weights as they lie in memory: f32, or bf16 that is widened when it is used, a part at a time.

use super::vectorized;
use half::bf16;
use std::borrow::Cow;
use std::ops::Range;

/// A number that is computed with in f32.
pub trait Element: Copy + Send + Sync {
    /// The same value in f32, exactly.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // bf16 is the upper half of f32.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Rows of `k` numbers rounded to the nearest bf16 (ties to even), each row padded by zeros to a multiple of `multiple`.
///
/// A NaN stays one, which a plain rounding of its bits might not leave it.
pub fn rounded(x: &[f32], k: usize, multiple: usize) -> Vec<bf16> {
    let padded = k.next_multiple_of(multiple);
    let mut out = vec![bf16::ZERO; x.len() / k * padded];
    vectorized!({
        for (out, x) in out.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            for (out, &x) in out.iter_mut().zip(x) {
                let bits = x.to_bits();
                let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
                let quiet = (bits >> 16) | 0x40;
                *out = bf16::from_bits(if x.is_nan() { quiet } else { nearest } as u16);
            }
        }
    });
    out
}

/// A row-major matrix of weights.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16.
    Bf16(&'a [bf16]),
}

impl<'a> Weights<'a> {
    /// Numbers held.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, if they are bf16.
    pub fn narrow(&self) -> Option<&'a [bf16]> {
        match self {
            Self::F32(_) => None,
            Self::Bf16(values) => Some(values),
        }
    }

    /// Some of the numbers in f32: borrowed where they are, else widened into memory of their own.
    ///
    /// # Panics
    /// When the range is not within the matrix.
    pub fn widened(&self, range: Range<usize>) -> Cow<'a, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(&values[range]),
            Self::Bf16(values) => {
                let values = &values[range];
                let mut wide = vec![0.0; values.len()];
                vectorized!(wide.iter_mut().zip(values).for_each(|(wide, narrow)| *wide = narrow.widen()));
                Cow::Owned(wide)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let values: Vec<f32> = (0..1 << 20).map(|i| f32::from_bits(i * 4093)).collect();
        let rows = rounded(&values, 4, 8);
        for (row, values) in rows.chunks_exact(8).zip(values.chunks_exact(4)) {
            for (&got, &value) in row.iter().zip(values) {
                let want = bf16::from_f32(value);
                assert!(got == want || got.is_nan() && want.is_nan(), "{value} became {got}, not {want}");
            }
            assert_eq!(row[4..], [bf16::ZERO; 4]);
        }
    }

    #[test]
    fn widening_is_exact() {
        let values: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|v| !v.is_nan()).collect();
        let wide = Weights::Bf16(&values).widened(0..values.len());
        assert!(values.iter().zip(wide.iter()).all(|(v, w)| v.to_f32().to_bits() == w.to_bits()));
    }
}
