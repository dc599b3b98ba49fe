//! Properties: no input panics or takes long, what is printed is read back, and rewrites keep verdicts.

use num_rational::BigRational;
use num_traits::Zero;
use proptest::prelude::*;
use reward::{Fallback, Policy, Reason, Verdict, VerifierKind, check_gold, grade};

fn math(gold: &str, answer: &str) -> Verdict {
    grade(VerifierKind::Math, gold, &format!("\\boxed{{{answer}}}"), &Policy::default())
}

/// An arithmetic expression over small whole numbers.
#[derive(Debug, Clone)]
enum Arithmetic {
    Number(u32),
    Binary(char, Box<Arithmetic>, Box<Arithmetic>),
}

impl Arithmetic {
    fn plain(&self) -> String {
        match self {
            Self::Number(value) => value.to_string(),
            Self::Binary(operator, a, b) => format!("({}{operator}{})", a.plain(), b.plain()),
        }
    }

    fn latex(&self) -> String {
        match self {
            Self::Number(value) => value.to_string(),
            Self::Binary('/', a, b) => format!("\\frac{{{}}}{{{}}}", a.latex(), b.latex()),
            Self::Binary('*', a, b) => format!("\\left({} \\times {}\\right)", a.latex(), b.latex()),
            Self::Binary(operator, a, b) => format!("\\left( {} {operator} {} \\right)", a.latex(), b.latex()),
        }
    }

    /// `None` for a division by zero.
    fn value(&self) -> Option<BigRational> {
        let Self::Binary(operator, a, b) = self else {
            let Self::Number(value) = self else { return None };
            return Some(BigRational::from_integer((*value).into()));
        };
        let (a, b) = (a.value()?, b.value()?);
        Some(match operator {
            '+' => a + b,
            '-' => a - b,
            '*' => a * b,
            _ if b.is_zero() => return None,
            _ => a / b,
        })
    }

    fn numbers(&self, out: &mut Vec<String>) {
        match self {
            Self::Number(value) => out.push(value.to_string()),
            Self::Binary(_, a, b) => {
                a.numbers(out);
                b.numbers(out);
            }
        }
    }
}

fn arithmetic() -> impl Strategy<Value = Arithmetic> {
    (0u32..100).prop_map(Arithmetic::Number).prop_recursive(5, 24, 2, |inner| {
        (prop::sample::select(vec!['+', '-', '*', '/']), inner.clone(), inner)
            .prop_map(|(operator, a, b)| Arithmetic::Binary(operator, Box::new(a), Box::new(b)))
    })
}

/// Text that looks like answers: pieces of LaTeX in any order.
fn pieces() -> impl Strategy<Value = String> {
    let pieces = vec![
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "\\{",
        "\\}",
        "1",
        "23",
        "0",
        ".5",
        "x",
        "y_1",
        "^",
        "_",
        "!",
        "+",
        "-",
        "*",
        "/",
        "=",
        "<",
        ",",
        ";",
        "|",
        "\\pi",
        "\\infty",
        "\\pm",
        "\\cup",
        "\\text{cm}",
        "\\text{ and }",
        "%",
        "$",
        "\\circ",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "\\sin",
        "\\log_",
        "e",
        "i",
        " ",
        "\\boxed{",
        "</think>",
        "<think>",
        "½",
        "−",
        "\\",
        "\u{0}",
        "million",
        "#### ",
        "answer is ",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..40).prop_map(|parts| parts.concat())
}

/// Printed expressions in variables, roots and constants.
fn algebra() -> impl Strategy<Value = String> {
    let leaves = prop::sample::select(vec!["x", "y", "2", "3", "12", "\\pi", "i", "0"]).prop_map(str::to_owned);
    leaves.prop_recursive(4, 12, 2, |inner| {
        (0..6, inner.clone(), inner).prop_map(|(shape, a, b)| match shape {
            0 => format!("({a} + {b})"),
            1 => format!("({a} - {b})"),
            2 => format!("({a} \\cdot {b})"),
            3 => format!("\\frac{{{a}}}{{{b}}}"),
            4 => format!("\\sqrt{{{a}}}"),
            _ => format!("({a})^2"),
        })
    })
}

