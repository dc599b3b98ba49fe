//! Exact normal form: a quotient of polynomials with rational coefficients over variables, `π`, `e`, `i`,
//! roots and logarithms of whole numbers, and opaque terms.

pub(super) mod arithmetic;
mod call;
mod polynomial;
mod power;

use std::collections::{BTreeMap, HashMap};

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Zero};

use super::budget::Budget;
use super::tree::Node;
use arithmetic::MAX_DIVISOR;
use polynomial::{as_constant, constant};

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
    /// The natural logarithm of a whole number above 1.
    Log(BigInt),
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

impl Quotient {
    fn rational(value: BigRational) -> Self {
        Self { num: constant(value), den: constant(BigRational::one()) }
    }

    /// The value, if it is a rational number.
    pub(super) fn as_rational(&self) -> Option<BigRational> {
        Some(as_constant(&self.num)? / as_constant(&self.den)?)
    }
}

/// What `log` without a base means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LogBase {
    #[default]
    Natural,
    Ten,
}

/// The atoms of one verdict, so that both sides share their numbers, and what is left of its budget.
#[derive(Debug, Default)]
pub(super) struct Normalizer {
    atoms: Vec<Atom>,
    numbers: HashMap<Atom, u32>,
    pub(super) budget: Budget,
    pub(super) log_base: LogBase,
    /// What was left as it stands because its value is too large, so that only the same is known to be equal.
    pub(super) unevaluated: Option<&'static str>,
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
            return self.subtract(&left.num, &right.num);
        }
        let (a, b) = (self.times(&left.num, &right.den)?, self.times(&right.num, &left.den)?);
        self.subtract(&a, &b)
    }

    /// The constant `c` with `left = c · right`, numerators alone: `2x = 4` is `x = 2`. `None` where there is none.
    pub(super) fn ratio(&mut self, left: &Quotient, right: &Quotient) -> Normal<Option<BigRational>> {
        let (Some((first, a)), Some((second, b))) = (left.num.first_key_value(), right.num.first_key_value()) else {
            return Ok((left.num.is_empty() && right.num.is_empty()).then(BigRational::one));
        };
        if first != second {
            return Ok(None);
        }
        let ratio = a / b;
        let (a, b) = (constant(a.clone()), constant(b.clone()));
        let (scaled_left, scaled_right) = (self.times(&left.num, &b)?, self.times(&right.num, &a)?);
        Ok((scaled_left == scaled_right).then_some(ratio))
    }

    /// Whether a polynomial that is not zero here is truly not zero, since its atoms are independent over the
    /// rationals. Roots are if they have one degree and coprime radicands that are prime, or no perfect powers
    /// of a prime degree (Besicovitch, 1940); logarithms of coprime numbers, `π` and `e` are taken to be
    /// (Schanuel's conjecture).
    pub(super) fn is_decided(&self, polynomial: &Polynomial) -> bool {
        let mut roots: Vec<(&BigInt, u32)> = Vec::new();
        let mut logs: Vec<&BigInt> = Vec::new();
        for atom in self.atoms_of(polynomial) {
            match atom {
                Atom::Opaque(_) => return false,
                Atom::Root(radicand, degree) if !roots.contains(&(radicand, *degree)) => {
                    roots.push((radicand, *degree));
                }
                Atom::Log(number) if !logs.contains(&number) => logs.push(number),
                _ => {}
            }
        }
        let coprime = |numbers: &[&BigInt]| {
            numbers.iter().enumerate().all(|(at, n)| numbers[..at].iter().all(|m| n.gcd(m).is_one()))
        };
        if roots.len() > 32 || logs.len() > 32 || !coprime(&logs) {
            return false;
        }
        let Some(&(_, degree)) = roots.first() else { return true };
        let prime_degree = matches!(degree, 2 | 3 | 5 | 7 | 11 | 13);
        let small = |n: &BigInt| *n <= BigInt::from(MAX_DIVISOR * MAX_DIVISOR);
        let radicands: Vec<&BigInt> = roots.iter().map(|&(n, _)| n).collect();
        roots.iter().all(|&(n, k)| k == degree && (prime_degree || small(n))) && coprime(&radicands)
    }

    fn atoms_of<'a>(&'a self, polynomial: &'a Polynomial) -> impl Iterator<Item = &'a Atom> {
        polynomial.keys().flatten().filter_map(|&(number, _)| self.atoms.get(number as usize))
    }

    fn atom(&mut self, atom: Atom) -> Quotient {
        let next = self.atoms.len() as u32;
        let number = match self.numbers.get(&atom) {
            Some(&known) => known,
            None => {
                self.numbers.insert(atom.clone(), next);
                self.atoms.push(atom);
                next
            }
        };
        let num = Polynomial::from([(vec![(number, 1)], BigRational::one())]);
        Quotient { num, den: constant(BigRational::one()) }
    }

    /// A value that no rule here simplifies. Equal texts are equal values; unequal texts are left to numbers.
    fn opaque(&mut self, name: &str, arguments: &[&Quotient]) -> Normal<Quotient> {
        let mut text = format!("{name}(");
        for argument in arguments {
            self.spend(argument.num.len() + argument.den.len())?;
            let lead = argument.den.values().next().cloned().unwrap_or_else(BigRational::one);
            for polynomial in [&argument.num, &argument.den] {
                for (monomial, coefficient) in polynomial {
                    text.push_str(&format!("{monomial:?}{}", coefficient / &lead));
                }
                text.push(';');
            }
        }
        self.spend(text.len() / 64)?;
        Ok(self.atom(Atom::Opaque(text)))
    }

    fn spend(&mut self, work: usize) -> Normal<()> {
        if self.budget.spend(work) { Ok(()) } else { Err(NormalError::Budget("too much to compute")) }
    }
}
