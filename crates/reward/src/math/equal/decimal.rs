//! Decimals that stand for a value that they do not state exactly.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Pow, Signed, ToPrimitive, Zero};

use crate::math::normal::Quotient;
use crate::math::numeric::real_value;
use crate::math::tree::Node;

/// Least significant digits of a decimal that may stand for a number no decimal states exactly.
const LONG_DECIMAL: usize = 10;
/// Least places after the point of such a decimal.
const MIN_PLACES: usize = 6;
/// The relative error of a value in f64, at most.
const FLOAT_ERROR: f64 = 1e-14;

/// The two cases: a gold that was rounded, and a long decimal for a gold that no decimal can state.
pub(super) fn rounds(gold: &Node, answer: &Node, g: &Quotient, a: &Quotient) -> bool {
    match (decimal(gold), decimal(answer)) {
        // The gold was rounded: an exact value answers it if it rounds to it.
        (Some((rounded, places)), None) if places >= 2 && !answer.any(&is_decimal) => match a.as_rational() {
            Some(exact) if exact.is_integer() => false,
            Some(exact) => (exact - rounded).abs() <= half_unit(places),
            None => within(answer, &rounded, places, 0.5),
        },
        // The answer is a long decimal of a value that has no finite one: its last digit may be cut off.
        (None, Some((rounded, places))) if places >= MIN_PLACES && significant(&rounded, places) >= LONG_DECIMAL => {
            match g.as_rational() {
                Some(exact) if is_terminating(&exact) => false,
                Some(exact) => (exact - rounded).abs() <= half_unit(places) * BigInt::from(2),
                None => within(gold, &rounded, places, 1.0),
            }
        }
        _ => false,
    }
}

fn half_unit(places: usize) -> BigRational {
    BigRational::new(1.into(), BigInt::from(2) * Pow::pow(BigInt::from(10), places))
}

/// Whether the value is within `units` of the last place of a decimal.
fn within(exact: &Node, rounded: &BigRational, places: usize, units: f64) -> bool {
    let Some((exact, rounded)) = real_value(exact).zip(rounded.to_f64()) else { return false };
    let slack = units * 10f64.powi(-(places.min(300) as i32));
    let error = exact.abs() * FLOAT_ERROR;
    // Beyond sixteen digits f64 decides as far as it sees; before that the decimal is the coarser one.
    (exact - rounded).abs() <= slack.max(error)
}

fn is_decimal(node: &Node) -> bool {
    matches!(node, Node::Number { decimals: Some(_), .. })
}

/// The digits of a decimal literal: its value, and the number of places.
fn decimal(node: &Node) -> Option<(BigRational, usize)> {
    match node {
        Node::Number { value, decimals: Some(places) } => Some((value.clone(), *places)),
        Node::Negative(inner) => decimal(inner).map(|(value, places)| (-value, places)),
        _ => None,
    }
}

fn significant(value: &BigRational, places: usize) -> usize {
    let scaled = value.abs() * Pow::pow(BigInt::from(10), places);
    scaled.to_integer().to_string().trim_start_matches('0').len()
}

fn is_terminating(value: &BigRational) -> bool {
    let mut rest = value.denom().clone();
    for prime in [BigInt::from(2), BigInt::from(5)] {
        while (&rest % &prime).is_zero() {
            rest /= &prime;
        }
    }
    rest == 1.into()
}
