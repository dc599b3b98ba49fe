//! Grades mutated inputs for a while: `cargo run --release -p reward --example fuzz -- MINUTES [FILE...] [--seed N]`.
//!
//! Seeds are built in; files of labelled cases add theirs. A finding is a panic, a verdict of over 50 ms of
//! processor time, a gold that is not itself, or a verdict that is not the same twice. Exits 1 on the first.

mod mutate;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use mutate::{Random, Wanted, mutate};
use reward::{Fallback, Policy, VerifierKind, check_gold, grade};
use serde_json::Value;

const SEEDS: [&str; 24] = [
    "42",
    "-\\frac{3}{4}",
    "1{,}234.5",
    "0.\\overline{36}",
    "2\\sqrt{3}",
    "\\sqrt[3]{x}^2",
    "(1, -2]",
    "\\{1, 2, 3\\}",
    "(-\\infty, 3) \\cup [5, \\infty)",
    "x^2 - 5x + 6 = 0",
    "3 \\pm \\sqrt{2}",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
    "\\text{(B)} 12",
    "30^\\circ",
    "5 \\text{ cm}^2",
    "50\\%",
    "\\$1.50",
    "101_2",
    "\\sin^2 x + \\cos^2 x",
    "\\log_2 8",
    "\\sum_{k=1}^{10} k^2",
    "\\mathbb{R} \\setminus \\{0\\}",
    "3:05 \\text{ p.m.}",
    "e^{i\\pi} + \\binom{5}{2} - 4!",
];
const PIECES: [&str; 48] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    "|",
    "\\left",
    "\\right",
    "\\frac",
    "\\sqrt",
    "\\sqrt[3]",
    "^",
    "_",
    "!",
    "+",
    "-",
    "\\pm",
    "*",
    "/",
    ":",
    "=",
    "<",
    "\\le",
    "\\ne",
    "\\in",
    "\\cup",
    "\\cap",
    ",",
    ";",
    "\\text{",
    " and ",
    "%",
    "^\\circ",
    "\\pi",
    "i",
    "e",
    "x",
    "\\infty",
    "\\sin",
    "\\ln",
    "9",
    "10^",
    ".5",
    "½",
    "\\boxed{",
];

fn corpus(files: &[String]) -> Result<Vec<String>, String> {
    let mut corpus: Vec<String> = SEEDS.iter().map(|seed| (*seed).to_owned()).collect();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).map_err(|error| format!("{file}: {error}"))?;
            corpus.extend(["gold", "response"].into_iter().filter_map(|key| row[key].as_str()).map(str::to_owned));
        }
    }
    Ok(corpus)
}

/// What is wrong with the verdicts on one input.
fn finding(gold: &str, answer: &str) -> Result<Duration, String> {
    let response = format!("\\boxed{{{answer}}}");
    let policy = Policy { fallback: Fallback::Standard, ..Policy::default() };
    let start = ThreadTime::now();
    let verdict = grade(VerifierKind::Math, gold, &response, &policy);
    let taken = start.elapsed();
    if verdict != grade(VerifierKind::Math, gold, &response, &policy) {
        return Err("another verdict the second time".into());
    }
    if check_gold(VerifierKind::Math, gold).is_ok() {
        let itself = VerifierKind::Math.verifier().compare(gold, gold);
        if itself != reward::Reason::Correct {
            return Err(format!("a gold that is not itself: {itself}"));
        }
    }
    let _ = grade(VerifierKind::Math, gold, answer, &policy);
    Ok(taken)
}

fn main() -> ExitCode {
    let Some(Wanted { minutes, seed, names: files }) = Wanted::parse() else {
        eprintln!("say for how many minutes");
        return ExitCode::FAILURE;
    };
    let corpus = match corpus(&files) {
        Ok(corpus) => corpus,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let mut random = Random(seed);
    let (start, mut count, mut longest) = (Instant::now(), 0u64, Duration::ZERO);
    while start.elapsed().as_secs_f64() < 60.0 * minutes {
        let first = mutate(&corpus[random.below(corpus.len())], &corpus, &PIECES, &mut random);
        let other = match random.below(3) {
            0 => corpus[random.below(corpus.len())].clone(),
            1 => mutate(&first, &corpus, &PIECES, &mut random),
            _ => mutate(&corpus[random.below(corpus.len())], &corpus, &PIECES, &mut random),
        };
        count += 1;
        let result = std::panic::catch_unwind(|| finding(&first, &other));
        // A slow verdict counts if it is slow again: the first time may have been another's.
        let result = match result {
            Ok(Ok(taken)) if taken > Duration::from_millis(50) => {
                let again = (0..3).filter_map(|_| finding(&first, &other).ok()).min().unwrap_or(taken);
                longest = longest.max(again);
                if again > Duration::from_millis(50) { Err(format!("a verdict of {again:?}")) } else { Ok(()) }
            }
            Ok(Ok(taken)) => {
                longest = longest.max(taken);
                Ok(())
            }
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err("a panic".into()),
        };
        if let Err(problem) = result {
            println!("{problem}: gold {first:?}, answer {other:?}");
            return ExitCode::FAILURE;
        }
    }
    println!("{count} inputs in {minutes} minutes from seed {seed}, no finding; the longest verdict took {longest:?}");
    ExitCode::SUCCESS
}
