//! Lists, sets, tuples, vectors and ratios.

use super::relation::Definition;
use super::{Comparer, Outcome};
use crate::math::numeric::real_value;
use crate::math::tree::Node;

impl Comparer {
    pub(super) fn ordered(&mut self, gold: &[Node], answer: &[Node]) -> Outcome {
        if gold.len() != answer.len() {
            return Outcome::Different;
        }
        self.all(gold.iter().zip(answer), |comparer, (a, b)| comparer.compare(a, b))
    }

    /// Every part of the gold has its own equal part in the answer.
    pub(super) fn unordered(&mut self, gold: &[Node], answer: &[Node]) -> Outcome {
        if gold.len() != answer.len() {
            return Outcome::Different;
        }
        let mut free: Vec<&Node> = answer.iter().collect();
        for part in gold {
            let mut found = None;
            for (at, candidate) in free.iter().enumerate() {
                match self.compare(part, candidate) {
                    Outcome::Equal => {
                        found = Some(at);
                        break;
                    }
                    Outcome::Different => {}
                    failure => return failure,
                }
            }
            match found {
                Some(at) => free.remove(at),
                None => return Outcome::Different,
            };
        }
        Outcome::Equal
    }

    /// Points, intervals and vectors: `⟨1, 2⟩` is `(1, 2)`, which is not `[1, 2)`.
    pub(super) fn tuples(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Some((o1, c1, a)), Some((o2, c2, b))) = (tuple(gold), tuple(answer)) else { return Outcome::Different };
        if o1 != o2 || c1 != c2 { Outcome::Different } else { self.ordered(a, b) }
    }

    /// A point without its brackets, or as `x = 1, y = 2`: the same values in the same order.
    pub(super) fn tuple_and_list(&mut self, point: &Node, list: &[Node]) -> Outcome {
        let Some(('(', ')', items)) = tuple(point) else { return Outcome::Different };
        let infinite = |node: &Node| node.any(&|part| *part == Node::Infinity);
        if items.len() != list.len() || items.iter().any(infinite) {
            return Outcome::Different;
        }
        let mut parts: Vec<&Node> = list.iter().collect();
        if list.iter().all(|part| Definition::name_of(part).is_some()) && !items.iter().any(Node::has_names) {
            parts.sort_by_key(|part| Definition::name_of(part));
        }
        self.all(items.iter().zip(parts), |comparer, (a, b)| comparer.compare(a, b))
    }

    /// A row or a column of a matrix against a tuple, and `[[1, 2], [3, 4]]` against a whole one.
    pub(super) fn vectors(&mut self, rows: &[Vec<Node>], other: &Node) -> Outcome {
        let Some((open, close, items)) = tuple(other) else { return Outcome::Different };
        let inner = |item: &'_ Node| matches!(item, Node::Tuple { open: '[', close: ']', .. });
        if items.iter().all(inner) && rows.len() == items.len() {
            return self.all(rows.iter().zip(items), |comparer, (row, item)| match tuple(item) {
                Some((_, _, cells)) => comparer.ordered(row, cells),
                None => Outcome::Different,
            });
        }
        if !matches!((open, close), ('(', ')') | ('[', ']')) {
            return Outcome::Different;
        }
        let cells: Vec<&Node> = match rows {
            [row] => row.iter().collect(),
            column if column.iter().all(|row| row.len() == 1) => column.iter().flatten().collect(),
            _ => return Outcome::Different,
        };
        if cells.len() != items.len() {
            return Outcome::Different;
        }
        self.all(items.iter().zip(cells), |comparer, (a, b)| comparer.compare(a, b))
    }

    /// One value in different forms, as in `3/4, 0.75`, is that value. The same form twice is a list.
    pub(super) fn repeated(&mut self, parts: &[Node], value: &Node) -> Outcome {
        let distinct = parts.iter().enumerate().all(|(at, part)| !parts[..at].contains(part));
        if parts.len() > 4 || !distinct {
            return Outcome::Different;
        }
        self.all(parts.iter(), |comparer, part| comparer.compare(value, part))
    }

    /// `2:3` is `4:6` and, of two parts, `2/3`; a time is only itself.
    pub(super) fn ratios(&mut self, gold: &Node, answer: &Node) -> Outcome {
        match (gold, answer) {
            (Node::Ratio { parts: a, clock: c }, Node::Ratio { parts: b, clock: d }) => {
                if *c || *d || a.len() != b.len() {
                    return self.ordered(a, b);
                }
                // Crosswise with a part that is not zero on either side: `0:0` is no multiple of `1:2`.
                let zero = |node: &Node| real_value(node) == Some(0.0);
                let Some(pivot) = a.iter().position(|part| !zero(part)).filter(|&at| !zero(&b[at])) else {
                    return self.ordered(a, b);
                };
                let cross = |x: &Node, y: &Node| Node::Product(vec![x.clone(), y.clone()]);
                self.all(a.iter().zip(b), |comparer, (x, y)| {
                    comparer.compare(&cross(x, &b[pivot]), &cross(y, &a[pivot]))
                })
            }
            (Node::Ratio { parts, clock: false }, value) | (value, Node::Ratio { parts, clock: false }) => {
                match parts.as_slice() {
                    [a, b] => {
                        let quotient = Node::Product(vec![a.clone(), Node::Inverse(Box::new(b.clone()))]);
                        self.compare(&quotient, value)
                    }
                    _ => Outcome::Different,
                }
            }
            _ => Outcome::Different,
        }
    }
}

/// Brackets and items of a tuple, with round brackets for angle ones.
fn tuple(node: &Node) -> Option<(char, char, &[Node])> {
    match node {
        Node::Tuple { open: '<', close: '>', items } => Some(('(', ')', items)),
        Node::Tuple { open, close, items } => Some((*open, *close, items)),
        _ => None,
    }
}
