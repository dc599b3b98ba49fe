//! Exact normal form: a quotient of polynomials with rational coefficients over variables, `π`, `e`, `i`,
//! roots of whole numbers, and opaque terms.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::arithmetic::{MAX_DIVISOR, cost, exact_call, factors, power_of};
use super::tree::Node;

/// Most products and sums of terms in one verdict, large numbers counting more: some 20 ms.
const MAX_WORK: usize = 40_000;
/// Largest power of a polynomial of more than one term.
const MAX_POLYNOMIAL_POWER: u32 = 32;
/// Largest whole number under a root, in bits.
const MAX_ROOT_BITS: u64 = 512;

/// Why there is no normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormalError {
    Budget(&'static str),
    /// Division by zero.
    Undefined,
    /// Not a value: a tuple in a sum, infinity, a phrase.
    NotAlgebraic,
}

pub(super) type Normal<T> = Result<T, NormalError>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Atom {
    Imaginary,
    Pi,
    E,
    Name(String),
    /// The real root of a positive whole number without simpler form.
    Root(BigInt, u32),
    /// A function value or power that has no exact rule, by the text of its normal form.
    Opaque(String),
}

/// Exponents by atom number, ascending; no zero exponents.
type Monomial = Vec<(u32, u32)>;
/// Coefficients by monomial; no zero coefficients.
pub(super) type Polynomial = BTreeMap<Monomial, BigRational>;

/// A quotient of polynomials; the denominator is not zero. Not reduced: equality multiplies crosswise.
#[derive(Debug, Clone)]
pub(super) struct Quotient {
    pub(super) num: Polynomial,
    pub(super) den: Polynomial,
}

fn constant(value: BigRational) -> Polynomial {
    if value.is_zero() { Polynomial::new() } else { Polynomial::from([(Monomial::new(), value)]) }
}

fn as_constant(polynomial: &Polynomial) -> Option<BigRational> {
    match polynomial.len() {
        0 => Some(BigRational::zero()),
        1 => polynomial.get(&Monomial::new()).cloned(),
        _ => None,
    }
}

impl Quotient {
    fn rational(value: BigRational) -> Self {
        Self { num: constant(value), den: constant(BigRational::one()) }
    }

    /// The value, if it is a rational number.
    pub(super) fn as_rational(&self) -> Option<BigRational> {
        Some(as_constant(&self.num)? / as_constant(&self.den)?)
    }
}

/// The atoms of one verdict, so that both sides share their numbers, and what is left of its budget.
#[derive(Debug, Default)]
pub(super) struct Normalizer {
    atoms: Vec<Atom>,
    numbers: HashMap<Atom, u32>,
    work: usize,
}

impl Normalizer {
    /// The normal form of a value.
    pub(super) fn normalize(&mut self, node: &Node) -> Normal<Quotient> {
        match node {
            Node::Number { value, .. } => Ok(Quotient::rational(value.clone())),
            Node::Name(name) => Ok(self.atom(Atom::Name(name.clone()))),
            Node::Pi => Ok(self.atom(Atom::Pi)),
            Node::E => Ok(self.atom(Atom::E)),
            Node::I => Ok(self.atom(Atom::Imaginary)),
            Node::Negative(inner) => {
                let mut value = self.normalize(inner)?;
                value.num.values_mut().for_each(|c| *c = -c.clone());
                Ok(value)
            }
            Node::Sum(terms) => {
                let mut total = Quotient::rational(BigRational::zero());
                for term in terms {
                    let term = self.normalize(term)?;
                    total = self.add(&total, &term)?;
                }
                Ok(total)
            }
            Node::Product(factors) => {
                let mut total = Quotient::rational(BigRational::one());
                for factor in factors {
                    let factor = self.normalize(factor)?;
                    total = self.multiply(&total, &factor)?;
                }
                Ok(total)
            }
            Node::Inverse(inner) => {
                let value = self.normalize(inner)?;
                self.invert(value)
            }
            Node::Power(base, exponent) => self.power(base, exponent),
            Node::Root { degree, radicand } => {
                let value = self.normalize(radicand)?;
                self.root(value, *degree)
            }
            Node::Call(name, arguments) => self.call(name, arguments),
            _ => Err(NormalError::NotAlgebraic),
        }
    }

    /// The numerator of `left - right`: zero exactly when the two are equal by the rules known here.
    pub(super) fn difference(&mut self, left: &Quotient, right: &Quotient) -> Normal<Polynomial> {
        if left.den == right.den {
            return self.combine(&left.num, &right.num);
        }
        let (a, b) = (self.times(&left.num, &right.den)?, self.times(&right.num, &left.den)?);
        self.combine(&a, &b)
    }

