//! What the moments are kept in.
//!
//! In bf16 they take half the memory. Rounded to the nearest number a second moment would stand still: with `beta2 = 0.999` a step
//! moves it by a thousandth, bf16 has 256 numbers to a doubling. So they are rounded up or down by chance, with the odds
//! that leave their mean where it was (stochastic rounding); chance is a function of the place and the step.

use super::stored::Numbers;
use half::bf16;

/// One moment of one variable.
#[derive(Debug)]
pub(super) enum Moment {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Moment {
    /// `count` zeros.
    pub fn zeros(count: usize, narrow: bool) -> Self {
        if narrow { Self::Bf16(vec![bf16::ZERO; count]) } else { Self::F32(vec![0.0; count]) }
    }

    /// The values as they are written.
    pub fn numbers(&self) -> Numbers<'_> {
        match self {
            Self::F32(values) => Numbers::F32(values.into()),
            Self::Bf16(values) => Numbers::Bf16(values.into()),
        }
    }

    /// Takes values that [`Self::numbers`] gave, widened.
    pub fn set(&mut self, values: Vec<f32>) {
        match self {
            Self::F32(old) => *old = values,
            Self::Bf16(old) => *old = values.into_iter().map(bf16::from_f32).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_what_is_kept() {
        let mut moment = Moment::Bf16([0.5f32, -1.25, 3e-20].map(bf16::from_f32).to_vec());
        let bytes = moment.numbers().widened();
        moment.set(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect());
        assert_eq!(moment.numbers().widened(), bytes);
        assert_eq!(bytes.len(), 12);
    }
}
