//! No input takes longer than 50 ms of processor time, and none makes the grader panic or accept.

use std::time::Duration;

use cpu_time::ThreadTime;
use reward::{Fallback, Policy, VerifierKind, grade};

const LIMIT: Duration = Duration::from_millis(50);

/// Text that asks for more work, memory or recursion than an answer is worth.
fn hostile() -> Vec<String> {
    let many = |unit: &str, count: usize| unit.repeat(count);
    let nested = |open: &str, core: &str, close: &str, count: usize| many(open, count) + core + &many(close, count);
    let sums: String = (0..190).map(|i| format!("1/{}+", 99_991 - 2 * i)).collect();
    let roots: String = (0..150).map(|i| format!("\\sqrt{{{}}}+", 99_991 - 2 * i)).collect();
    let product: String = (0..15).map(|i| format!("(x+y_{i})")).collect();
    let mut texts = vec![
        "10^{10^{10}}".to_owned(),
        "9^{9^{9^9}}".to_owned(),
        "9^9^9^9^9^9".to_owned(),
        "2^{8192} - 2^{8191}".to_owned(),
        "10000000!".to_owned(),
        "((500!)!)!".to_owned(),
        "500! \\cdot 499! \\cdot 498!".to_owned(),
        many("500!+", 190) + "1",
        "(x+1)^{1000000000}".to_owned(),
        "(x+1)^{-1000000000}".to_owned(),
        "(a+b+c+d+f+g+h)^{32}".to_owned(),
        "((((x+y)^9+z)^9+w)^9+u)^9".to_owned(),
        many("(x+1)^{32}+", 200) + "1",
        many("(1.0001)^{500}+", 200) + "1",
        many("1/\\binom{499}{250}+", 190) + "1",
        "\\binom{10^{9}}{10^{8}}".to_owned(),
        "\\sum_{k=1}^{10^{12}} k".to_owned(),
        "\\sum_{a=1}^{99}\\sum_{b=1}^{99}\\sum_{c=1}^{99} abc".to_owned(),
        "\\prod_{k=1}^{99} (x+k)".to_owned(),
        "e^{e^{e^{e^{e}}}}".to_owned(),
        "\\sin(10^{300})".to_owned(),
        "\\sin(e^{e^{7}})".to_owned(),
        "\\tan(\\tan(\\tan(\\tan(10^{99}))))".to_owned(),
        nested("\\sin(", "x", ")", 40),
        nested("\\sqrt{1+", "x", "}", 40),
        many("\\sin(\\cos(\\arctan(\\sqrt{1+x^2})))+", 60) + "1",
        many("\\ln(x+2)^{1.5}+", 100) + "1",
        "\\sqrt[32]{2^{500}+1}".to_owned(),
        "\\sqrt{".to_owned() + &many("9", 900) + "}",
        nested("\\text{", "7", "}", 500),
        nested("{", "7", "}", 100_000),
        nested("(", "7", ")", 100_000),
        nested("\\frac{1}{", "7", "}", 100_000),
        nested("\\left(", "7", "\\right)", 100_000),
        nested("\\sqrt{", "7", "}", 100_000),
        nested("|", "7", "|", 2000),
        nested("[", "7", "]", 1000),
        nested("2^{", "7", "}", 500),
        many("{", 100_000),
        many("}", 100_000),
        many("(", 100_000) + &many(")", 99_999),
        many("\\frac", 20_000),
        many("\\frac{1}", 500),
        many("\\sqrt", 800) + "2",
        many("7", 1_000_000),
        many("7", 4000),
        many("7", 999),
        many("\\", 1_000_000),
        many("\\", 4001),
        many("\\\\", 500_000),
        many("-", 4000) + "7",
        many("x^", 1300) + "2",
        many("\\pm 1 ", 600),
        "(".to_owned() + &many("\\pm(", 40) + "1" + &many(")", 41),
        many("1,", 1990) + "1",
        (0..950).map(|i| format!("{i},")).collect::<String>() + "1",
        many("\\sqrt{2},", 400) + "1",
        (0..300).map(|i| format!("\\sin {i},")).collect::<String>() + "1",
        many("(1,2)\\cup", 300) + "(1,2)",
        many("1:", 900) + "1",
        many("x=", 900) + "1",
        many("[1]\\setminus", 300) + "[1]",
        many("\\begin{cases}", 250) + &many("\\end{cases}", 250),
        "\\begin{vmatrix}".to_owned() + &many("x&", 30) + "\\end{vmatrix}",
        many("x'", 900),
        many("½", 1300),
        many("₂²", 600),
        many("$", 4000),
        many("|", 4000),
        sums.clone() + "1",
        roots + "1",
        product,
        "\\frac{0}{0}".to_owned(),
        "0^{0}".to_owned(),
        "0^{-1}".to_owned(),
        "\\tan 90^\\circ".to_owned(),
        "\\ln 0".to_owned(),
        "1/0".to_owned(),
        "NaN".to_owned(),
        "\\infty".to_owned(),
        "-\\infty + \\infty".to_owned(),
        "1e999999999".to_owned(),
        "1e300^{1e300}".to_owned(),
        "\u{0}\u{fffd}".to_owned(),
        "\\u0000\\xff\\x00".to_owned(),
        "\u{202e}7\u{200b}".to_owned(),
        "🙂".repeat(500),
    ];
    texts.extend(["\\boxed{", "\\boxed", "\\fbox{{", "$", "\\[", "</think>", "<think>"].map(|unit| many(unit, 50_000)));
    texts
}

/// The least time of three, since another process may have the caches of the first.
fn fastest(run: impl Fn()) -> Duration {
    let time = |_| {
        let start = ThreadTime::now();
        run();
        start.elapsed()
    };
    (0..3).map(time).min().unwrap_or_default()
}

#[test]
fn no_answer_takes_over_fifty_milliseconds() {
    let sum: String = (0..190).map(|i| format!("1/{}+", 90_001 + 2 * i)).collect::<String>() + "2";
    let mut slow = Vec::new();
    for gold in ["8", "x^2", "1,2,3", "(1,2)", "x<5", "\\sin(x)", "\\sqrt{3+\\sqrt{2}}", "0.25", "word", &sum] {
        for text in hostile() {
            let response = format!("so \\boxed{{{text}}}");
            let verdict = grade(VerifierKind::Math, gold, &response, &Policy::default());
            let excerpt: String = text.chars().take(40).collect();
            assert!(!verdict.correct, "{excerpt} for {gold:.40}");
            let taken = fastest(|| {
                let _ = grade(VerifierKind::Math, gold, &response, &Policy::default());
            });
            if taken > LIMIT {
                slow.push(format!("{excerpt} for {gold:.40}: {taken:?}, {}", verdict.reason));
            }
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}

#[test]
fn no_gold_and_no_response_takes_over_fifty_milliseconds() {
    let loose = Policy { fallback: Fallback::Standard, ..Policy::default() };
    let mut slow = Vec::new();
    for text in hostile() {
        let excerpt: String = text.chars().take(40).collect();
        let mut check = |what: &str, taken: Duration| {
            if taken > LIMIT {
                slow.push(format!("{excerpt} as {what}: {taken:?}"));
            }
        };
        let itself = format!("\\boxed{{{text}}}");
        for kind in VerifierKind::ALL {
            check("gold", fastest(|| drop(grade(kind, &text, "\\boxed{7}", &loose))));
            check("both", fastest(|| drop(grade(kind, &text, &itself, &loose))));
            check("response", fastest(|| drop(grade(kind, "7", &text, &loose))));
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}
