//! Numeric comparison, for what exact rules leave open: first in f64, which tells nearly all unequal values
//! apart, then in 320 bits, which confirms the equal ones.

mod complex;
mod evaluate;
mod real;

use std::marker::PhantomData;

use complex::Complex;
use evaluate::Evaluator;
pub(super) use real::Real;
use real::{PRECISION, Precise};

use super::budget::Budget;
use super::tree::Node;

/// Values farther apart than this, relative to their size, are different; f64 errs by far less where no
/// digits cancel.
const COARSE: f64 = 1e-6;
/// Bits in which two values must agree to be equal.
const AGREEMENT: i32 = PRECISION as i32 - 80;
/// Most bits of all literals: two different values with no more are unlikely to agree in [`AGREEMENT`] bits.
const MAX_LITERAL_BITS: u64 = 200;
/// Steps of the budget for one node in 320 bits.
const PRECISE_STEPS: usize = 80;

/// What numbers say about two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    Equal,
    Different,
    OverBudget,
}

/// Whether both sides have the same value; with variables, at several points where both are real.
///
/// A power `x^{p/q}` with an odd `q` is also tried as the real one at negative `x`, in both.
pub(super) fn agree(gold: &Node, answer: &Node, budget: &mut Budget) -> Agreement {
    let size = gold.size() + answer.size();
    let names = gold.has_names() || answer.has_names();
    let mut conventions = vec![false];
    let rational_power =
        |node: &Node| matches!(node, Node::Power(_, exponent) if matches!(&**exponent, Node::Product(_)));
    if gold.any(&rational_power) || answer.any(&rational_power) {
        conventions.push(true);
    }
    for real_powers in conventions {
        let complex = !names || [gold, answer].iter().any(|side| side.any(&|node| *node == Node::I));
        let pair = Pair { gold, answer, names, complex, real_powers };
        if !budget.spend(size) {
            return Agreement::OverBudget;
        }
        if pair.differ() {
            continue;
        }
        if literal_bits(gold) + literal_bits(answer) > MAX_LITERAL_BITS {
            continue;
        }
        if !budget.spend(size * PRECISE_STEPS * if names { 3 } else { 1 }) {
            return Agreement::OverBudget;
        }
        if pair.equal() {
            return Agreement::Equal;
        }
    }
    Agreement::Different
}

/// The value in f64, if it is one real number.
pub(super) fn real_value(node: &Node) -> Option<f64> {
    if node.has_names() {
        return None;
    }
    let evaluator = Evaluator::<f64> { kind: PhantomData, point: 0.0, spread: 0.0, complex: true, real_powers: false };
    evaluator.value(node)?.as_real().filter(|value| value.is_finite())
}

struct Pair<'a> {
    gold: &'a Node,
    answer: &'a Node,
    names: bool,
    complex: bool,
    real_powers: bool,
}

/// Where variables are tried, and how far apart different ones are.
const POINTS: [(f64, f64); 8] = [
    (0.739_1, 0.31),
    (-0.577_3, -0.47),
    (1.618_7, 0.83),
    (0.182_7, 0.29),
    (-1.324_7, 0.91),
    (3.359_9, -1.7),
    (2.236_9, 1.1),
    (0.413_3, -0.38),
];

impl Pair<'_> {
    fn points(&self) -> &'static [(f64, f64)] {
        if self.names { &POINTS } else { &POINTS[..1] }
    }

    fn at<R: Real>(&self, (point, spread): (f64, f64)) -> Option<(Complex<R>, Complex<R>)> {
        let (complex, real_powers) = (self.complex, self.real_powers);
        let evaluator = Evaluator::<R> { kind: PhantomData, point, spread, complex, real_powers };
        Some((evaluator.value(self.gold)?, evaluator.value(self.answer)?))
    }

    /// Whether f64 tells the two apart.
    fn differ(&self) -> bool {
        self.points().iter().filter_map(|&point| self.at::<f64>(point)).any(|(a, b)| {
            let size = a.abs().max(b.abs());
            a.minus(&b).abs() > COARSE * size.max(1e-3)
        })
    }

    /// Whether they agree in [`AGREEMENT`] bits wherever both have a value: at three points, or at the only one.
    fn equal(&self) -> bool {
        let wanted = if self.names { 3 } else { 1 };
        let mut seen = 0;
        for &point in self.points() {
            let Some((a, b)) = self.at::<Precise>(point) else { continue };
            if !a.minus(&b).is_below(&a, &b, AGREEMENT) {
                return false;
            }
            seen += 1;
            if seen == wanted {
                return true;
            }
        }
        false
    }
}

/// The bits of all numbers in a tree, those in a power as often as it multiplies them.
fn literal_bits(node: &Node) -> u64 {
    let own = match node {
        Node::Number { value, .. } => value.numer().bits() + value.denom().bits() - 1,
        Node::Power(base, exponent) => match &**exponent {
            Node::Number { value, .. } if value.is_integer() => {
                let times = u64::try_from(value.to_integer()).unwrap_or(u64::MAX);
                return literal_bits(base).saturating_mul(times).saturating_add(4);
            }
            _ => 0,
        },
        _ => 0,
    };
    node.children().into_iter().fold(own, |total, part| total.saturating_add(literal_bits(part)))
}
