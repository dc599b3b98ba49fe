//! Grades gold answers against themselves: `cargo run --release -p reward --example golds -- FILE...`.
//!
//! Rows have an `answer` or a `gold`, a GSM8K answer after `####`. Lists every gold that is refused or that is
//! not correct against itself, and those that no formula was found in, which are compared as words.

use std::process::ExitCode;

use reward::{Policy, VerifierKind, check_gold, grade, math};
use serde_json::Value;

fn main() -> ExitCode {
    let mut failed = false;
    for file in std::env::args().skip(1) {
        match check(&file) {
            Ok(good) => failed |= !good,
            Err(message) => {
                eprintln!("{message}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn check(file: &str) -> Result<bool, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let (mut rows, mut right, mut words) = (0, 0, 0);
    for (line, json) in text.lines().enumerate().filter(|(_, json)| !json.trim().is_empty()) {
        let at = format!("{file}:{}", line + 1);
        let row: Value = serde_json::from_str(json).map_err(|error| format!("{at}: {error}"))?;
        let gold = ["answer", "gold"].into_iter().find_map(|key| match &row[key] {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let gold = gold.ok_or_else(|| format!("{at}: no `answer` and no `gold`"))?;
        let gold = gold.rsplit("####").next().unwrap_or_default().trim();
        rows += 1;
        if let Err(error) = check_gold(VerifierKind::Math, gold) {
            println!("refused {at}: {error}");
            continue;
        }
        let response = format!("\\boxed{{{}}}", math::closed(gold));
        let verdict = grade(VerifierKind::Math, gold, &response, &Policy::default());
        right += usize::from(verdict.correct);
        if !verdict.correct {
            println!("not itself {at}: {gold:?}: {}", verdict.reason);
        }
        if let Err(problem) = math::form(&math::closed(gold)) {
            words += 1;
            println!("no formula {at}: {gold:?}: {problem}");
        }
    }
    println!("{file}: {right} of {rows} correct against themselves, {words} compared as words");
    Ok(right == rows)
}
