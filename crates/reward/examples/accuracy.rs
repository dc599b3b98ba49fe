//! Measures the grader on labelled cases: confusion counts by group, and verdicts a second of processor time.
//!
//! `cargo run --release -p reward --example accuracy -- FILE... [--training] [--failures] [--repeat N]`
//!
//! A row is `{"gold":"..","response":"..","expected":bool,"group":".."}` (`correct` is read like `expected`);
//! `verifier` chooses one, maths by default. `--training` takes boxed answers only, `--failures` prints each
//! verdict that differs from its label, and `--repeat` grades everything N times for a steadier speed.

use std::collections::BTreeMap;
use std::process::ExitCode;

use cpu_time::ProcessTime;
use reward::{Fallback, GradeRow, Policy, Verdict, VerifierKind, grade};
use serde_json::Value;

struct Case {
    id: String,
    group: String,
    kind: VerifierKind,
    gold: String,
    response: String,
    expected: bool,
}

#[derive(Default)]
struct Options {
    files: Vec<String>,
    training: bool,
    failures: bool,
    repeat: usize,
}

/// Verdicts by what they were and should have been.
#[derive(Default, Clone, Copy)]
struct Confusion {
    true_accepts: usize,
    false_accepts: usize,
    true_rejects: usize,
    false_rejects: usize,
}

impl Confusion {
    fn count(&mut self, expected: bool, correct: bool) {
        *match (expected, correct) {
            (true, true) => &mut self.true_accepts,
            (false, true) => &mut self.false_accepts,
            (false, false) => &mut self.true_rejects,
            (true, false) => &mut self.false_rejects,
        } += 1;
    }

    fn print(&self, name: &str) {
        let right = self.true_accepts + self.true_rejects;
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        let negatives = self.false_accepts + self.true_rejects;
        let positives = self.false_rejects + self.true_accepts;
        println!(
            "{name:22} {:>6} {:>8.2}% {:>8} {:>8} {:>8} {:>8} {:>8.2}% {:>8.2}%",
            negatives + positives,
            percent(right, negatives + positives),
            self.true_accepts,
            self.true_rejects,
            self.false_accepts,
            self.false_rejects,
            percent(self.false_accepts, negatives),
            percent(self.false_rejects, positives),
        );
    }
}

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
    let options = options()?;
    let mut cases = Vec::new();
    for file in &options.files {
        cases.extend(read(file)?);
    }
    let fallback = if options.training { Fallback::None } else { Fallback::Standard };
    let policy = Policy { fallback, ..Policy::default() };
    let rows: Vec<GradeRow<'_>> = cases.iter().map(|c| (c.kind, c.gold.as_str(), c.response.as_str())).collect();
    // One thread, as the figures of other graders are.
    let verdicts_of = || rows.iter().map(|&(kind, gold, response)| grade(kind, gold, response, &policy));
    let verdicts: Vec<Verdict> = verdicts_of().collect();
    let start = ProcessTime::now();
    let mut graded = 0u64;
    for _ in 0..options.repeat {
        for verdict in verdicts_of() {
            std::hint::black_box(verdict);
            graded += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();

    let mut groups: BTreeMap<&str, Confusion> = BTreeMap::new();
    let mut all = Confusion::default();
    for (case, verdict) in cases.iter().zip(&verdicts) {
        groups.entry(&case.group).or_default().count(case.expected, verdict.correct);
        all.count(case.expected, verdict.correct);
        if options.failures && case.expected != verdict.correct {
            let kind = if verdict.correct { "false accept" } else { "false reject" };
            println!(
                "{kind}: {} {} gold {:?} answer {:?}: {}",
                case.group,
                case.id,
                case.gold,
                verdict.answer.as_deref().unwrap_or(""),
                verdict.reason
            );
        }
    }
    println!(
        "{:22} {:>6} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "group", "cases", "accuracy", "accepts", "rejects", "f.acc", "f.rej", "f.acc", "f.rej"
    );
    for (group, confusion) in &groups {
        confusion.print(group);
    }
    all.print("all");
    println!("extraction: {fallback:?}; {:.0} verdicts a second of processor time", graded as f64 / seconds);
    Ok(())
}

fn options() -> Result<Options, String> {
    let mut options = Options { repeat: 20, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--training" => options.training = true,
            "--failures" => options.failures = true,
            "--repeat" => {
                let count = arguments.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                options.repeat = count.ok_or("--repeat takes a number above 0")?;
            }
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}")),
            file => options.files.push(file.to_owned()),
        }
    }
    if options.files.is_empty() {
        return Err("name at least one JSONL file of labelled cases".into());
    }
    Ok(options)
}

fn read(file: &str) -> Result<Vec<Case>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut cases = Vec::new();
    for (line, json) in text.lines().enumerate().filter(|(_, json)| !json.trim().is_empty()) {
        let at = format!("{file}:{}", line + 1);
        let row: Value = serde_json::from_str(json).map_err(|error| format!("{at}: {error}"))?;
        let field = |key: &str| row[key].as_str().map(str::to_owned).ok_or(format!("{at}: no text `{key}`"));
        let expected = row["expected"].as_bool().or(row["correct"].as_bool()).ok_or(format!("{at}: no label"))?;
        let kind = match row["verifier"].as_str() {
            Some(name) => name.parse().map_err(|error| format!("{at}: {error}"))?,
            None => VerifierKind::Math,
        };
        let id = row["id"].as_str().map_or_else(|| at.clone(), str::to_owned);
        cases.push(Case {
            id,
            group: field("group")?,
            kind,
            gold: field("gold")?,
            response: field("response")?,
            expected,
        });
    }
    Ok(cases)
}
