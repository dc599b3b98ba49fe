//! The value of a tree at a point.

use std::marker::PhantomData;

use num_traits::ToPrimitive;

use super::complex::Complex;
use super::real::Real;
use crate::math::tree::Node;

/// Evaluates trees with a value for each variable.
pub(super) struct Evaluator<R> {
    pub(super) kind: PhantomData<R>,
    /// The value that variables are near.
    pub(super) point: f64,
    /// How far from it the farthest is.
    pub(super) spread: f64,
    /// Whether values on the way may be complex.
    pub(super) complex: bool,
    /// Whether `x^{p/q}` with an odd `q` is real at a negative `x`.
    pub(super) real_powers: bool,
}

impl<R: Real> Evaluator<R> {
    /// `None` where there is no value, no rule for it, or no digits left of it.
    pub(super) fn value(&self, node: &Node) -> Option<Complex<R>> {
        let value = match node {
            Node::Number { value, .. } => Complex::real(R::ratio(value)),
            Node::Name(name) => Complex::real(self.variable(name)),
            Node::Pi => Complex::real(R::pi()),
            Node::E => Complex::real(R::of(1.0).exp()),
            Node::I => Complex { re: R::of(0.0), im: R::of(1.0) },
            Node::Negative(inner) => Complex::real(R::of(-1.0)).times(&self.value(inner)?),
            Node::Sum(terms) => self.sum(terms)?,
            Node::Product(factors) => {
                let mut total = Complex::real(R::of(1.0));
                for factor in factors {
                    total = total.times(&self.value(factor)?);
                }
                total
            }
            Node::Inverse(inner) => self.value(inner)?.inverse(),
            Node::Power(base, exponent) => self.power(base, exponent)?,
            Node::Root { degree, radicand } => self.root(&self.value(radicand)?, *degree)?,
            Node::Call(name, arguments) => self.call(name, arguments)?,
            _ => return None,
        };
        if !self.complex && !value.im.is_zero() {
            return None;
        }
        value.is_usable().then_some(value)
    }

    /// Different names get different values, which only their text decides.
    fn variable(&self, name: &str) -> R {
        let seed = name.bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
        R::of(self.point + f64::from(seed % 9973) / 9973.0 * self.spread)
    }

    fn sum(&self, terms: &[Node]) -> Option<Complex<R>> {
        let mut total = Complex::real(R::of(0.0));
        let mut largest = i32::MIN;
        for term in terms {
            let term = self.value(term)?;
            largest = largest.max(term.re.magnitude()).max(term.im.magnitude());
            total = total.plus(&term);
        }
        // What cancels to nearly nothing has no digits left to compare.
        let size = total.re.magnitude().max(total.im.magnitude());
        let lost = size < largest - R::lost_bits() && !(total.re.is_zero() && total.im.is_zero());
        (!lost).then_some(total)
    }

    fn power(&self, base: &Node, exponent: &Node) -> Option<Complex<R>> {
        let value = self.value(base)?;
        if let Some(whole) = whole(exponent).filter(|n| n.unsigned_abs() <= 10_000) {
            let undefined = value.re.is_zero() && value.im.is_zero() && whole <= 0;
            return (!undefined).then(|| value.whole_power(whole));
        }
        if let Some((p, q)) = fraction(exponent) {
            let negative = value.im.is_zero() && value.re.is_negative();
            if (negative && self.real_powers && q % 2 == 1) || (value.im.is_zero() && !negative) {
                return Some(self.root(&value, q)?.whole_power(p));
            }
        }
        let exponent = self.value(exponent)?;
        if value.re.is_zero() && value.im.is_zero() {
            let positive = !exponent.re.is_negative() && !exponent.re.is_zero();
            return positive.then_some(value);
        }
        Some(value.power(&exponent))
    }

    fn root(&self, radicand: &Complex<R>, degree: u32) -> Option<Complex<R>> {
        if radicand.re.is_zero() && radicand.im.is_zero() {
            return Some(radicand.clone());
        }
        let negative = radicand.im.is_zero() && radicand.re.is_negative();
        if radicand.im.is_zero() && (!negative || degree % 2 == 1) {
            let size = radicand.modulus();
            let root = match degree {
                2 => size.sqrt(),
                _ => size.ln().over(&R::of(f64::from(degree))).exp(),
            };
            // An odd root of a negative number is the real one.
            return Some(Complex::real(if negative { R::of(0.0).minus(&root) } else { root }));
        }
        Some(radicand.power(&Complex::real(R::of(1.0).over(&R::of(f64::from(degree))))))
    }

