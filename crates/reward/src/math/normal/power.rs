//! Powers and roots.

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::arithmetic::{factors, power_of};
use super::{Atom, Normal, NormalError, Normalizer, Quotient};
use crate::math::tree::Node;

/// Largest power of a polynomial of more than one term.
const MAX_POLYNOMIAL_POWER: u32 = 32;
/// Largest whole number under a root, in bits.
const MAX_ROOT_BITS: u64 = 512;

impl Normalizer {
    pub(super) fn power(&mut self, base: &Node, exponent: &Node) -> Normal<Quotient> {
        let base = self.normalize(base)?;
        let exponent = self.normalize(exponent)?;
        let Some(rational) = exponent.as_rational() else {
            return self.opaque("power", &[&base, &exponent]);
        };
        let (num, den) = (rational.numer().to_i64(), rational.denom().to_u32());
        let (Some(num), Some(den)) = (num, den) else {
            return Err(NormalError::Budget("a large exponent"));
        };
        if den == 1 {
            return self.integer_power(base, num);
        }
        if base.as_rational().is_some_and(|b| !b.is_negative()) && den <= 32 {
            let root = self.root(base, den)?;
            return self.integer_power(root, num);
        }
        self.opaque("power", &[&base, &exponent])
    }

    pub(super) fn integer_power(&mut self, base: Quotient, exponent: i64) -> Normal<Quotient> {
        let base = if exponent < 0 { self.invert(base)? } else { base };
        let Ok(power) = u32::try_from(exponent.unsigned_abs()) else {
            return Err(NormalError::Budget("a large exponent"));
        };
        if let Some(rational) = base.as_rational() {
            if rational.is_zero() && power == 0 {
                return Err(NormalError::Undefined);
            }
            self.spend(10)?;
            return Ok(Quotient::rational(power_of(&rational, power)?));
        }
        let single = base.num.len() == 1 && base.den.len() == 1;
        if !single && power > MAX_POLYNOMIAL_POWER || power > 10_000 {
            return Err(NormalError::Budget("a large power of an expression"));
        }
        let mut total = Quotient::rational(BigRational::one());
        let mut square = base;
        let mut left = power;
        while left > 0 {
            if left & 1 == 1 {
                total = self.multiply(&total, &square)?;
            }
            left >>= 1;
            if left > 0 {
                square = self.multiply(&square, &square)?;
            }
        }
        Ok(total)
    }

    pub(super) fn root(&mut self, value: Quotient, degree: u32) -> Normal<Quotient> {
        let Some(rational) = value.as_rational() else {
            return self.opaque(&format!("root{degree}"), &[&value]);
        };
        // Trial division.
        self.spend(60)?;
        if rational.is_negative() {
            let positive = self.root(Quotient::rational(-rational), degree)?;
            let unit = match degree {
                2 => self.atom(Atom::Imaginary),
                odd if odd % 2 == 1 => Quotient::rational(-BigRational::one()),
                _ => return self.opaque(&format!("root{degree}"), &[&value]),
            };
            return self.multiply(&positive, &unit);
        }
        // The root of p/q is the root of p q^(k-1), over q.
        let cleared = power_of(&BigRational::from_integer(rational.denom().clone()), degree - 1)?;
        let radicand = rational.numer() * cleared.numer();
        if radicand.bits() > MAX_ROOT_BITS {
            return Err(NormalError::Budget("a root of a large number"));
        }
        let mut total = Quotient::rational(BigRational::new(BigInt::one(), rational.denom().clone()));
        for (factor, power) in factors(radicand, degree) {
            let outside = Quotient::rational(power_of(&BigRational::from_integer(factor.clone()), power / degree)?);
            total = self.multiply(&total, &outside)?;
            // The fourth root of 9 is the square root of 3.
            let (inside, common) = (power % degree, (power % degree).gcd(&degree));
            if inside > 0 {
                let atom = self.atom(Atom::Root(factor, degree / common));
                let root = self.integer_power(atom, i64::from(inside / common))?;
                total = self.multiply(&total, &root)?;
            }
        }
        Ok(total)
    }
}
