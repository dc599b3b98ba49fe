//! Thousands of rewrites and near misses of gold answers, made by program, each with the verdict it must get.

#[path = "support/rewrite.rs"]
mod rewrite;

use std::collections::BTreeMap;

use reward::{Policy, VerifierKind, grade};

/// Values in the forms that competition answers take.
fn golds() -> Vec<String> {
    let mut golds: Vec<String> = (-40..160).map(|n: i64| (n * n * n + 7 * n).to_string()).collect();
    for p in 1..24 {
        for q in [2, 3, 4, 5, 7, 8, 9, 12, 16, 25, 81] {
            golds.push(format!("{}\\frac{{{p}}}{{{q}}}", if (p + q) % 3 == 0 { "-" } else { "" }));
        }
    }
    for n in [2, 3, 5, 6, 7, 10, 11, 13, 30, 97] {
        golds.push(format!("\\sqrt{{{n}}}"));
        golds.push(format!("{n}\\sqrt{{{}}}", n + 1));
        golds.push(format!("{n} - 2\\sqrt{{{}}}", n + 4));
        golds.push(format!("\\frac{{{n} + \\sqrt{{{}}}}}{{3}}", n + 2));
        golds.push(format!("\\sqrt[3]{{{n}}}"));
        golds.push(format!("\\frac{{{n}\\pi}}{{11}}"));
        golds.push(format!("{n} + {}i", n + 3));
        golds.push(format!("x^2 - {n}x + {}", n + 1));
        golds.push(format!("\\frac{{x + {n}}}{{x^2 - {n}}}"));
        golds.push(format!("{n}^{{x}}"));
        golds.push(format!("\\sin {n}x"));
        golds.push(format!("({n}, -{n})"));
        golds.push(format!("(1,{n},\\frac{{{n}}}{{17}})"));
        golds.push(format!("[{n}, {})", 3 * n));
        golds.push(format!("(-\\sqrt{{{n}}}, \\sqrt{{{n}}})"));
        golds.push(format!("\\sqrt{{{n} + \\sqrt{{{n}}}}}"));
        golds.push(format!("e^{{{n}}}"));
        golds.push(format!("\\tan {n}"));
    }
    for word in ["Friday", "ellipse", "hyperbola", "Tuesday", "right triangle", "infinitely many"] {
        golds.push(word.to_owned());
    }
    golds
}

#[test]
fn every_rewrite_gets_its_verdict() {
    let mut failures = Vec::new();
    let mut table: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut count = 0;
    for gold in golds() {
        for made in rewrite::rewrites(&gold) {
            let response = format!("So it is $\\boxed{{{}}}$.", made.answer);
            let verdict = grade(VerifierKind::Math, &gold, &response, &Policy::default());
            count += 1;
            let wrong = verdict.correct != made.right;
            table.entry(made.rule).or_default()[usize::from(wrong)] += 1;
            if wrong {
                failures.push(format!("{}: gold {gold:?}, answer {:?}: {}", made.rule, made.answer, verdict.reason));
            }
        }
    }
    for (rule, [right, wrong]) in &table {
        println!("{rule:24} {right:>6} {wrong:>6}");
    }
    assert!(count > 10_000, "only {count} cases");
    assert!(failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
}
