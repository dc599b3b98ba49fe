//! The two kinds of real numbers that trees are evaluated in.

use std::cell::RefCell;

use astro_float_num::{BigFloat, Consts, RoundingMode};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

/// Bits of a [`Precise`].
pub(super) const PRECISION: usize = 320;
/// Largest power of two that a precise value may reach, either way: reducing an angle takes time by its size.
const MAX_EXPONENT: i32 = 2048;

/// A real number of fixed precision. Operations without a result give a value that is not finite.
pub(in crate::math) trait Real: Clone {
    fn of(value: f64) -> Self;
    fn ratio(value: &BigRational) -> Self;
    fn pi() -> Self;
    fn plus(&self, other: &Self) -> Self;
    fn minus(&self, other: &Self) -> Self;
    fn times(&self, other: &Self) -> Self;
    fn over(&self, other: &Self) -> Self;
    fn sqrt(&self) -> Self;
    fn ln(&self) -> Self;
    fn exp(&self) -> Self;
    fn sin(&self) -> Self;
    fn cos(&self) -> Self;
    fn atan(&self) -> Self;
    fn asin(&self) -> Self;
    fn floor(&self) -> Self;
    /// Whether it is exactly zero.
    fn is_zero(&self) -> bool;
    fn is_negative(&self) -> bool;
    /// Whether it is a number of a usable size.
    fn is_usable(&self) -> bool;
    /// The binary exponent; far below every other for zero.
    fn magnitude(&self) -> i32;
    /// Digits that must remain of a sum, in bits, for it to have a value.
    fn lost_bits() -> i32;
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn ratio(value: &BigRational) -> Self {
        value.to_f64().unwrap_or(f64::NAN)
    }
    fn pi() -> Self {
        std::f64::consts::PI
    }
    fn plus(&self, other: &Self) -> Self {
        self + other
    }
    fn minus(&self, other: &Self) -> Self {
        self - other
    }
    fn times(&self, other: &Self) -> Self {
        self * other
    }
    fn over(&self, other: &Self) -> Self {
        self / other
    }
    fn sqrt(&self) -> Self {
        f64::sqrt(*self)
    }
    fn ln(&self) -> Self {
        f64::ln(*self)
    }
    fn exp(&self) -> Self {
        f64::exp(*self)
    }
    fn sin(&self) -> Self {
        f64::sin(*self)
    }
    fn cos(&self) -> Self {
        f64::cos(*self)
    }
    fn atan(&self) -> Self {
        f64::atan(*self)
    }
    fn asin(&self) -> Self {
        f64::asin(*self)
    }
    fn floor(&self) -> Self {
        f64::floor(*self)
    }
    fn is_zero(&self) -> bool {
        *self == 0.0
    }
    fn is_negative(&self) -> bool {
        *self < 0.0
    }
    fn is_usable(&self) -> bool {
        self.is_finite()
    }
    fn magnitude(&self) -> i32 {
        if *self == 0.0 { i32::MIN / 2 } else { self.abs().log2().floor() as i32 + 1 }
    }
    fn lost_bits() -> i32 {
        20
    }
}

thread_local! {
    static CONSTANTS: RefCell<Option<Consts>> = RefCell::new(Consts::new().ok());
}

fn with_constants(compute: impl FnOnce(&mut Consts) -> BigFloat) -> Precise {
    CONSTANTS.with_borrow_mut(|constants| match constants {
        Some(constants) => Precise(compute(constants)),
        None => Precise(BigFloat::nan(None)),
    })
}

const ROUND: RoundingMode = RoundingMode::None;

/// A number of [`PRECISION`] bits.
#[derive(Debug, Clone)]
pub(in crate::math) struct Precise(BigFloat);

impl Precise {
    fn whole(value: &BigInt) -> Self {
        let word = BigFloat::from_f64(18_446_744_073_709_551_616.0, PRECISION);
        let mut total = BigFloat::from_f64(0.0, PRECISION);
        for digit in value.magnitude().to_u64_digits().into_iter().rev() {
            total = total.mul(&word, PRECISION, ROUND).add(&BigFloat::from_u64(digit, PRECISION), PRECISION, ROUND);
        }
        Self(if value.is_negative() { total.neg() } else { total })
    }

