//! Decides whether an answer equals the gold: by the kind of both sides here, each kind in its own file.

mod collection;
mod decimal;
mod relation;
mod sets;
mod value;

use super::normal::{NormalError, Normalizer};
use super::tree::{Node, Relation};

/// Most pairs of parts compared in one verdict.
const MAX_PAIRS: usize = 1000;

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Equal,
    Different,
    /// A division by zero in either side.
    Undefined,
    Budget(&'static str),
}

impl From<bool> for Outcome {
    fn from(equal: bool) -> Self {
        if equal { Self::Equal } else { Self::Different }
    }
}

/// Compares two trees; holds the budget of one verdict.
#[derive(Debug, Default)]
pub(super) struct Comparer {
    normalizer: Normalizer,
    pairs: usize,
}

impl Comparer {
    /// Whether a gold has a value that can be compared, in each of its parts: [`Outcome::Equal`] if so.
    pub(super) fn check(&mut self, gold: &Node) -> Outcome {
        match gold {
            Node::List(parts) | Node::Set(parts) | Node::Tuple { items: parts, .. } => {
                self.all(parts.iter(), |comparer, part| comparer.check(part))
            }
            Node::Matrix(rows) => self.all(rows.iter().flatten(), |comparer, part| comparer.check(part)),
            Node::Relation(first, rest) => {
                let sides = std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side));
                self.all(sides, |comparer, side| comparer.check(side))
            }
            value => match self.normalizer.normalize(value) {
                Err(NormalError::Undefined) => Outcome::Undefined,
                Err(NormalError::Budget(limit)) => Outcome::Budget(limit),
                Ok(_) | Err(NormalError::NotAlgebraic) => Outcome::Equal,
            },
        }
    }

    /// Whether `answer` equals `gold`.
    pub(super) fn compare(&mut self, gold: &Node, answer: &Node) -> Outcome {
        self.pairs += 1;
        if self.pairs > MAX_PAIRS {
            return Outcome::Budget("more than 1000 pairs of parts");
        }
        if (describes_set(gold) || describes_set(answer))
            && let Some(equal) = self.real_sets(gold, answer)
        {
            return equal.into();
        }
        match (gold, answer) {
            (Node::Set(one), other) if one.len() == 1 && !is_collection(other) => self.compare(&one[0], other),
            (other, Node::Set(one)) if one.len() == 1 && !is_collection(other) => self.compare(other, &one[0]),
            (Node::Relation(..), _) | (_, Node::Relation(..)) if !is_collection(gold) && !is_collection(answer) => {
                self.relations(gold, answer)
            }
            (Node::List(a) | Node::Set(a), Node::List(b) | Node::Set(b))
            | (Node::Union(a), Node::Union(b))
            | (Node::Intersection(a), Node::Intersection(b)) => self.unordered(a, b),
            (Node::Without(a, b), Node::Without(c, d)) => {
                self.all([(a, c), (b, d)].into_iter(), |comparer, (x, y)| comparer.compare(x, y))
            }
            (Node::Tuple { .. }, Node::Tuple { .. }) => self.tuples(gold, answer),
            (Node::Tuple { .. }, Node::List(list)) => self.tuple_and_list(gold, list),
            (Node::List(list), Node::Tuple { .. }) => self.tuple_and_list(answer, list),
            (Node::Matrix(a), Node::Matrix(b)) => {
                if a.len() != b.len() {
                    return Outcome::Different;
                }
                self.all(a.iter().zip(b), |comparer, (x, y)| comparer.ordered(x, y))
            }
            (Node::Matrix(rows), Node::Tuple { .. }) => self.vectors(rows, answer),
            (Node::Tuple { .. }, Node::Matrix(rows)) => self.vectors(rows, gold),
            (Node::List(parts), value) | (value, Node::List(parts)) => self.repeated(parts, value),
            (Node::Ratio { .. }, _) | (_, Node::Ratio { .. }) => self.ratios(gold, answer),
            (Node::Based { digits: a, base: b }, Node::Based { digits: c, base: d }) => (a == c && b == d).into(),
            // A missing base is like a missing unit; digits alone cannot be those of another base by accident.
            (Node::Based { digits, .. }, Node::Number { value, decimals: None })
            | (Node::Number { value, decimals: None }, Node::Based { digits, .. }) => {
                (value.to_string() == *digits).into()
            }
            (Node::Infinity, Node::Infinity) => Outcome::Equal,
            (Node::Negative(a), Node::Negative(b)) if **a == Node::Infinity => (**b == Node::Infinity).into(),
            (Node::Unit(..), _) | (_, Node::Unit(..)) => self.units(gold, answer),
            (Node::Text(_), _) | (_, Node::Text(_)) => match (words(gold), words(answer)) {
                (Some(a), Some(b)) => (a == b).into(),
                _ => Outcome::Different,
            },
            _ => self.values(gold, answer),
        }
    }

    fn all<T>(&mut self, mut pairs: impl Iterator<Item = T>, mut each: impl FnMut(&mut Self, T) -> Outcome) -> Outcome {
        pairs.find_map(|pair| Some(each(self, pair)).filter(|o| *o != Outcome::Equal)).unwrap_or(Outcome::Equal)
    }
}

fn failure(error: NormalError, equal: bool) -> Outcome {
    match error {
        NormalError::Budget(limit) => Outcome::Budget(limit),
        NormalError::Undefined => Outcome::Undefined,
        NormalError::NotAlgebraic => equal.into(),
    }
}

fn is_collection(node: &Node) -> bool {
    matches!(node, Node::Set(_) | Node::List(_))
}

/// Whether a part is a set of real numbers by its form, and not only an interval or a point.
fn describes_set(node: &Node) -> bool {
    match node {
        Node::Union(_) | Node::Intersection(_) | Node::Without(..) => true,
        Node::Name(name) => name == sets::REALS,
        Node::Relation(_, rest) => rest.iter().any(|(relation, _)| *relation != Relation::Equal),
        Node::List(parts) => {
            parts.len() > 1 && parts.iter().all(|part| matches!(part, Node::Relation(..)) && describes_set(part))
        }
        _ => false,
    }
}

/// The letters of a word: a phrase, a name, or names side by side.
fn words(node: &Node) -> Option<String> {
    match node {
        Node::Text(text) => {
            let inner = text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '.'));
            Some(inner.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        Node::Name(name) => Some(name.to_lowercase()),
        Node::E => Some("e".to_owned()),
        Node::I => Some("i".to_owned()),
        Node::Product(parts) => {
            parts.iter().map(|part| if matches!(part, Node::Product(_)) { None } else { words(part) }).collect()
        }
        _ => None,
    }
}
