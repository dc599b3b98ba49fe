//! Makes labelled cases from gold answers: `cargo run --release -p reward --example rewrite -- FILE... > CASES`.
//!
//! Rows have an `answer` or a `gold`, a GSM8K answer after `####`; a gold that occurs again is left out. The
//! `accuracy` example reads the result.

#[path = "../tests/support/rewrite.rs"]
mod rewrite;

use std::collections::HashSet;
use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut seen = HashSet::new();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for file in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
        for (line, json) in text.lines().enumerate().filter(|(_, json)| !json.trim().is_empty()) {
            let at = format!("{file}:{}", line + 1);
            let row: Value = serde_json::from_str(json).map_err(|error| format!("{at}: {error}"))?;
            let gold = ["answer", "gold"].into_iter().find_map(|key| row[key].as_str());
            let gold = gold.unwrap_or_default().rsplit("####").next().unwrap_or_default().trim();
            if gold.is_empty() || !seen.insert(gold.to_owned()) {
                continue;
            }
            for made in rewrite::rewrites(gold) {
                let response = format!("So the answer is $\\boxed{{{}}}$.", made.answer);
                let row = json!({
                    "id": format!("{at} {}", made.rule), "group": made.rule,
                    "gold": gold, "response": response, "expected": made.right,
                });
                writeln!(out, "{row}").map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(())
}