    fn call(&self, name: &str, arguments: &[Node]) -> Option<Complex<R>> {
        let values = arguments.iter().map(|node| self.angle(node)).collect::<Option<Vec<_>>>()?;
        match (name, values.as_slice()) {
            ("abs", [x]) => return Some(Complex::real(x.modulus())),
            ("ln" | "log", [x]) => return self.logarithm(x),
            ("lg", [x]) => return self.quotient(x, &Complex::real(R::of(10.0))),
            ("log", [base, x]) => return self.quotient(x, base),
            _ => {}
        }
        let [x] = values.as_slice() else { return None };
        let x = x.as_real()?;
        let one = R::of(1.0);
        let quarter = || R::pi().over(&R::of(2.0));
        let within = !one.minus(&x.times(&x)).is_negative();
        let value = match name {
            "sin" => x.sin(),
            "cos" => x.cos(),
            "tan" => x.sin().over(&x.cos()),
            "cot" => x.cos().over(&x.sin()),
            "sec" => one.over(&x.cos()),
            "csc" => one.over(&x.sin()),
            "arcsin" if within => x.asin(),
            "arccos" if within => quarter().minus(&x.asin()),
            "arctan" => x.atan(),
            "arccot" => quarter().minus(&x.atan()),
            "arcsec" if !within || x.times(&x).minus(&one).is_zero() => quarter().minus(&one.over(&x).asin()),
            "arccsc" if !within || x.times(&x).minus(&one).is_zero() => one.over(&x).asin(),
            "sinh" => x.exp().minus(&R::of(0.0).minus(&x).exp()).over(&R::of(2.0)),
            "cosh" => x.exp().plus(&R::of(0.0).minus(&x).exp()).over(&R::of(2.0)),
            "tanh" => {
                let square = x.times(&R::of(2.0)).exp();
                square.minus(&one).over(&square.plus(&one))
            }
            "arcsinh" => x.plus(&x.times(&x).plus(&one).sqrt()).ln(),
            "arccosh" if !x.minus(&one).is_negative() => x.plus(&x.times(&x).minus(&one).sqrt()).ln(),
            "arctanh" if within => one.plus(&x).over(&one.minus(&x)).ln().over(&R::of(2.0)),
            "floor" => self.step(&x)?,
            "ceil" => self.step(&x)?.plus(&one),
            _ => return None,
        };
        Some(Complex::real(value))
    }

    /// The whole number below a value that is none itself; near one there is no telling.
    fn step(&self, x: &R) -> Option<R> {
        let below = x.floor();
        let rest = x.minus(&below);
        let near = |distance: &R| distance.is_zero() || distance.magnitude() < -20;
        (!near(&rest) && !near(&R::of(1.0).minus(&rest))).then_some(below)
    }

    fn logarithm(&self, x: &Complex<R>) -> Option<Complex<R>> {
        let zero = x.re.is_zero() && x.im.is_zero();
        (!zero).then(|| x.ln())
    }

    fn quotient(&self, x: &Complex<R>, base: &Complex<R>) -> Option<Complex<R>> {
        let base = self.logarithm(base)?;
        Some(self.logarithm(x)?.times(&base.inverse()))
    }

    /// An argument; degrees in radians.
    fn angle(&self, node: &Node) -> Option<Complex<R>> {
        match node {
            Node::Unit(value, unit) if unit == "°" => {
                let radian = R::pi().over(&R::of(180.0));
                Some(self.value(value)?.times(&Complex::real(radian)))
            }
            Node::Unit(value, unit) if unit == "rad" => self.value(value),
            other => self.value(other),
        }
    }
}

/// A whole number, signed.
fn whole(node: &Node) -> Option<i32> {
    match node {
        Node::Number { value, .. } if value.is_integer() => value.to_integer().to_i32(),
        Node::Negative(inner) => whole(inner).and_then(i32::checked_neg),
        _ => None,
    }
}

/// `p/q` of small whole numbers, in lowest terms.
fn fraction(node: &Node) -> Option<(i32, u32)> {
    match node {
        Node::Negative(inner) => fraction(inner).map(|(p, q)| (-p, q)),
        Node::Number { value, .. } => Some((value.numer().to_i32()?, value.denom().to_u32().filter(|q| *q <= 64)?)),
        Node::Product(parts) => match parts.as_slice() {
            [p, Node::Inverse(q)] => {
                let (p, q) = (whole(p)?, u32::try_from(whole(q)?).ok().filter(|q| (1..=64).contains(q))?);
                let common = num_integer::gcd(i64::from(p), i64::from(q)).max(1);
                Some(((i64::from(p) / common) as i32, (i64::from(q) / common) as u32))
            }
            _ => None,
        },
        _ => None,
    }
}
