//! Values with and without units.

use super::decimal::rounds;
use super::{Comparer, Outcome, failure};
use crate::math::normal::LogBase;
use crate::math::numeric::{Agreement, agree};
use crate::math::tree::Node;

impl Comparer {
    pub(super) fn units(&mut self, gold: &Node, answer: &Node) -> Outcome {
        let (g, g_unit) = split_unit(gold);
        let (a, a_unit) = split_unit(answer);
        if matches!(g, Node::Unit(..)) || matches!(a, Node::Unit(..)) {
            return (gold == answer).into();
        }
        let radians = |node: &Node| {
            let turn = Node::Product(vec![Node::Pi, Node::Inverse(Box::new(Node::integer(180)))]);
            Node::Product(vec![node.clone(), turn])
        };
        let percent = |node: &Node| Node::Product(vec![node.clone(), Node::Inverse(Box::new(Node::integer(100)))]);
        let in_pi = |node: &Node| node.any(&|part| *part == Node::Pi);
        match (g_unit, a_unit) {
            ("°", "rad") => return self.compare(&radians(g), a),
            ("rad", "°") => return self.compare(g, &radians(a)),
            ("°", "") if in_pi(a) && !in_pi(g) => return self.compare(&radians(g), a),
            ("", "°") if in_pi(g) && !in_pi(a) => return self.compare(g, &radians(a)),
            _ => {}
        }
        if !(g_unit == a_unit || g_unit.is_empty() || a_unit.is_empty()) {
            return Outcome::Different;
        }
        let same = self.compare(g, a);
        if same != Outcome::Different || g_unit == a_unit {
            return same;
        }
        match (g_unit, a_unit) {
            ("%", _) => self.compare(&percent(g), a),
            (_, "%") => self.compare(g, &percent(a)),
            _ => Outcome::Different,
        }
    }

    pub(super) fn values(&mut self, gold: &Node, answer: &Node) -> Outcome {
        if gold == answer {
            return match self.check(gold) {
                Outcome::Undefined => Outcome::Undefined,
                _ => Outcome::Equal,
            };
        }
        let outcome = self.values_by(LogBase::Natural, gold, answer);
        // Whose `log` has no base may mean ten.
        let bare = |node: &Node| matches!(node, Node::Call("log", arguments) if arguments.len() == 1);
        let natural = |node: &Node| matches!(node, Node::Call("ln", _));
        if outcome == Outcome::Different
            && [gold, answer].iter().any(|side| side.any(&bare))
            && ![gold, answer].iter().any(|side| side.any(&natural))
        {
            let outcome = self.values_by(LogBase::Ten, gold, answer);
            self.normalizer.log_base = LogBase::Natural;
            return outcome;
        }
        outcome
    }

    fn values_by(&mut self, log_base: LogBase, gold: &Node, answer: &Node) -> Outcome {
        self.normalizer.log_base = log_base;
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
        if log_base == LogBase::Ten || self.normalizer.is_decided(&difference) {
            return Outcome::Different;
        }
        match agree(gold, answer, &mut self.normalizer.budget) {
            Agreement::Equal => Outcome::Equal,
            Agreement::Different => match self.normalizer.unevaluated {
                Some(limit) => Outcome::Budget(limit),
                None => Outcome::Different,
            },
            Agreement::OverBudget => Outcome::Budget("too much to evaluate"),
        }
    }
}

fn split_unit(node: &Node) -> (&Node, &str) {
    match node {
        Node::Unit(value, unit) => (value, unit),
        value => (value, ""),
    }
}
