//! Grades the rows of `tests/data/*.jsonl` and prints every verdict that differs, then a table by group.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use reward::{Policy, VerifierKind, check_gold, grade};
use serde_json::Value;

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("a row without the text `{key}`: {row}"))
}

#[test]
fn every_case_gets_its_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    // Right verdicts, false accepts, false rejects.
    let mut table: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut failures = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "jsonl")) {
        for (line, json) in fs::read_to_string(file).unwrap().lines().enumerate() {
            let at = format!("{}:{}", file.file_name().unwrap().to_string_lossy(), line + 1);
            let row: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{at}: {error}"));
            let kind: VerifierKind = text(&row, "verifier").parse().unwrap();
            let (gold, response) = (text(&row, "gold"), text(&row, "response"));
            if let Err(error) = check_gold(kind, gold) {
                failures.push(format!("{at}: {error}"));
            }
            let verdict = grade(kind, gold, response, &Policy::default());
            let expected = row["correct"].as_bool().unwrap();
            let column = match (expected, verdict.correct) {
                (true, true) | (false, false) => 0,
                (false, true) => 1,
                (true, false) => 2,
            };
            table.entry(format!("{kind} {}", text(&row, "group"))).or_default()[column] += 1;
            if column > 0 {
                let answer = verdict.answer.as_deref().unwrap_or("(none)");
                failures.push(format!("{at}: gold {gold:?}, answer {answer:?}: {}, not {expected}", verdict.reason));
            }
        }
    }
    println!("{:24} {:>6} {:>14} {:>14}", "group", "right", "false accepts", "false rejects");
    for (group, [right, accepts, rejects]) in &table {
        println!("{group:24} {right:>6} {accepts:>14} {rejects:>14}");
    }
    let rows: usize = table.values().flatten().sum();
    assert!(rows >= 150, "only {rows} cases were read");
    assert!(failures.is_empty(), "{} of {rows} cases fail:\n{}", failures.len(), failures.join("\n"));
}
