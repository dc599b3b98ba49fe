//! Properties of the parts together: what is printed is parsed back, and equality is reflexive and symmetric.

use num_rational::BigRational;
use proptest::prelude::*;

use super::lex;
use super::parse::parse;
use super::tree::{Node, Relation};
use super::*;

/// LaTeX that spells a tree out, with brackets around every part that could bind otherwise.
fn print(node: &Node) -> String {
    let part = |node: &Node| match node {
        Node::Number { .. } | Node::Name(_) | Node::Pi | Node::E | Node::I | Node::Root { .. } => print(node),
        other => format!("\\left({}\\right)", print(other)),
    };
    let list = |nodes: &[Node]| nodes.iter().map(print).collect::<Vec<_>>().join(", ");
    match node {
        Node::Number { value, decimals: None } => value.to_string(),
        Node::Number { value, decimals: Some(places) } => {
            let scaled = (value * BigRational::from_integer(num_traits::pow(10.into(), *places))).to_integer();
            let digits = format!("{scaled:0>width$}", width = places + 1);
            format!("{}.{}", &digits[..digits.len() - places], &digits[digits.len() - places..])
        }
        Node::Name(name) => name.clone(),
        Node::Pi => "\\pi".into(),
        Node::E => "e".into(),
        Node::I => "i".into(),
        Node::Infinity => "\\infty".into(),
        Node::Negative(inner) => format!("-{}", part(inner)),
        Node::Sum(terms) => terms.iter().map(part).collect::<Vec<_>>().join(" + "),
        Node::Product(factors) => {
            let mut out = part(&factors[0]);
            for factor in &factors[1..] {
                out.push_str(&match factor {
                    Node::Inverse(inner) => format!(" / {}", part(inner)),
                    other => format!(" \\cdot {}", part(other)),
                });
            }
            out
        }
        Node::Power(base, exponent) => format!("{}^{{{}}}", part(base), print(exponent)),
        Node::Root { degree: 2, radicand } => format!("\\sqrt{{{}}}", print(radicand)),
        Node::Root { degree, radicand } => format!("\\sqrt[{degree}]{{{}}}", print(radicand)),
        Node::Call("abs", arguments) => format!("\\left|{}\\right|", print(&arguments[0])),
        Node::Call(name, arguments) => format!("\\{name}\\left({}\\right)", print(&arguments[0])),
        Node::Set(items) => format!("\\{{{}\\}}", list(items)),
        Node::Tuple { open, close, items } => format!("{open}{}{close}", list(items)),
        Node::List(items) => list(items),
        Node::Relation(first, rest) => {
            let sign = |relation: &Relation| match relation {
                Relation::Equal => "=",
                Relation::Less => "<",
                _ => "\\ge",
            };
            rest.iter()
                .fold(print(first), |text, (relation, side)| format!("{text} {} {}", sign(relation), print(side)))
        }
        Node::Matrix(rows) => {
            let rows: Vec<String> =
                rows.iter().map(|row| row.iter().map(print).collect::<Vec<_>>().join(" & ")).collect();
            format!("\\begin{{pmatrix}} {} \\end{{pmatrix}}", rows.join(" \\\\ "))
        }
        other => panic!("not printed here: {other:?}"),
    }
}

