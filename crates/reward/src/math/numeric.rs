//! Evaluates a tree in complex floating point, for what exact rules leave open.

use num_traits::ToPrimitive;

use super::tree::Node;

/// Largest numerator or denominator of a literal: nine digits, in bits.
const MAX_LITERAL_BITS: u64 = 30;

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    const ONE: Self = Self::real(1.0);

    pub(super) const fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub(super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    fn inverse(self) -> Self {
        let norm = self.re * self.re + self.im * self.im;
        Self { re: self.re / norm, im: -self.im / norm }
    }

    fn ln(self) -> Self {
        Self { re: self.abs().ln(), im: self.im.atan2(self.re) }
    }

    fn exp(self) -> Self {
        let size = self.re.exp();
        Self { re: size * self.im.cos(), im: if self.im == 0.0 { 0.0 } else { size * self.im.sin() } }
    }

    /// The principal value.
    fn power(self, exponent: Self) -> Self {
        if self.abs() == 0.0 {
            return if exponent.re > 0.0 { self } else { Self::real(f64::NAN) };
        }
        if self.im == 0.0 && exponent.im == 0.0 && (self.re > 0.0 || exponent.re.fract() == 0.0) {
            return Self::real(self.re.powf(exponent.re));
        }
        self.ln().times(exponent).exp()
    }

    /// The value, if it is real.
    pub(super) fn as_real(self) -> Option<f64> {
        (self.im.abs() <= 1e-12 * self.re.abs().max(1e-300) || self.im == 0.0).then_some(self.re)
    }
}

/// The value of `node` with `value_of` the values of names. `None` where there is none, or no rule for it.
pub(super) fn evaluate(node: &Node, value_of: &dyn Fn(&str) -> f64) -> Option<Complex> {
    let eval = |node: &Node| evaluate(node, value_of);
    let value = match node {
        // A longer literal may differ from its neighbour by less than the tolerance: not for numbers to decide.
        Node::Number { value, .. } if value.numer().bits().max(value.denom().bits()) > MAX_LITERAL_BITS => return None,
        Node::Number { value, .. } => Complex::real(value.to_f64()?),
        Node::Name(name) => Complex::real(value_of(name)),
        Node::Pi => Complex::real(std::f64::consts::PI),
        Node::E => Complex::real(std::f64::consts::E),
        Node::I => Complex { re: 0.0, im: 1.0 },
        Node::Negative(inner) => Complex::real(-1.0).times(eval(inner)?),
        Node::Sum(terms) => {
            let mut total = Complex::real(0.0);
            let (mut largest, mut smallest) = (0.0f64, f64::INFINITY);
            for term in terms {
                let term = eval(term)?;
                largest = largest.max(term.abs());
                if term.abs() > 0.0 {
                    smallest = smallest.min(term.abs());
                }
                total = total.plus(term);
            }
            // What cancels to nearly nothing has no digits left to compare, and a term lost beside another
            // would not be compared at all.
            if total.abs() < 1e-6 * largest || smallest < 1e-6 * largest {
                return None;
            }
            total
        }
        Node::Product(factors) => {
            let mut total = Complex::ONE;
            for factor in factors {
                total = total.times(eval(factor)?);
            }
            total
        }
        Node::Inverse(inner) => eval(inner)?.inverse(),
        Node::Power(base, exponent) => eval(base)?.power(eval(exponent)?),
        Node::Root { degree, radicand } => {
            let radicand = eval(radicand)?;
            let exponent = 1.0 / f64::from(*degree);
            match radicand.as_real() {
                // An odd root of a negative number is the real one.
                Some(negative) if negative < 0.0 && degree % 2 == 1 => Complex::real(-(-negative).powf(exponent)),
                _ => radicand.power(Complex::real(exponent)),
            }
        }
        Node::Call(name, arguments) => call(name, arguments, value_of)?,
        _ => return None,
    };
    (value.re.is_finite() && value.im.is_finite()).then_some(value)
}

fn call(name: &str, arguments: &[Node], value_of: &dyn Fn(&str) -> f64) -> Option<Complex> {
    let angle = |node: &Node| match node {
        Node::Unit(value, unit) if unit == "°" => {
            evaluate(value, value_of).map(|v| v.times(Complex::real(std::f64::consts::PI / 180.0)))
        }
        other => evaluate(other, value_of),
    };
    let values = arguments.iter().map(angle).collect::<Option<Vec<_>>>()?;
    match (name, values.as_slice()) {
        ("abs", [x]) => return Some(Complex::real(x.abs())),
        ("exp", [x]) => return Some(x.exp()),
        ("ln" | "log", [x]) => return Some(x.ln()),
        ("log", [base, x]) => return Some(x.ln().times(base.ln().inverse())),
        _ => {}
    }
    let [x] = values.as_slice() else { return None };
    let x = x.as_real()?;
    let value = match name {
        "sin" => x.sin(),
        "cos" => x.cos(),
        "tan" => x.tan(),
        "cot" => x.tan().recip(),
        "sec" => x.cos().recip(),
        "csc" => x.sin().recip(),
        "arcsin" => x.asin(),
        "arccos" => x.acos(),
        "arctan" => x.atan(),
        "sinh" => x.sinh(),
        "cosh" => x.cosh(),
        "tanh" => x.tanh(),
        // Steps have no digits to compare: a value just below a whole number would be rounded down.
        _ => return None,
    };
    Some(Complex::real(value))
}
