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

/// A number that a moment is kept in.
pub(super) trait Kept: Copy + Send + Sync {
    fn load(self) -> f32;

    /// `chance` is uniform over all `u32`; its lower half decides.
    fn store(value: f32, chance: u32) -> Self;
}

impl Kept for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(value: f32, _: u32) -> Self {
        value
    }
}

impl Kept for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Of a finite value: the bits that are cut off, over `2^16`, are the odds of rounding away from zero.
    #[inline(always)]
    fn store(value: f32, chance: u32) -> Self {
        Self::from_bits((value.to_bits().saturating_add(chance & 0xffff) >> 16) as u16)
    }
}

/// A number for each place of a variable's update: Murmur3's finaliser, a bijection, of the place and the update's own number.
#[inline(always)]
pub(super) fn chance(update: u32, place: u32) -> u32 {
    let mut x = place ^ update;
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_by_chance_keeps_the_mean() {
        for value in [1.0f32, 1.001, -0.3337, 3e-9, 0.0] {
            let stored: Vec<f32> = (0..1 << 16).map(|place| bf16::store(value, chance(7, place)).load()).collect();
            let mean = stored.iter().map(|&x| f64::from(x)).sum::<f64>() / stored.len() as f64;
            assert!((mean - f64::from(value)).abs() <= 1e-4 * f64::from(value.abs()), "{value} became {mean}");
            let spacing = value.abs() / 128.0;
            assert!(stored.iter().all(|x| (x - value).abs() <= spacing));
        }
    }

    #[test]
    fn a_number_that_bf16_holds_stays() {
        for bits in [0u16, 0x3f80, 0xbf81, 0x0001, 0x7f7f] {
            let value = bf16::from_bits(bits);
            assert!((0..1000).all(|place| bf16::store(value.load(), chance(1, place)) == value));
        }
    }

    #[test]
    fn what_is_saved_is_what_is_kept() {
        let mut moment = Moment::Bf16([0.5f32, -1.25, 3e-20].map(bf16::from_f32).to_vec());
        let values = moment.values().into_owned();
        moment.set(values.clone());
        assert_eq!(moment.values(), values);
    }
}
