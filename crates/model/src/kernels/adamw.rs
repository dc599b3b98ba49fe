//! AdamW's update of some numbers, their moments kept in f32 or in bf16 (Loshchilov and Hutter 2019, arXiv 1711.05101).

use super::vectorized;
use crate::ops::adamw::Factors;
use half::bf16;

/// Numbers of one variable, from place `first_place` on, with their moments.
pub struct Numbers<'a, A, B, G> {
    /// The numbers, which are updated.
    pub values: &'a mut [f32],
    /// Means of the gradients.
    pub first: &'a mut [A],
    /// Means of their squares.
    pub second: &'a mut [B],
    /// The gradients.
    pub gradient: &'a [G],
    /// Of the first of them in its variable.
    pub first_place: u32,
}

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, `p = p keep - step_size m / (sqrt(v) second_scale + epsilon)`.
/// `update` is the number of this update of this variable, for [`chance`].
pub fn update<A: Kept, B: Kept, G: Kept>(numbers: Numbers<A, B, G>, f: &Factors, update: u32) {
    let Numbers { values, first, second, gradient, first_place } = numbers;
    vectorized!({
        let moments = first.iter_mut().zip(second.iter_mut());
        for (((value, (first, second)), gradient), place) in
            values.iter_mut().zip(moments).zip(gradient).zip(first_place..)
        {
            let gradient = gradient.load() * f.grad_scale;
            let m = first.load() * f.beta1 + gradient * f.one_minus_beta1;
            let v = second.load() * f.beta2 + gradient * gradient * f.one_minus_beta2;
            let chance = chance(update, place);
            *first = A::store(m, chance);
            *second = B::store(v, chance >> 16);
            let divisor = v.sqrt() * f.second_scale + f.epsilon;
            *value = *value * f.keep - m / divisor * f.step_size;
        }
    });
}

/// A number that a moment is kept in.
pub trait Kept: Copy + Send + Sync {
    /// The same value, exactly.
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
pub fn chance(update: u32, place: u32) -> u32 {
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
}
