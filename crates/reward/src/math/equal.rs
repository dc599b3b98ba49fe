//! Decides whether an answer equals the gold.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Pow, Signed, ToPrimitive, Zero};

use super::normal::{NormalError, Normalizer, Quotient};
use super::numeric::evaluate;
use super::tree::{Node, Relation};

/// Largest relative difference of two values that numbers call equal.
const TOLERANCE: f64 = 1e-9;
/// Most pairs of parts compared in one verdict.
const MAX_PAIRS: usize = 2000;
/// Least significant digits of a decimal that may stand for a number no decimal states exactly.
const LONG_DECIMAL: usize = 10;

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
    /// Whether a gold has a value that can be compared: [`Outcome::Equal`] if so.
    pub(super) fn check(&mut self, gold: &Node) -> Outcome {
        match self.normalizer.normalize(gold) {
            Err(NormalError::Undefined) => Outcome::Undefined,
            Err(NormalError::Budget(limit)) => Outcome::Budget(limit),
            Ok(_) | Err(NormalError::NotAlgebraic) => Outcome::Equal,
        }
    }

    /// Whether `answer` equals `gold`.
    pub(super) fn compare(&mut self, gold: &Node, answer: &Node) -> Outcome {
        self.pairs += 1;
        if self.pairs > MAX_PAIRS {
            return Outcome::Budget("more than 2000 pairs of parts");
        }
        match (gold, answer) {
            (Node::Set(one), other) if one.len() == 1 && !is_collection(other) => self.compare(&one[0], other),
            (other, Node::Set(one)) if one.len() == 1 && !is_collection(other) => self.compare(other, &one[0]),
            (Node::Relation(..), _) | (_, Node::Relation(..)) => self.relations(gold, answer),
            (Node::List(a) | Node::Set(a), Node::List(b) | Node::Set(b)) | (Node::Union(a), Node::Union(b)) => {
                self.unordered(a, b)
            }
            (Node::Tuple { open: o1, close: c1, items: a }, Node::Tuple { open: o2, close: c2, items: b }) => {
                if o1 != o2 || c1 != c2 { Outcome::Different } else { self.ordered(a, b) }
            }
            (Node::Matrix(a), Node::Matrix(b)) => {
                if a.len() != b.len() {
                    return Outcome::Different;
                }
                self.all(a.iter().zip(b), |comparer, (x, y)| comparer.ordered(x, y))
            }
            (Node::Based { digits: a, base: b }, Node::Based { digits: c, base: d }) => (a == c && b == d).into(),
            // A missing base is like a missing unit; digits alone cannot be those of another base by accident.
            (Node::Based { digits, .. }, Node::Number { value, decimals: None }) => {
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

    fn ordered(&mut self, gold: &[Node], answer: &[Node]) -> Outcome {
        if gold.len() != answer.len() {
            return Outcome::Different;
        }
        self.all(gold.iter().zip(answer), |comparer, (a, b)| comparer.compare(a, b))
    }

    /// Every part of the gold has its own equal part in the answer.
    fn unordered(&mut self, gold: &[Node], answer: &[Node]) -> Outcome {
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

    fn relations(&mut self, gold: &Node, answer: &Node) -> Outcome {
        // `x < 3` and `(-∞, 3)` are one answer; two inequalities are compared as they stand.
        match (interval(gold), interval(answer)) {
            (Some(interval), None) => return self.compare(&interval, answer),
            (None, Some(interval)) => return self.compare(gold, &interval),
            _ => {}
        }
        let (left, right) = (Definition::of(gold), Definition::of(answer));
        match (left, right) {
            (Some(left), Some(right)) => {
                if let (Some(a), Some(b)) = (left.name, right.name) {
                    match self.compare(a, b) {
                        Outcome::Equal => {}
                        // `x = 5` is not `y = 5`, but `y = x + 1` is `x = y - 1`.
                        _ => return self.equations(gold, answer),
                    }
                }
                match self.consistent(&right) {
                    Outcome::Equal => self.compare(left.value, right.value),
                    other => other,
                }
            }
            _ => self.chains(gold, answer),
        }
    }

    /// Whether the steps of `10 = 2 + 8 = 5 · 2` agree; a false chain is no answer.
    fn consistent(&mut self, definition: &Definition<'_>) -> Outcome {
        let steps: Vec<&Node> = definition.steps.to_vec();
        self.all(steps.into_iter(), |comparer, step| comparer.compare(definition.value, step))
    }

    /// Inequalities and chains, part by part, in one direction.
    fn chains(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Node::Relation(..), Node::Relation(..)) = (gold, answer) else { return Outcome::Different };
        let ((a, left), (b, right)) = (ascending(gold), ascending(answer));
        if left != right || left.iter().all(|r| *r == Relation::Equal) {
            return self.equations(gold, answer);
        }
        self.all(a.into_iter().zip(b), |comparer, (x, y)| comparer.compare(x, y))
    }

    /// Two equations of two sides, up to a constant factor.
    fn equations(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Some(left), Some(right)) = (zero_form(gold), zero_form(answer)) else { return Outcome::Different };
        // An equation that states a value is answered by the value, not by an equation to solve.
        if states_a_number(gold) {
            return Outcome::Different;
        }
        let forms = self.normalizer.normalize(&left).and_then(|l| Ok((l, self.normalizer.normalize(&right)?)));
        match forms.and_then(|(l, r)| self.normalizer.proportional(&l, &r)) {
            Ok(equal) => equal.into(),
            Err(error) => failure(error, gold == answer),
        }
    }

    fn units(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (g, g_unit) = split_unit(gold);
        let (a, a_unit) = split_unit(answer);
        if matches!(g, Node::Unit(..)) || matches!(a, Node::Unit(..)) {
            return (gold == answer).into();
        }
        if !(g_unit == a_unit || g_unit.is_empty() || a_unit.is_empty()) {
            return Outcome::Different;
        }
        let same = self.compare(g, a);
        if same != Outcome::Different || g_unit == a_unit {
            return same;
        }
        let percent = |node: &Node| Node::Product(vec![node.clone(), Node::Inverse(Box::new(Node::integer(100)))]);
        match (g_unit, a_unit) {
            ("%", _) => self.compare(&percent(g), a),
            (_, "%") => self.compare(g, &percent(a)),
            _ => Outcome::Different,
        }
    }

    fn values(&mut self, gold: &Node, answer: &Node) -> Outcome {
        if gold == answer {
            return match self.check(gold) {
                Outcome::Undefined => Outcome::Undefined,
                _ => Outcome::Equal,
            };
        }
        let forms = self.normalizer.normalize(gold).and_then(|g| Ok((g, self.normalizer.normalize(answer)?)));
        let (g, a) = match forms {
            Ok(forms) => forms,
            Err(error) => return failure(error, false),
        };
        let difference = match self.normalizer.difference(&g, &a) {
            Ok(difference) => difference,
            Err(error) => return failure(error, false),
        };
        if difference.is_empty() || rounds(gold, answer, &g, &a) {
            return Outcome::Equal;
        }
        if self.normalizer.is_decided(&difference) {
            return Outcome::Different;
        }
        agree(gold, answer).into()
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

fn split_unit(node: &Node) -> (&Node, &str) {
    match node {
        Node::Unit(value, unit) => (value, unit),
        value => (value, ""),
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

/// `x = 5`, `(x, y) = (1, 2)`, `x ∈ [0, 1]`, `2 + 2 = 4`, or a value alone: a value, maybe with a name.
struct Definition<'a> {
    name: Option<&'a Node>,
    steps: Vec<&'a Node>,
    value: &'a Node,
}

impl<'a> Definition<'a> {
    fn of(node: &'a Node) -> Option<Self> {
        let Node::Relation(first, rest) = node else {
            return Some(Self { name: None, steps: Vec::new(), value: node });
        };
        if let [(Relation::In, set)] = rest.as_slice() {
            return is_name(first).then_some(Self { name: Some(first), steps: Vec::new(), value: set });
        }
        if rest.iter().any(|(relation, _)| *relation != Relation::Equal) {
            return None;
        }
        let mut sides: Vec<&Node> = std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side)).collect();
        let value = sides.pop()?;
        if is_name(sides[0]) {
            let name = Some(sides.remove(0));
            return Some(Self { name, steps: sides, value });
        }
        // `5 = x` names its value last.
        if let ([constant], true) = (sides.as_slice(), matches!(value, Node::Name(_))) {
            return Some(Self { name: Some(value), steps: Vec::new(), value: constant });
        }
        // Without a name only a chain of numbers states a value; `a² + b = 0` is an equation.
        let numbers = sides.iter().all(|side| !has_names(side)) && !has_names(value);
        numbers.then_some(Self { name: None, steps: sides, value })
    }
}

/// What may stand before `=` as a mere label: `x`, `AB`, `f(x)`, `(x, y)`, words.
fn is_name(node: &Node) -> bool {
    match node {
        Node::Name(_) | Node::Text(_) => true,
        Node::Product(parts) => parts.len() <= 4 && parts.iter().all(|part| matches!(part, Node::Name(_))),
        Node::Tuple { items, .. } => items.iter().all(is_name),
        _ => false,
    }
}

fn has_names(node: &Node) -> bool {
    match node {
        Node::Name(_) | Node::Text(_) => true,
        Node::Negative(inner) | Node::Inverse(inner) | Node::Unit(inner, _) => has_names(inner),
        Node::Root { radicand, .. } => has_names(radicand),
        Node::Power(a, b) => has_names(a) || has_names(b),
        Node::Sum(parts)
        | Node::Product(parts)
        | Node::Call(_, parts)
        | Node::List(parts)
        | Node::Set(parts)
        | Node::Union(parts)
        | Node::Tuple { items: parts, .. } => parts.iter().any(has_names),
        Node::Matrix(rows) => rows.iter().flatten().any(has_names),
        Node::Relation(first, rest) => has_names(first) || rest.iter().any(|(_, side)| has_names(side)),
        Node::Number { .. } | Node::Based { .. } | Node::Pi | Node::E | Node::I | Node::Infinity => false,
    }
}

/// The sides and relations of a chain, turned so that the first inequality points left (`<`).
fn ascending(node: &Node) -> (Vec<&Node>, Vec<Relation>) {
    let Node::Relation(first, rest) = node else { return (vec![node], Vec::new()) };
    let mut sides: Vec<&Node> = std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side)).collect();
    let mut relations: Vec<Relation> = rest.iter().map(|(relation, _)| *relation).collect();
    if relations.iter().any(|r| matches!(r, Relation::Greater | Relation::GreaterEqual)) {
        sides.reverse();
        relations.reverse();
        relations.iter_mut().for_each(|r| *r = r.reversed());
    }
    (sides, relations)
}

