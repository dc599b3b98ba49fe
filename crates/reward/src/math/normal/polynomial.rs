//! Sums and products of polynomials and of their quotients, each step counted against the budget.

use std::collections::btree_map::Entry;

use num_rational::BigRational;
use num_traits::{One, Zero};

use super::arithmetic::{add_to, cost, power_of, product};
use super::{Atom, Monomial, Normal, NormalError, Normalizer, Polynomial, Quotient};

pub(super) fn constant(value: BigRational) -> Polynomial {
    if value.is_zero() { Polynomial::new() } else { Polynomial::from([(Monomial::new(), value)]) }
}

pub(super) fn as_constant(polynomial: &Polynomial) -> Option<BigRational> {
    match polynomial.len() {
        0 => Some(BigRational::zero()),
        1 => polynomial.get(&Monomial::new()).cloned(),
        _ => None,
    }
}

impl Normalizer {
    pub(super) fn add(&mut self, left: &Quotient, right: &Quotient) -> Normal<Quotient> {
        if left.den == right.den {
            let mut num = left.num.clone();
            self.add_to(&mut num, &right.num, false)?;
            return Ok(Quotient { num, den: left.den.clone() });
        }
        let mut num = self.times(&left.num, &right.den)?;
        let other = self.times(&right.num, &left.den)?;
        self.add_to(&mut num, &other, false)?;
        Ok(Quotient { num, den: self.times(&left.den, &right.den)? })
    }

    pub(super) fn subtract(&mut self, left: &Polynomial, right: &Polynomial) -> Normal<Polynomial> {
        let mut out = left.clone();
        self.add_to(&mut out, right, true)?;
        Ok(out)
    }

    fn add_to(&mut self, total: &mut Polynomial, other: &Polynomial, negative: bool) -> Normal<()> {
        self.spend(total.len() / 4 + other.len())?;
        for (monomial, coefficient) in other {
            let coefficient = if negative { -coefficient.clone() } else { coefficient.clone() };
            self.add_term(total, monomial.clone(), coefficient)?;
        }
        Ok(())
    }

    /// Adds one term, counting the work that its size makes.
    fn add_term(&mut self, total: &mut Polynomial, monomial: Monomial, coefficient: BigRational) -> Normal<()> {
        self.spend(cost(&coefficient)? + monomial.len() / 4)?;
        if coefficient.is_zero() {
            return Ok(());
        }
        match total.entry(monomial) {
            Entry::Vacant(entry) => {
                entry.insert(coefficient);
            }
            Entry::Occupied(mut entry) => {
                add_to(entry.get_mut(), coefficient);
                let work = cost(entry.get())?;
                if entry.get().is_zero() {
                    entry.remove();
                }
                self.spend(work)?;
            }
        }
        Ok(())
    }

    pub(super) fn multiply(&mut self, left: &Quotient, right: &Quotient) -> Normal<Quotient> {
        Ok(Quotient { num: self.times(&left.num, &right.num)?, den: self.times(&left.den, &right.den)? })
    }

    pub(super) fn invert(&mut self, value: Quotient) -> Normal<Quotient> {
        if value.num.is_empty() {
            return Err(NormalError::Undefined);
        }
        match value.as_rational() {
            Some(rational) => Ok(Quotient::rational(rational.recip())),
            None => Ok(Quotient { num: value.den, den: value.num }),
        }
    }

    pub(super) fn divide(&mut self, left: &Quotient, right: Quotient) -> Normal<Quotient> {
        let inverse = self.invert(right)?;
        self.multiply(left, &inverse)
    }

    pub(super) fn times(&mut self, left: &Polynomial, right: &Polynomial) -> Normal<Polynomial> {
        if is_one(right) {
            return Ok(left.clone());
        }
        if is_one(left) {
            return Ok(right.clone());
        }
        self.spend(left.len().saturating_mul(right.len()))?;
        let mut out = Polynomial::new();
        for (a, x) in left {
            for (b, y) in right {
                let (monomial, factor) = self.multiply_monomials(a, b)?;
                let coefficient = product(&product(x, y), &factor);
                self.add_term(&mut out, monomial, coefficient)?;
            }
        }
        Ok(out)
    }

    /// The product, with `i² = -1` and `(ᵏ√n)ᵏ = n` applied; the factor is what they leave.
    fn multiply_monomials(&mut self, left: &Monomial, right: &Monomial) -> Normal<(Monomial, BigRational)> {
        let mut merged = Monomial::with_capacity(left.len() + right.len());
        let (mut a, mut b) = (left.iter().peekable(), right.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(&&(m, p)), Some(&&(n, q))) if m == n => {
                    a.next();
                    b.next();
                    (m, p + q)
                }
                (Some(&&(m, p)), other) if other.is_none_or(|&&(n, _)| m < n) => {
                    a.next();
                    (m, p)
                }
                (_, Some(&&pair)) => {
                    b.next();
                    pair
                }
                _ => break,
            };
            merged.push(next);
        }
        let mut factor = BigRational::one();
        let mut out = Monomial::with_capacity(merged.len());
        for (number, mut power) in merged {
            if power > 10_000 {
                return Err(NormalError::Budget("a power over 10000"));
            }
            match self.atoms.get(number as usize) {
                Some(Atom::Imaginary) => {
                    if power % 4 >= 2 {
                        factor = -factor;
                    }
                    power %= 2;
                }
                Some(Atom::Root(radicand, degree)) if power >= *degree => {
                    factor *= power_of(&BigRational::from_integer(radicand.clone()), power / degree)?;
                    power %= degree;
                    let work = cost(&factor)?;
                    self.spend(work)?;
                }
                _ => {}
            }
            if power > 0 {
                out.push((number, power));
            }
        }
        Ok((out, factor))
    }
}

fn is_one(polynomial: &Polynomial) -> bool {
    polynomial.len() == 1 && polynomial.get(&Monomial::new()).is_some_and(One::is_one)
}