    /// What `compute` gives, if the argument has a size that it takes short time for.
    fn guarded(&self, compute: impl FnOnce(&BigFloat, &mut Consts) -> BigFloat) -> Self {
        if !self.is_usable() {
            return Self(BigFloat::nan(None));
        }
        with_constants(|constants| compute(&self.0, constants))
    }
}

impl Real for Precise {
    fn of(value: f64) -> Self {
        Self(BigFloat::from_f64(value, PRECISION))
    }
    fn ratio(value: &BigRational) -> Self {
        let (num, den) = (Self::whole(value.numer()), Self::whole(value.denom()));
        num.over(&den)
    }
    fn pi() -> Self {
        with_constants(|constants| constants.pi(PRECISION, ROUND))
    }
    fn plus(&self, other: &Self) -> Self {
        Self(self.0.add(&other.0, PRECISION, ROUND))
    }
    fn minus(&self, other: &Self) -> Self {
        Self(self.0.sub(&other.0, PRECISION, ROUND))
    }
    fn times(&self, other: &Self) -> Self {
        Self(self.0.mul(&other.0, PRECISION, ROUND))
    }
    fn over(&self, other: &Self) -> Self {
        Self(self.0.div(&other.0, PRECISION, ROUND))
    }
    fn sqrt(&self) -> Self {
        Self(self.0.sqrt(PRECISION, ROUND))
    }
    fn ln(&self) -> Self {
        self.guarded(|x, constants| x.ln(PRECISION, ROUND, constants))
    }
    fn exp(&self) -> Self {
        // The result would be over the limit.
        if self.magnitude() > 11 {
            return Self(BigFloat::nan(None));
        }
        self.guarded(|x, constants| x.exp(PRECISION, ROUND, constants))
    }
    fn sin(&self) -> Self {
        self.guarded(|x, constants| x.sin(PRECISION, ROUND, constants))
    }
    fn cos(&self) -> Self {
        self.guarded(|x, constants| x.cos(PRECISION, ROUND, constants))
    }
    fn atan(&self) -> Self {
        self.guarded(|x, constants| x.atan(PRECISION, ROUND, constants))
    }
    fn asin(&self) -> Self {
        self.guarded(|x, constants| x.asin(PRECISION, ROUND, constants))
    }
    fn floor(&self) -> Self {
        Self(self.0.floor())
    }
    fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
    fn is_negative(&self) -> bool {
        self.0.is_negative() && !self.0.is_zero()
    }
    fn is_usable(&self) -> bool {
        let number = !self.0.is_nan() && !self.0.is_inf();
        number && (self.0.is_zero() || self.magnitude().abs() <= MAX_EXPONENT)
    }
    fn magnitude(&self) -> i32 {
        match self.0.exponent() {
            Some(exponent) if !self.0.is_zero() => exponent,
            _ => i32::MIN / 2,
        }
    }
    fn lost_bits() -> i32 {
        60
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &Precise, b: &Precise) -> bool {
        a.minus(b).magnitude() < a.magnitude() - 300
    }

    #[test]
    fn precise_values() {
        let half = Precise::ratio(&BigRational::new(1.into(), 2.into()));
        assert!(close(&half.asin(), &Precise::pi().over(&Precise::of(6.0))));
        assert!(close(&Precise::of(2.0).ln().exp(), &Precise::of(2.0)));
        let big = BigInt::from(10).pow(40) + 7;
        let divided = Precise::whole(&big).over(&Precise::whole(&BigInt::from(10).pow(40)));
        assert!(divided.minus(&Precise::of(1.0)).magnitude() > -140);
        assert!(!Precise::of(1e300).times(&Precise::of(1e300)).times(&Precise::of(1e300)).is_usable());
        assert!(!Precise::of(1e300).exp().is_usable());
    }
}
