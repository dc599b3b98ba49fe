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
    fn widening_is_exact() {
        let values: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|v| !v.is_nan()).collect();
        let wide = Weights::Bf16(&values).widened(0..values.len());
        assert!(values.iter().zip(wide.iter()).all(|(v, w)| v.to_f32().to_bits() == w.to_bits()));
    }
}
