//! `trainer grade`: verdicts on given responses, one row out for each row in.

#![deny(clippy::indexing_slicing)]

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use reward::{Fallback, GradeRow, Policy, Reason, Verdict, VerifierKind};
use serde::{Deserialize, Serialize};

use crate::cli::{GradeArgs, VerifierChoice};
use crate::commands::{UsageError, note, print};
use crate::data::next_line;

/// Rows graded at once: enough to keep every core busy, few enough that the first verdicts come soon.
const CHUNK: usize = 4096;

/// A row of the file; other fields are ignored.
#[derive(Deserialize)]
struct Row {
    gold: String,
    response: String,
    verifier: Option<String>,
    /// The prompt ended with `<think>`, as `trainer generate` says of its rows.
    #[serde(default)]
    prompt_opens_thought: bool,
}

/// A row of the output.
#[derive(Serialize)]
struct Graded<'a> {
    correct: bool,
    answer: Option<&'a str>,
}

/// A row with its verifier and its line, counted from 1.
struct Job {
    line: usize,
    kind: VerifierKind,
    row: Row,
}

/// Grades a file to stdout.
pub(super) fn run(args: &GradeArgs) -> anyhow::Result<()> {
    let path = &args.data;
    let file = File::open(path)
        .map_err(|error| UsageError::new(format!("{}: cannot read these rows: {error}", path.display())))?;
    let fallback = if args.fallback { Fallback::Standard } else { Fallback::None };
    let default = match args.verifier {
        VerifierChoice::Math => VerifierKind::Math,
        VerifierChoice::Countdown => VerifierKind::Countdown,
        VerifierChoice::Exact => VerifierKind::Exact,
    };
    let mut jobs = Vec::with_capacity(CHUNK);
    let (mut reader, mut text) = (BufReader::new(file), Vec::new());
    for line in 1.. {
        if !next_line(&mut reader, &mut text).map_err(|error| bad_row(path, line, &error.to_string()))? {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let (kind, row) = parse(&text, default).map_err(|problem| bad_row(path, line, &problem))?;
        jobs.push(Job { line, kind, row });
        if jobs.len() == CHUNK {
            grade(path, &jobs, fallback)?;
            jobs.clear();
        }
    }
    grade(path, &jobs, fallback)
}

fn bad_row(path: &Path, line: usize, problem: &str) -> UsageError {
    UsageError::new(format!("{}:{line}: {problem}", path.display()))
}

fn parse(text: &[u8], default: VerifierKind) -> Result<(VerifierKind, Row), String> {
    let row: Row = serde_json::from_slice(text).map_err(|error| {
        // Its line is always 1: the caller knows the file's.
        let problem = error.to_string().replace(" at line 1 column ", " at column ");
        format!("a row must be {{\"gold\":\"..\",\"response\":\"..\"}}: {problem}")
    })?;
    let kind = match &row.verifier {
        Some(name) => name.parse::<VerifierKind>().map_err(|error| error.to_string())?,
        None => default,
    };
    Ok((kind, row))
}

fn grade(path: &Path, jobs: &[Job], fallback: Fallback) -> anyhow::Result<()> {
    let policy = |row: &Row| Policy { fallback, prompt_opens_thought: row.prompt_opens_thought };
    let rows: Vec<(GradeRow<'_>, Policy)> = jobs
        .iter()
        .map(|Job { kind, row, .. }| ((*kind, row.gold.as_str(), row.response.as_str()), policy(row)))
        .collect();
    let verdicts = crate::grading::grade_each(&rows);
    let mut out = String::new();
    for (job, verdict) in jobs.iter().zip(&verdicts) {
        warn_of_gold(path, job.line, verdict);
        let graded = Graded { correct: verdict.correct, answer: verdict.answer.as_deref() };
        out.push_str(&serde_json::to_string(&graded)?);
        out.push('\n');
    }
    print(&out)
}

/// A gold that cannot be graded against makes every response wrong, which nobody should read as a result.
fn warn_of_gold(path: &Path, line: usize, verdict: &Verdict) {
    if let Reason::BadGold(error) = &verdict.reason {
        note(&format!("warning: {}:{line}: graded as wrong: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_its_verifier_or_takes_the_default() {
        let plain = r#"{"gold":"1","response":"2","id":7}"#;
        assert_eq!(parse(plain.as_bytes(), VerifierKind::Exact).unwrap().0, VerifierKind::Exact);
        let named = r#"{"gold":"1","response":"2","verifier":"countdown"}"#;
        assert_eq!(parse(named.as_bytes(), VerifierKind::Exact).unwrap().0, VerifierKind::Countdown);
    }

    #[test]
    fn a_bad_row_says_what_is_wrong() {
        for (text, expected) in [
            (r#"{"gold":"1"}"#, "missing field `response`"),
            (r#"{"gold":1,"response":""}"#, "expected a string"),
            (r#"{"gold":"1","response":"","verifier":"maths"}"#, "unknown verifier `maths`"),
            ("[", "a row must be"),
        ] {
            let message = parse(text.as_bytes(), VerifierKind::Math).err().unwrap();
            assert!(message.contains(expected), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}