    /// Whether the left is a constant times the right, both without denominators: `2x = 4` is `x = 2`.
    pub(super) fn proportional(&mut self, left: &Quotient, right: &Quotient) -> Normal<bool> {
        let (Some((first, a)), Some((second, b))) = (left.num.first_key_value(), right.num.first_key_value()) else {
            return Ok(left.num.is_empty() && right.num.is_empty());
        };
        if first != second {
            return Ok(false);
        }
        let (a, b) = (constant(a.clone()), constant(b.clone()));
        let (scaled_left, scaled_right) = (self.times(&left.num, &b)?, self.times(&right.num, &a)?);
        Ok(scaled_left == scaled_right)
    }

    /// Whether a polynomial that is not zero here is truly not zero, since its atoms are independent over the
    /// rationals. Roots are if they have one degree and coprime radicands that are prime, or no perfect powers
    /// of a prime degree (Besicovitch, 1940); `π` and `e` are taken to be.
    pub(super) fn is_decided(&self, polynomial: &Polynomial) -> bool {
        let mut roots: Vec<(&BigInt, u32)> = Vec::new();
        for atom in self.atoms_of(polynomial) {
            match atom {
                Atom::Opaque(_) => return false,
                Atom::Root(radicand, degree) if !roots.contains(&(radicand, *degree)) => {
                    roots.push((radicand, *degree))
                }
                _ => {}
            }
        }
        let Some(&(_, degree)) = roots.first() else { return true };
        let prime_degree = matches!(degree, 2 | 3 | 5 | 7 | 11 | 13);
        let small = |n: &BigInt| *n <= BigInt::from(MAX_DIVISOR * MAX_DIVISOR);
        roots.iter().enumerate().all(|(at, &(n, k))| {
            k == degree && (prime_degree || small(n)) && roots[..at].iter().all(|(m, _)| n.gcd(m).is_one())
        })
    }

    fn atoms_of<'a>(&'a self, polynomial: &'a Polynomial) -> impl Iterator<Item = &'a Atom> {
        polynomial.keys().flatten().filter_map(|&(number, _)| self.atoms.get(number as usize))
    }

    fn atom(&mut self, atom: Atom) -> Quotient {
        let next = self.atoms.len() as u32;
        let number = *self.numbers.entry(atom.clone()).or_insert(next);
        if number == next {
            self.atoms.push(atom);
        }
        let num = Polynomial::from([(vec![(number, 1)], BigRational::one())]);
        Quotient { num, den: constant(BigRational::one()) }
    }

    fn opaque(&mut self, name: &str, arguments: &[&Quotient]) -> Quotient {
        // Equal texts are equal values; unequal texts are left to numbers.
        let parts: Vec<String> = arguments
            .iter()
            .map(|q| {
                let lead = q.den.values().next().cloned().unwrap_or_else(BigRational::one);
                let show = |p: &Polynomial| p.iter().map(|(m, c)| format!("{m:?}{}", c / &lead)).collect::<String>();
                format!("{}/{}", show(&q.num), show(&q.den))
            })
            .collect();
        self.atom(Atom::Opaque(format!("{name}({})", parts.join(";"))))
    }

