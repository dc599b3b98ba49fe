//! Sets of real numbers: intervals, points, conditions on a variable, and what `∪`, `∩` and `∖` make of them.
//!
//! The ends of all intervals cut the line into points and gaps, and a set is known by which of these it holds:
//! set operations are logic, and two sets are equal when they hold the same.

use super::{Comparer, Outcome};
use crate::math::numeric::real_value;
use crate::math::tree::{Node, Relation};

/// The name of all real numbers.
pub(super) const REALS: &str = "\\mathbb{R}";
/// Most ends of intervals in one comparison.
const MAX_ENDS: usize = 40;

/// An end of an interval.
#[derive(Debug, Clone)]
struct End {
    value: f64,
    node: Node,
}

/// Which gaps and points of the line belong to a set: gap, point, gap, …, gap.
type Members = Vec<bool>;

impl Comparer {
    /// Whether two sets of numbers are equal; `None` where one is no such set, or too close to call.
    pub(super) fn real_sets(&mut self, gold: &Node, answer: &Node) -> Option<bool> {
        let mut ends = Vec::new();
        collect_ends(gold, &mut ends)?;
        collect_ends(answer, &mut ends)?;
        if ends.len() > MAX_ENDS {
            return None;
        }
        ends.sort_by(|a, b| a.value.total_cmp(&b.value));
        let mut distinct: Vec<End> = Vec::new();
        for end in ends {
            let near = |last: &End| end.value - last.value <= 1e-9 * (1.0 + end.value.abs());
            match distinct.last().filter(|last| near(last)).cloned() {
                Some(last) => match self.compare(&last.node, &end.node) {
                    Outcome::Equal => {}
                    _ => return None,
                },
                None => distinct.push(end),
            }
        }
        let line: Vec<f64> = distinct.iter().map(|end| end.value).collect();
        Some(members(gold, &line)? == members(answer, &line)?)
    }
}

/// A bound of an interval; `None` for infinity.
fn bound(node: &Node) -> Option<Option<f64>> {
    match node {
        Node::Infinity => Some(None),
        Node::Negative(inner) if **inner == Node::Infinity => Some(None),
        value => real_value(value).map(Some),
    }
}

fn is_interval(open: char, close: char, items: &[Node]) -> bool {
    matches!(open, '(' | '[') && matches!(close, ')' | ']') && items.len() == 2
}

/// The finite ends in a set; `None` if it is none that is known here.
fn collect_ends(node: &Node, ends: &mut Vec<End>) -> Option<()> {
    let mut add = |node: &Node| {
        if let Some(value) = bound(node)? {
            ends.push(End { value, node: node.clone() });
        }
        Some(())
    };
    match node {
        Node::Name(name) if name == REALS => Some(()),
        Node::Tuple { open, close, items } if is_interval(*open, *close, items) => items.iter().try_for_each(add),
        Node::Set(items) => items.iter().try_for_each(add),
        Node::Relation(first, rest) => match (&**first, rest.as_slice()) {
            (Node::Name(_), [(Relation::In, set)]) => collect_ends(set, ends),
            (Node::Name(_), [(_, side)]) | (side, [(_, Node::Name(_))]) => add(side),
            (low, [(_, Node::Name(_)), (_, high)]) => [low, high].into_iter().try_for_each(add),
            _ => None,
        },
        Node::Union(parts) | Node::Intersection(parts) | Node::List(parts) => {
            parts.iter().try_for_each(|part| collect_ends(part, ends))
        }
        Node::Without(a, b) => [a, b].into_iter().try_for_each(|part| collect_ends(part, ends)),
        _ => None,
    }
}

/// The place of a value among the distinct ends.
fn place(line: &[f64], value: f64) -> Option<usize> {
    let at = line.partition_point(|end| value - end > 1e-9 * (1.0 + value.abs()));
    (at < line.len()).then_some(at)
}