fn holds_for_any(gold: &str, response: &str) {
    for kind in VerifierKind::ALL {
        for fallback in [Fallback::None, Fallback::Standard] {
            for prompt_opens_thought in [false, true] {
                let policy = Policy { fallback, prompt_opens_thought };
                let verdict = grade(kind, gold, response, &policy);
                assert_eq!(verdict.correct, verdict.reason == Reason::Correct);
                assert!(!verdict.correct || verdict.answer.is_some());
                assert_eq!(verdict, grade(kind, gold, response, &policy));
                if verdict.answer.is_some() {
                    assert_eq!(check_gold(kind, gold).is_err(), matches!(verdict.reason, Reason::BadGold(_)));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(gold in any::<String>(), response in any::<String>()) {
        holds_for_any(&gold, &response);
        holds_for_any(&gold, &format!("\\boxed{{{response}}}"));
    }

    #[test]
    fn no_latex_panics(gold in pieces(), answer in pieces()) {
        holds_for_any(&gold, &answer);
        holds_for_any(&gold, &format!("\\boxed{{{answer}}}"));
        holds_for_any("7", &format!("\\boxed{{{answer}}}"));
    }

    #[test]
    fn equality_is_reflexive(gold in pieces()) {
        if check_gold(VerifierKind::Math, &gold).is_ok() {
            prop_assert_eq!(VerifierKind::Math.verifier().compare(&gold, &gold), Reason::Correct);
        }
    }

    #[test]
    fn printed_arithmetic_has_its_value(expression in arithmetic()) {
        let plain = expression.plain();
        match expression.value() {
            None => prop_assert!(check_gold(VerifierKind::Math, &plain).is_err()),
            Some(value) => {
                let gold = value.to_string();
                prop_assert!(math(&gold, &plain).correct, "{} is {}", plain, gold);
                prop_assert!(math(&plain, &expression.latex()).correct, "{}", expression.latex());
                let next = (value + BigRational::from_integer(1.into())).to_string();
                prop_assert!(!math(&next, &plain).correct, "{} is not {}", plain, next);
            }
        }
    }

    #[test]
    fn printed_countdown_reaches_its_value(expression in arithmetic()) {
        let Some(value) = expression.value().filter(|v| v.is_integer() && *v >= BigRational::zero() && *v < BigRational::from_integer(1_000_000_000.into())) else {
            return Ok(());
        };
        let mut numbers = Vec::new();
        expression.numbers(&mut numbers);
        let gold = format!("{value} from {}", numbers.join(", "));
        for printed in [expression.plain(), expression.latex()] {
            let verdict = grade(VerifierKind::Countdown, &gold, &format!("\\boxed{{{printed}}}"), &Policy::default());
            // 127 bits hold any value here unless denominators pile up.
            prop_assert!(
                verdict.correct || matches!(verdict.reason, Reason::BudgetExceeded(_)),
                "{}: {} gives {}", gold, printed, verdict.reason
            );
        }
        numbers.push("1".into());
        let more = format!("{value} from {}", numbers.join(", "));
        let response = format!("\\boxed{{{}}}", expression.plain());
        prop_assert!(!grade(VerifierKind::Countdown, &more, &response, &Policy::default()).correct);
    }

    #[test]
    fn neighbours_are_wrong(value in any::<i64>(), other in any::<i64>()) {
        prop_assert_eq!(math(&value.to_string(), &other.to_string()).correct, value == other);
        let next = i128::from(value) + 1;
        prop_assert!(!math(&value.to_string(), &next.to_string()).correct);
    }

    #[test]
    fn equality_of_algebra_is_symmetric(a in algebra(), b in algebra()) {
        let compare = |a: &str, b: &str| VerifierKind::Math.verifier().compare(a, b) == Reason::Correct;
        let valid = |text: &str| check_gold(VerifierKind::Math, text).is_ok();
        if valid(&a) && valid(&b) {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a));
        }
    }

    #[test]
    fn rewrites_keep_the_verdict(gold in algebra()) {
        if check_gold(VerifierKind::Math, &gold).is_err() {
            return Ok(());
        }
        for same in [
            format!("0 + {gold}"),
            format!("{gold} \\cdot 1"),
            format!("x - (x - {gold})"),
            format!("\\frac{{ {gold} \\times 6 }}{{6}}"),
            format!("\\left( {gold} \\right)"),
        ] {
            prop_assert!(math(&gold, &same).correct, "{} and {}: {}", gold, same, math(&gold, &same).reason);
        }
        for other in [format!("{gold} + 1"), format!("{gold} - 10^{{-3}}"), format!("{gold}, {gold}"), format!("({gold}, 1)")] {
            prop_assert!(!math(&gold, &other).correct, "{} and {}", gold, other);
        }
    }
}