    fn add(&mut self, left: &Quotient, right: &Quotient) -> Normal<Quotient> {
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

    fn combine(&mut self, left: &Polynomial, right: &Polynomial) -> Normal<Polynomial> {
        let mut out = left.clone();
        self.add_to(&mut out, right, true)?;
        Ok(out)
    }

    fn add_to(&mut self, total: &mut Polynomial, other: &Polynomial, negative: bool) -> Normal<()> {
        self.spend(other.len())?;
        for (monomial, coefficient) in other {
            let coefficient = if negative { -coefficient.clone() } else { coefficient.clone() };
            self.add_term(total, monomial.clone(), coefficient)?;
        }
        Ok(())
    }

    /// Adds one term, counting the work that its size makes.
    fn add_term(&mut self, total: &mut Polynomial, monomial: Monomial, coefficient: BigRational) -> Normal<()> {
        self.spend(cost(&coefficient)?)?;
        if coefficient.is_zero() {
            return Ok(());
        }
        match total.entry(monomial) {
            Entry::Vacant(entry) => {
                entry.insert(coefficient);
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += coefficient;
                self.work += cost(entry.get())?;
                if entry.get().is_zero() {
                    entry.remove();
                }
            }
        }
        Ok(())
    }

    fn multiply(&mut self, left: &Quotient, right: &Quotient) -> Normal<Quotient> {
        Ok(Quotient { num: self.times(&left.num, &right.num)?, den: self.times(&left.den, &right.den)? })
    }

    fn invert(&mut self, value: Quotient) -> Normal<Quotient> {
        if value.num.is_empty() {
            return Err(NormalError::Undefined);
        }
        match value.as_rational() {
            Some(rational) => Ok(Quotient::rational(rational.recip())),
            None => Ok(Quotient { num: value.den, den: value.num }),
        }
    }

    fn spend(&mut self, work: usize) -> Normal<()> {
        self.work += work;
        if self.work > MAX_WORK { Err(NormalError::Budget("an expansion of too many terms")) } else { Ok(()) }
    }

    fn times(&mut self, left: &Polynomial, right: &Polynomial) -> Normal<Polynomial> {
        self.spend(left.len() * right.len())?;
        let mut out = Polynomial::new();
        for (a, x) in left {
            for (b, y) in right {
                let (monomial, factor) = self.multiply_monomials(a, b)?;
                let product = x * y;
                let product = if factor.is_one() { product } else { product * factor };
                self.add_term(&mut out, monomial, product)?;
            }
        }
        Ok(out)
    }

    /// The product, with `i² = -1` and `(ᵏ√n)ᵏ = n` applied; the factor is what they leave.
    fn multiply_monomials(&self, left: &Monomial, right: &Monomial) -> Normal<(Monomial, BigRational)> {
        let mut merged: BTreeMap<u32, u32> = left.iter().copied().collect();
        for &(atom, power) in right {
            *merged.entry(atom).or_insert(0) += power;
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
                Some(Atom::Root(radicand, degree)) => {
                    factor *= power_of(&BigRational::from_integer(radicand.clone()), power / degree)?;
                    power %= degree;
                }
                _ => {}
            }
            if power > 0 {
                out.push((number, power));
            }
        }
        Ok((out, factor))
    }

    fn power(&mut self, base: &Node, exponent: &Node) -> Normal<Quotient> {
        let base = self.normalize(base)?;
        let exponent = self.normalize(exponent)?;
        let Some(rational) = exponent.as_rational() else {
            return Ok(self.opaque("power", &[&base, &exponent]));
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
        Ok(self.opaque("power", &[&base, &exponent]))
    }

    fn integer_power(&mut self, base: Quotient, exponent: i64) -> Normal<Quotient> {
        let base = if exponent < 0 { self.invert(base)? } else { base };
        let Ok(power) = u32::try_from(exponent.unsigned_abs()) else {
            return Err(NormalError::Budget("a large exponent"));
        };
        if let Some(rational) = base.as_rational() {
            if rational.is_zero() && power == 0 {
                return Err(NormalError::Undefined);
            }
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

    fn root(&mut self, value: Quotient, degree: u32) -> Normal<Quotient> {
        let Some(rational) = value.as_rational() else {
            return Ok(self.opaque(&format!("root{degree}"), &[&value]));
        };
        if rational.is_negative() {
            let positive = self.root(Quotient::rational(-rational), degree)?;
            let unit = match degree {
                2 => self.atom(Atom::Imaginary),
                odd if odd % 2 == 1 => Quotient::rational(-BigRational::one()),
                _ => return Ok(self.opaque(&format!("root{degree}"), &[&value])),
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

    fn call(&mut self, name: &str, arguments: &[Node]) -> Normal<Quotient> {
        // Factorials and binomials take some hundred steps.
        self.spend(100)?;
        let values = arguments.iter().map(|a| self.normalize(a)).collect::<Normal<Vec<_>>>();
        let values = match values {
            Err(NormalError::NotAlgebraic) if matches!(name, "sin" | "cos" | "tan" | "cot" | "sec" | "csc") => {
                vec![self.radians(&arguments[0])?]
            }
            other => other?,
        };
        let rationals: Option<Vec<BigRational>> = values.iter().map(Quotient::as_rational).collect();
        if let Some(exact) = rationals.and_then(|r| exact_call(name, &r).transpose()) {
            return Ok(Quotient::rational(exact?));
        }
        let references: Vec<&Quotient> = values.iter().collect();
        Ok(self.opaque(name, &references))
    }

    fn radians(&mut self, node: &Node) -> Normal<Quotient> {
        match node {
            Node::Unit(value, unit) if unit == "°" => {
                let degrees = self.normalize(value)?;
                let pi = self.atom(Atom::Pi);
                let half_turn = Quotient::rational(BigRational::new(BigInt::one(), 180.into()));
                let scaled = self.multiply(&degrees, &half_turn)?;
                self.multiply(&scaled, &pi)
            }
            _ => Err(NormalError::NotAlgebraic),
        }
    }
}
