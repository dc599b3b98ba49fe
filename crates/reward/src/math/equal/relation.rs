//! Definitions such as `x = 5`, equations, inequalities and chains of them.

use num_traits::Signed;

use super::{Comparer, Outcome, failure};
use crate::math::tree::{Node, Relation};

/// `x = 5`, `(x, y) = (1, 2)`, `x ∈ [0, 1]`, `2 + 2 = 4`, or a value alone: a value, maybe with a name.
pub(super) struct Definition<'a> {
    name: Option<&'a Node>,
    steps: Vec<&'a Node>,
    value: &'a Node,
    /// The name is one that an equation to solve would not have alone on its left.
    strict: bool,
}

impl<'a> Definition<'a> {
    fn named(name: &'a Node, steps: Vec<&'a Node>, value: &'a Node) -> Self {
        // Words say what the value is; they do not make it another one.
        let name = Some(name).filter(|name| !matches!(name, Node::Text(_)));
        Self { name, steps, value, strict: true }
    }

    fn of(node: &'a Node) -> Option<Self> {
        let Node::Relation(first, rest) = node else {
            return Some(Self { name: None, steps: Vec::new(), value: node, strict: false });
        };
        if let [(Relation::In, set)] = rest.as_slice() {
            return is_name(first).then(|| Self::named(first, Vec::new(), set));
        }
        if rest.iter().any(|(relation, _)| !matches!(relation, Relation::Equal | Relation::Congruent)) {
            return None;
        }
        let mut sides: Vec<&Node> = std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side)).collect();
        let value = sides.pop()?;
        if is_name(sides[0]) {
            let name = sides.remove(0);
            return Some(Self::named(name, sides, value));
        }
        // `5 = x` names its value last.
        if let ([constant], true) = (sides.as_slice(), matches!(value, Node::Name(_))) {
            return Some(Self::named(value, Vec::new(), constant));
        }
        if value.has_names() {
            return None;
        }
        // Without a name only a chain of numbers states a value; `a² + b = 0` is an equation.
        if sides.iter().all(|side| !side.has_names()) {
            return Some(Self { name: None, steps: sides, value, strict: false });
        }
        if sides.len() == 1 && is_quantity(sides[0]) {
            return Some(Self { name: Some(sides[0]), steps: Vec::new(), value, strict: false });
        }
        // `\lim_{x \to 0} … = 1` states its value last, too.
        let operators = sides.iter().all(|side| !side.has_names() || is_operator(side));
        operators.then_some(Self { name: None, steps: sides, value, strict: false })
    }

    /// The one-letter name that a part defines.
    pub(super) fn name_of(node: &Node) -> Option<&str> {
        match Definition::of(node)?.name? {
            Node::Name(name) => Some(name),
            _ => None,
        }
    }
}

impl Comparer {
    pub(super) fn relations(&mut self, gold: &Node, answer: &Node) -> Outcome {
        if gold == answer {
            return Outcome::Equal;
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

    /// Whether the steps of `10 = 2 + 8 = 5 · 2` agree; a false chain is no answer. Limits and integrals,
    /// which are not evaluated here, may stand for any value.
    fn consistent(&mut self, definition: &Definition<'_>) -> Outcome {
        let steps: Vec<&Node> = definition.steps.iter().copied().filter(|step| !is_operator(step)).collect();
        self.all(steps.into_iter(), |comparer, step| comparer.compare(definition.value, step))
    }

    /// Inequalities and chains, part by part, in one direction.
    fn chains(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Node::Relation(..), Node::Relation(..)) = (gold, answer) else { return Outcome::Different };
        let ((a, left), (b, right)) = (ascending(gold), ascending(answer));
        if left.iter().all(|r| *r == Relation::Equal) || right.iter().all(|r| *r == Relation::Equal) {
            return self.equations(gold, answer);
        }
        if left == right {
            match self.all(a.into_iter().zip(b), |comparer, (x, y)| comparer.compare(x, y)) {
                Outcome::Different => {}
                outcome => return outcome,
            }
        }
        self.inequalities(gold, answer)
    }

    /// Two inequalities of two sides, up to a positive factor: `2y > 4x` is `2x - y < 0`.
    fn inequalities(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Some((left, r)), Some((right, s))) = (zero_form(gold), zero_form(answer)) else {
            return Outcome::Different;
        };
        let positive = match (r == s, r.reversed() == s) {
            (true, false) => true,
            (false, true) => false,
            _ => return Outcome::Different,
        };
        match self.ratio(&left, &right) {
            Ok(ratio) => ratio.is_some_and(|c| c.is_positive() == positive).into(),
            Err(error) => failure(error, gold == answer),
        }
    }

    /// Two equations of two sides, up to a constant factor.
    fn equations(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (Some((left, Relation::Equal)), Some((right, Relation::Equal))) = (zero_form(gold), zero_form(answer))
        else {
            return (gold == answer).into();
        };
        // An equation that states a value is answered by the value, not by an equation to solve.
        if states_a_number(gold) || states_a_number(answer) {
            return Outcome::Different;
        }
        match self.ratio(&left, &right) {
            Ok(ratio) => ratio.is_some().into(),
            Err(error) => failure(error, gold == answer),
        }
    }

    fn ratio(
        &mut self,
        left: &Node,
        right: &Node,
    ) -> Result<Option<num_rational::BigRational>, crate::math::normal::NormalError> {
        let left = self.normalizer.normalize(left)?;
        let right = self.normalizer.normalize(right)?;
        self.normalizer.ratio(&left, &right)
    }
}

/// What may stand before `=` as a mere label: `x`, `AB`, `f(x)`, `(x, y)`, words.
fn is_name(node: &Node) -> bool {
    match node {
        Node::Name(_) | Node::Text(_) => true,
        // `f(2)`: a name and what it is of.
        Node::Product(parts) => {
            let names = |parts: &[Node]| parts.iter().all(|part| matches!(part, Node::Name(_)));
            parts.len() <= 5
                && match parts.split_first() {
                    Some((Node::Name(_), [Node::Number { .. }])) => true,
                    _ => names(parts),
                }
        }
        Node::Tuple { items, .. } => items.iter().all(is_name),
        _ => false,
    }
}

/// A measure of named things, without any number: `NO / BO`, `A : B`, `|AB|`.
fn is_quantity(node: &Node) -> bool {
    match node {
        Node::Name(_) => true,
        Node::Inverse(inner) => is_quantity(inner),
        Node::Product(parts) | Node::Ratio { parts, .. } | Node::Call("abs" | "sin" | "cos" | "tan", parts) => {
            parts.iter().all(is_quantity)
        }
        _ => false,
    }
}

fn is_operator(node: &Node) -> bool {
    node.any(&|part| matches!(part, Node::Call("lim" | "int" | "sum" | "prod", _)))
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

/// `left - right` of a relation of two sides.
fn zero_form(node: &Node) -> Option<(Node, Relation)> {
    let Node::Relation(first, rest) = node else { return None };
    match rest.as_slice() {
        [(relation, second)] => {
            Some((Node::Sum(vec![(**first).clone(), Node::Negative(Box::new(second.clone()))]), *relation))
        }
        _ => None,
    }
}

fn states_a_number(node: &Node) -> bool {
    Definition::of(node).is_some_and(|d| d.strict && d.name.is_some() && !d.value.has_names())
}
