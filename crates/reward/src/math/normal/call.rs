//! Functions: exact values where a rule gives one cheaply, opaque terms elsewhere.

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::arithmetic::{exact_call, factors};
use super::polynomial::as_constant;
use super::{Atom, LogBase, Normal, NormalError, Normalizer, Quotient};
use crate::math::tree::Node;

/// Most terms of a sum or product that is written out.
const MAX_TERMS: i64 = 100;

impl Normalizer {
    pub(super) fn call(&mut self, name: &'static str, arguments: &[Node]) -> Normal<Quotient> {
        match (name, arguments) {
            ("sum" | "prod", [body, Node::Name(index), low, high]) => return self.range(name, body, index, low, high),
            ("det", [Node::Matrix(rows)]) => return self.determinant(rows),
            _ => {}
        }
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
        let exact = match (name, values.as_slice()) {
            ("sin" | "cos" | "tan" | "cot" | "sec" | "csc", [x]) => self.trigonometric(name, x)?,
            ("ln", [x]) => self.logarithm(x)?,
            ("log", [x]) if self.log_base == LogBase::Natural => self.logarithm(x)?,
            ("log" | "lg", [x]) => self.logarithm_to(&Quotient::rational(BigRational::from_integer(10.into())), x)?,
            ("log", [base, x]) => self.logarithm_to(base, x)?,
            _ => None,
        };
        if matches!(name, "factorial" | "binomial") && values.iter().all(|value| value.as_rational().is_some()) {
            self.unevaluated = Some("a factorial or binomial over 500");
        }
        match exact {
            Some(value) => Ok(value),
            None => {
                let references: Vec<&Quotient> = values.iter().collect();
                // A base that is not known here stays with its logarithm.
                let name =
                    if name == "log" && values.len() == 1 && self.log_base == LogBase::Natural { "ln" } else { name };
                self.opaque(name, &references)
            }
        }
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
            Node::Unit(value, unit) if unit == "rad" => self.normalize(value),
            _ => Err(NormalError::NotAlgebraic),
        }
    }

    /// Exact values at multiples of `π/12`.
    fn trigonometric(&mut self, name: &str, angle: &Quotient) -> Normal<Option<Quotient>> {
        let Some(turn) = self.multiple_of_pi(angle) else { return Ok(None) };
        let twelfths = turn * BigInt::from(12);
        if !twelfths.is_integer() {
            return Ok(None);
        }
        let Some(sine) = twelfths.to_integer().mod_floor(&24.into()).to_u32() else { return Ok(None) };
        let (sin, cos) = (self.sine(sine)?, self.sine((sine + 6) % 24)?);
        let one = Quotient::rational(BigRational::one());
        let value = match name {
            "sin" => sin,
            "cos" => cos,
            "tan" => self.divide(&sin, cos)?,
            "cot" => self.divide(&cos, sin)?,
            "sec" => self.divide(&one, cos)?,
            _ => self.divide(&one, sin)?,
        };
        Ok(Some(value))
    }

    /// `q` of an angle `q π`.
    fn multiple_of_pi(&mut self, angle: &Quotient) -> Option<BigRational> {
        let den = as_constant(&angle.den)?;
        if angle.num.is_empty() {
            return Some(BigRational::zero());
        }
        let pi = self.atom(Atom::Pi);
        let (monomial, _) = pi.num.first_key_value()?;
        match angle.num.len() {
            1 => angle.num.get(monomial).map(|coefficient| coefficient / den),
            _ => None,
        }
    }

    /// `sin(n π / 12)` for `n` below 24.
    fn sine(&mut self, n: u32) -> Normal<Quotient> {
        let (negative, n) = (n >= 12, n % 12);
        let n = if n > 6 { 12 - n } else { n };
        // Numerators over 4: the sum of a whole number and of roots of 2, 3 and 6.
        let (whole, two, three, six) = match n {
            0 => (0, 0, 0, 0),
            1 => (0, -1, 0, 1),
            2 => (2, 0, 0, 0),
            3 => (0, 2, 0, 0),
            4 => (0, 0, 2, 0),
            5 => (0, 1, 0, 1),
            _ => (4, 0, 0, 0),
        };
        let sign = if negative { -1 } else { 1 };
        let quarter = |n: i64| Quotient::rational(BigRational::new((sign * n).into(), 4.into()));
        let mut total = quarter(whole);
        for (radicand, count) in [(2, two), (3, three), (6, six)] {
            if count != 0 {
                let root = self.root(Quotient::rational(BigRational::from_integer(radicand.into())), 2)?;
                let term = self.multiply(&root, &quarter(count))?;
                total = self.add(&total, &term)?;
            }
        }
        Ok(total)
    }

    fn logarithm_to(&mut self, base: &Quotient, x: &Quotient) -> Normal<Option<Quotient>> {
        let (Some(base), Some(x)) = (self.logarithm(base)?, self.logarithm(x)?) else { return Ok(None) };
        Ok(Some(self.divide(&x, base)?))
    }

    /// `ln` of a positive rational number times powers of `e` and of roots, by their prime factors.
    fn logarithm(&mut self, x: &Quotient) -> Normal<Option<Quotient>> {
        let Some(den) = as_constant(&x.den) else { return Ok(None) };
        let (1, Some((monomial, coefficient))) = (x.num.len(), x.num.first_key_value()) else { return Ok(None) };
        let coefficient = coefficient / den;
        if !coefficient.is_positive() || coefficient.numer().bits().max(coefficient.denom().bits()) > 512 {
            return Ok(None);
        }
        let mut parts: Vec<(BigInt, BigRational)> = Vec::new();
        let mut total = Quotient::rational(BigRational::zero());
        for &(number, power) in monomial {
            match self.atoms.get(number as usize) {
                Some(Atom::E) => {
                    total = self.add(&total, &Quotient::rational(BigRational::from_integer(power.into())))?
                }
                Some(Atom::Root(radicand, degree)) => {
                    parts.push((radicand.clone(), BigRational::new(power.into(), (*degree).into())));
                }
                _ => return Ok(None),
            }
        }
        parts.push((coefficient.numer().clone(), BigRational::one()));
        parts.push((coefficient.denom().clone(), -BigRational::one()));
        for (number, weight) in parts {
            self.spend(60)?;
            for (factor, power) in factors(number, 1).into_iter().filter(|(factor, _)| !factor.is_one()) {
                let log = self.atom(Atom::Log(factor));
                let term = self.multiply(&log, &Quotient::rational(&weight * BigInt::from(power)))?;
                total = self.add(&total, &term)?;
            }
        }
        Ok(Some(total))
    }

    /// A sum or product over a short range of whole numbers.
    fn range(&mut self, name: &'static str, body: &Node, index: &str, low: &Node, high: &Node) -> Normal<Quotient> {
        let (low, high) = (self.normalize(low)?, self.normalize(high)?);
        let whole = |q: &Quotient| q.as_rational().filter(|r| r.is_integer()).and_then(|r| r.to_integer().to_i64());
        let (Some(first), Some(last)) = (whole(&low), whole(&high)) else {
            // The name of the index does not count.
            let body = self.normalize(&body.substitute(index, &Node::Name("\\index".to_owned())))?;
            return self.opaque(name, &[&body, &low, &high]);
        };
        if last.saturating_sub(first) >= MAX_TERMS {
            return Err(NormalError::Budget("a sum of more than 100 terms"));
        }
        let mut total = Quotient::rational(if name == "sum" { BigRational::zero() } else { BigRational::one() });
        let size = body.size();
        for value in first..=last {
            self.spend(20 + size / 4)?;
            let term = self.normalize(&body.substitute(index, &Node::integer(value)))?;
            total = if name == "sum" { self.add(&total, &term)? } else { self.multiply(&total, &term)? };
        }
        Ok(total)
    }

    /// By expansion along the first row, to 4 × 4.
    fn determinant(&mut self, rows: &[Vec<Node>]) -> Normal<Quotient> {
        if rows.len() > 4 || rows.iter().any(|row| row.len() != rows.len()) {
            return Err(NormalError::NotAlgebraic);
        }
        let cells: Vec<Vec<Quotient>> =
            rows.iter().map(|row| row.iter().map(|cell| self.normalize(cell)).collect()).collect::<Normal<_>>()?;
        let columns: Vec<usize> = (0..rows.len()).collect();
        self.minor(&cells, &columns)
    }

    fn minor(&mut self, rows: &[Vec<Quotient>], columns: &[usize]) -> Normal<Quotient> {
        let Some((row, below)) = rows.split_first() else { return Ok(Quotient::rational(BigRational::one())) };
        let mut total = Quotient::rational(BigRational::zero());
        for (at, &column) in columns.iter().enumerate() {
            let others: Vec<usize> = columns.iter().copied().filter(|c| *c != column).collect();
            let minor = self.minor(below, &others)?;
            let term = self.multiply(&row[column], &minor)?;
            let sign = Quotient::rational(BigRational::from_integer(if at % 2 == 0 { 1 } else { -1 }.into()));
            let term = self.multiply(&term, &sign)?;
            total = self.add(&total, &term)?;
        }
        Ok(total)
    }
}
