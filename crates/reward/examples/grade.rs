//! Grades responses and nothing else: `cargo run -p reward --example grade -- [FILE] [--fallback]`.
//!
//! Rows `{"gold":"..","response":"..","verifier":"math"}` come from the file or standard input; `verifier` may be
//! left out. Each gives a row `{"correct":..,"answer":..,"reason":..,"extraction":..}` in the same order.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;

use reward::{Fallback, Policy, VerifierKind, grade};
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
    let mut fallback = Fallback::None;
    let mut input: Box<dyn Read> = Box::new(std::io::stdin());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--fallback" => fallback = Fallback::Standard,
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}")),
            file => input = Box::new(std::fs::File::open(file).map_err(|error| format!("{file}: {error}"))?),
        }
    }
    let policy = Policy { fallback, ..Policy::default() };
    let mut out = std::io::stdout().lock();
    for (index, line) in BufReader::new(input).lines().enumerate() {
        let at = |error: String| format!("line {}: {error}", index + 1);
        let line = line.map_err(|error| at(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Value = serde_json::from_str(&line).map_err(|error| at(error.to_string()))?;
        let text = |key: &str| row[key].as_str().ok_or_else(|| at(format!("no text `{key}`")));
        let kind = match row["verifier"].as_str() {
            Some(name) => name.parse::<VerifierKind>().map_err(|error| at(error.to_string()))?,
            None => VerifierKind::Math,
        };
        let verdict = grade(kind, text("gold")?, text("response")?, &policy);
        let row = json!({
            "correct": verdict.correct,
            "answer": verdict.answer,
            "reason": verdict.reason.to_string(),
            "extraction": fallback.name(),
        });
        if writeln!(out, "{row}").is_err() {
            break;
        }
    }
    Ok(())
}