fn value() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (0i64..2000).prop_map(Node::integer),
        (0i64..100_000, 1usize..4).prop_map(|(n, places)| Node::Number {
            value: BigRational::new(n.into(), num_traits::pow(10.into(), places)),
            decimals: Some(places),
        }),
        prop::sample::select(vec!["x", "y", "t", "\\theta"]).prop_map(|name| Node::Name(name.to_owned())),
        prop::sample::select(vec![Node::Pi, Node::E, Node::I]),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::Sum),
            (inner.clone(), prop::collection::vec((inner.clone(), any::<bool>()), 1..3)).prop_map(|(first, rest)| {
                let factor = |(node, below)| if below { Node::Inverse(Box::new(node)) } else { node };
                Node::Product(std::iter::once(first).chain(rest.into_iter().map(factor)).collect())
            }),
            // The parser drops the second of two signs.
            inner
                .clone()
                .prop_filter("a sign", |n| !matches!(n, Node::Negative(_)))
                .prop_map(|n| Node::Negative(Box::new(n))),
            (boxed.clone(), inner.clone()).prop_map(|(base, n)| Node::Power(base, Box::new(n))),
            (2u32..6, boxed).prop_map(|(degree, radicand)| Node::Root { degree, radicand }),
            (prop::sample::select(vec!["sin", "ln", "abs", "arctan", "cosh"]), inner)
                .prop_map(|(name, n)| Node::Call(name, vec![n])),
        ]
    })
}

fn answer() -> impl Strategy<Value = Node> {
    let some = |count| prop::collection::vec(value(), count);
    prop_oneof![
        3 => value(),
        1 => some(2..5usize).prop_map(Node::Set),
        1 => some(2..5usize).prop_map(Node::List),
        1 => (prop::sample::select(vec![('(', ')'), ('[', ')'), ('[', ']')]), some(2..4usize))
            .prop_map(|((open, close), items)| Node::Tuple { open, close, items }),
        1 => (value(), prop::sample::select(vec![Relation::Equal, Relation::Less, Relation::GreaterEqual]), value())
            .prop_map(|(a, relation, b)| Node::Relation(Box::new(a), vec![(relation, b)])),
        1 => prop::collection::vec(some(2..3usize), 1..3).prop_map(Node::Matrix),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_parse_of_a_printed_tree_is_the_tree(tree in answer()) {
        let text = print(&tree);
        let parsed = lex::tokens(&text, true).and_then(parse);
        prop_assert_eq!(parsed, Ok(tree), "{}", text);
    }

    #[test]
    fn equality_is_reflexive_and_symmetric(a in answer(), b in answer()) {
        let (a, b) = (print(&a), print(&b));
        let valid = |text: &str| Math.check_gold(text).is_ok();
        if valid(&a) {
            // Not the same text, so that the trees are compared.
            let again = format!(" {} ", a.replace("\\left(", "("). replace("\\right)", ")"));
            let reason = Math.compare(&a, &again);
            prop_assert!(reason == Reason::Correct || matches!(reason, Reason::BudgetExceeded(_)), "{}: {}", a, reason);
        }
        // Decimals round in one direction, and a chain whose steps disagree is refused as an answer only: a gold is
        // taken by its last side.
        let one_sided = |text: &str| text.contains(['.', '=']);
        if valid(&a) && valid(&b) && !one_sided(&a) && !one_sided(&b) {
            prop_assert_eq!(Math.compare(&a, &b) == Reason::Correct, Math.compare(&b, &a) == Reason::Correct);
        }
    }
}

#[test]
fn a_gold_that_lost_its_last_brace_is_read_with_it_and_an_answer_is_not() {
    let verdict = |gold: &str, response: &str| {
        crate::grade(crate::VerifierKind::Math, gold, response, &crate::Policy::default()).correct
    };
    assert!(verdict("2+\\frac{3i}{2", "\\boxed{2+\\frac{3i}{2}}"));
    assert!(!verdict("2+\\frac{3i}{2", "\\boxed{2+\\frac{3i}{4}}"));
    let itself = crate::VerifierKind::Math.verifier().compare("2+\\frac{3i}{2", "2+\\frac{3i}{2");
    assert_eq!(itself, crate::Reason::Correct);
    assert!(!verdict("12", "\\boxed{12"), "a box that was cut off may have held more");
    for cut_off in ["\\frac{1}{", "{{{{{7", "7}"] {
        assert!(crate::check_gold(crate::VerifierKind::Math, cut_off).is_err(), "{cut_off}");
    }
}
