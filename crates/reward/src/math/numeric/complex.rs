//! Complex numbers over either kind of real.

use super::real::Real;

/// `re + im i`.
#[derive(Debug, Clone)]
pub(in crate::math) struct Complex<R> {
    pub(super) re: R,
    pub(super) im: R,
}

impl<R: Real> Complex<R> {
    pub(super) fn real(re: R) -> Self {
        Self { re, im: R::of(0.0) }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self { re: self.re.minus(&other.re), im: self.im.minus(&other.im) }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self { re: self.re.plus(&other.re), im: self.im.plus(&other.im) }
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        if self.im.is_zero() && other.im.is_zero() {
            return Self::real(self.re.times(&other.re));
        }
        let re = self.re.times(&other.re).minus(&self.im.times(&other.im));
        Self { re, im: self.re.times(&other.im).plus(&self.im.times(&other.re)) }
    }

    pub(super) fn inverse(&self) -> Self {
        if self.im.is_zero() {
            return Self::real(R::of(1.0).over(&self.re));
        }
        let norm = self.re.times(&self.re).plus(&self.im.times(&self.im));
        Self { re: self.re.over(&norm), im: R::of(0.0).minus(&self.im.over(&norm)) }
    }

    pub(super) fn modulus(&self) -> R {
        if self.im.is_zero() {
            return if self.re.is_negative() { R::of(0.0).minus(&self.re) } else { self.re.clone() };
        }
        self.re.times(&self.re).plus(&self.im.times(&self.im)).sqrt()
    }

    fn argument(&self) -> R {
        let (x, y) = (&self.re, &self.im);
        let half_turn = |negative: bool| if negative { R::of(0.0).minus(&R::pi()) } else { R::pi() };
        if x.is_zero() {
            return half_turn(y.is_negative()).over(&R::of(2.0));
        }
        let angle = if y.is_zero() { R::of(0.0) } else { y.over(x).atan() };
        if x.is_negative() { angle.plus(&half_turn(y.is_negative())) } else { angle }
    }

    pub(super) fn ln(&self) -> Self {
        Self { re: self.modulus().ln(), im: self.argument() }
    }

    pub(super) fn exp(&self) -> Self {
        let size = self.re.exp();
        if self.im.is_zero() {
            return Self::real(size);
        }
        Self { re: size.times(&self.im.cos()), im: size.times(&self.im.sin()) }
    }

    /// A whole power, by squaring.
    pub(super) fn whole_power(&self, exponent: i32) -> Self {
        let mut square = if exponent < 0 { self.inverse() } else { self.clone() };
        let mut left = exponent.unsigned_abs();
        let mut total = Self::real(R::of(1.0));
        while left > 0 {
            if left & 1 == 1 {
                total = total.times(&square);
            }
            square = square.times(&square);
            left >>= 1;
        }
        total
    }

    /// The principal value of any power of a number that is not zero.
    pub(super) fn power(&self, exponent: &Self) -> Self {
        self.ln().times(exponent).exp()
    }

    /// The value, if it is real up to rounding.
    pub(super) fn as_real(&self) -> Option<R> {
        let small = self.im.is_zero() || self.im.magnitude() < self.re.magnitude() - 40;
        small.then(|| self.re.clone())
    }

    pub(super) fn is_usable(&self) -> bool {
        self.re.is_usable() && self.im.is_usable()
    }

    /// Whether it has `bits` binary places fewer than the larger of two values.
    pub(super) fn is_below(&self, a: &Self, b: &Self, bits: i32) -> bool {
        let size = |value: &Self| value.re.magnitude().max(value.im.magnitude());
        let none = self.re.is_zero() && self.im.is_zero();
        none || size(self) <= size(a).max(size(b)).saturating_sub(bits)
    }
}

impl Complex<f64> {
    pub(super) fn abs(&self) -> f64 {
        self.re.hypot(self.im)
    }
}