fn zero_form(node: &Node) -> Option<Node> {
    let Node::Relation(first, rest) = node else { return None };
    match rest.as_slice() {
        [(Relation::Equal, second)] => {
            Some(Node::Sum(vec![(**first).clone(), Node::Negative(Box::new(second.clone()))]))
        }
        _ => None,
    }
}

fn states_a_number(node: &Node) -> bool {
    Definition::of(node).is_some_and(|d| d.name.is_some() && !has_names(d.value))
}

/// The interval that an inequality in one name describes.
fn interval(node: &Node) -> Option<Node> {
    let Node::Relation(..) = node else { return None };
    let (sides, relations) = ascending(node);
    let bracket = |relation: &Relation, open: bool| match (relation, open) {
        (Relation::Less, true) => Some('('),
        (Relation::Less, false) => Some(')'),
        (Relation::LessEqual, true) => Some('['),
        (Relation::LessEqual, false) => Some(']'),
        _ => None,
    };
    let infinity = || Node::Negative(Box::new(Node::Infinity));
    let (open, close, low, high) = match (sides.as_slice(), relations.as_slice()) {
        ([Node::Name(_), high], [r]) => ('(', bracket(r, false)?, infinity(), (*high).clone()),
        ([low, Node::Name(_)], [r]) => (bracket(r, true)?, ')', (*low).clone(), Node::Infinity),
        ([low, Node::Name(_), high], [r, s]) => {
            (bracket(r, true)?, bracket(s, false)?, (*low).clone(), (*high).clone())
        }
        _ => return None,
    };
    Some(Node::Tuple { open, close, items: vec![low, high] })
}