/// The members from `low` to `high`; a bound that is `None` is infinite.
fn between(line: &[f64], low: Option<(f64, bool)>, high: Option<(f64, bool)>) -> Option<Members> {
    let mut members = vec![false; 2 * line.len() + 1];
    // Cell 2k + 1 is the point k.
    let first = match low {
        Some((value, closed)) => 2 * place(line, value)? + if closed { 1 } else { 2 },
        None => 0,
    };
    let end = match high {
        Some((value, closed)) => 2 * place(line, value)? + if closed { 2 } else { 1 },
        None => members.len(),
    };
    if first < end {
        members[first..end].iter_mut().for_each(|member| *member = true);
    }
    Some(members)
}

/// One condition `name relation value`.
fn half_line(line: &[f64], relation: Relation, value: &Node) -> Option<Members> {
    let value = bound(value)?;
    let end = |closed: bool| value.map(|value| (value, closed));
    match relation {
        Relation::Less => between(line, None, end(false)),
        Relation::LessEqual => between(line, None, end(true)),
        Relation::Greater => between(line, end(false), None),
        Relation::GreaterEqual => between(line, end(true), None),
        Relation::NotEqual => {
            let point = between(line, end(true), end(true))?;
            value.map(|_| point.into_iter().map(|member| !member).collect())
        }
        _ => None,
    }
}

fn combine(parts: &[Node], line: &[f64], join: fn(bool, bool) -> bool) -> Option<Members> {
    let mut all = parts.iter().map(|part| members(part, line));
    let mut total = all.next()??;
    for part in all {
        total.iter_mut().zip(part?).for_each(|(member, other)| *member = join(*member, other));
    }
    Some(total)
}

fn members(node: &Node, line: &[f64]) -> Option<Members> {
    match node {
        Node::Name(_) => between(line, None, None),
        Node::Tuple { open, close, items } => {
            let [low, high] = items.as_slice() else { return None };
            // `(∞, 1)` is no interval.
            if *low == Node::Infinity || matches!(high, Node::Negative(inner) if **inner == Node::Infinity) {
                return None;
            }
            let (low, high) = (bound(low)?, bound(high)?);
            let closed_infinity = (low.is_none() && *open == '[') || (high.is_none() && *close == ']');
            if closed_infinity || low.zip(high).is_some_and(|(low, high)| low > high) {
                return None;
            }
            between(line, low.map(|v| (v, *open == '[')), high.map(|v| (v, *close == ']')))
        }
        Node::Set(items) => {
            let mut total = vec![false; 2 * line.len() + 1];
            for item in items {
                total[2 * place(line, bound(item)??)? + 1] = true;
            }
            Some(total)
        }
        Node::Relation(first, rest) => match (&**first, rest.as_slice()) {
            (Node::Name(_), [(Relation::In, set)]) => members(set, line),
            (Node::Name(_), [(relation, side)]) => half_line(line, *relation, side),
            (side, [(relation, Node::Name(_))]) => half_line(line, relation.reversed(), side),
            (low, [(r, Node::Name(_)), (s, high)]) => {
                let (low, high) = (half_line(line, r.reversed(), low)?, half_line(line, *s, high)?);
                Some(low.into_iter().zip(high).map(|(a, b)| a && b).collect())
            }
            _ => None,
        },
        Node::Union(parts) => combine(parts, line, |a, b| a || b),
        Node::Intersection(parts) => combine(parts, line, |a, b| a && b),
        Node::Without(a, b) => {
            let (a, b) = (members(a, line)?, members(b, line)?);
            Some(a.into_iter().zip(b).map(|(a, b)| a && !b).collect())
        }
        // "and" and "or" are not told apart: what is nowhere true, or everywhere, was not meant.
        Node::List(parts) => {
            let both = combine(parts, line, |a, b| a && b)?;
            let either = combine(parts, line, |a, b| a || b)?;
            match (both.contains(&true), either.contains(&false)) {
                (false, true) => Some(either),
                (true, false) => Some(both),
                _ => None,
            }
        }
        _ => None,
    }
}
