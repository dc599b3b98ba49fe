//! What the moments are kept in.
//!
//! In bf16 they take half the memory. Rounded to the nearest number a second moment would stand still: with `beta2 = 0.999` a step
//! moves it by a thousandth, bf16 has 256 numbers to a doubling. So they are rounded up or down by chance, with the odds
//! that leave their mean where it was (stochastic rounding); chance is a function of the place and the step.

use half::bf16;
use std::borrow::Cow;

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

    /// The values in f32, exactly.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(values),
            Self::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }

    /// Takes values that [`Self::values`] gave.
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
        let values = moment.values().into_owned();
        moment.set(values.clone());
        assert_eq!(moment.values(), values);
    }
}