/// The digits of a decimal literal: its value, and the number of places.
fn decimal(node: &Node) -> Option<(BigRational, usize)> {
    match node {
        Node::Number { value, decimals: Some(places) } => Some((value.clone(), *places)),
        Node::Negative(inner) => decimal(inner).map(|(value, places)| (-value, places)),
        _ => None,
    }
}

/// The two cases in which a decimal stands for a value that it does not state exactly.
fn rounds(gold: &Node, answer: &Node, g: &Quotient, a: &Quotient) -> bool {
    let half_unit = |places: usize| BigRational::new(1.into(), BigInt::from(2) * Pow::pow(BigInt::from(10), places));
    match (decimal(gold), decimal(answer)) {
        // The gold was rounded: an exact value answers it if it rounds to it.
        (Some((rounded, places)), None) if places >= 2 => match a.as_rational() {
            Some(exact) if exact.is_integer() => false,
            Some(exact) => (exact - rounded).abs() <= half_unit(places),
            None => real(answer).zip(rounded.to_f64()).is_some_and(|(exact, rounded)| {
                let half = 0.5 * 10f64.powi(-(places.min(300) as i32));
                (exact - rounded).abs() <= half && half >= exact.abs() * TOLERANCE
            }),
        },
        // The answer is a long decimal of a value that has no finite one.
        (None, Some((rounded, places))) if significant(&rounded, places) >= LONG_DECIMAL => match g.as_rational() {
            Some(exact) if is_terminating(&exact) => false,
            Some(exact) => (exact - rounded).abs() <= half_unit(places) * BigInt::from(2),
            None => real(gold).zip(rounded.to_f64()).is_some_and(|(exact, rounded)| near(exact, rounded)),
        },
        _ => false,
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

fn real(node: &Node) -> Option<f64> {
    if has_names(node) { None } else { evaluate(node, &|_| f64::NAN)?.as_real() }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())
}

/// Whether both sides have the same values at several points, negative ones among them.
fn agree(gold: &Node, answer: &Node) -> bool {
    const POINTS: [f64; 6] = [0.739_1, 1.618_7, -0.577_3, 2.236_9, -1.324_7, 3.359_9];
    let mut compared = 0;
    for (round, point) in POINTS.into_iter().enumerate() {
        // Different names get different values, which only their text decides.
        let value_of = |name: &str| {
            let seed = name.bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
            point + f64::from(seed % 9973) / 9973.0 * if round % 2 == 0 { 0.31 } else { 0.47 }
        };
        let (Some(a), Some(b)) = (evaluate(gold, &value_of), evaluate(answer, &value_of)) else { continue };
        let difference = a.minus(b).abs();
        if difference > TOLERANCE * a.abs().max(b.abs()) || difference > 1e-6 {
            return false;
        }
        compared += 1;
    }
    compared >= 3
}
