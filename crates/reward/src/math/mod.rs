//! The maths verifier: reads LaTeX and plain text into a tree, and compares by exact arithmetic first.
//!
//! `lex` cuts text into tokens, `parse` makes a tree, `normal` brings values to an exact normal form,
//! `numeric` evaluates in floating point where no exact rule applies, and `equal` decides.
//!
//! What it accepts beyond identical values, on purpose: a missing unit, percent sign, degree sign, currency or
//! number base or `x =` (a *different* one is wrong); a list in any order; a percentage as its fraction; an exact value for a
//! gold that is a decimal with at least two places, when it rounds to it; a decimal of at least ten significant
//! digits for a gold that no decimal can state exactly.

mod arithmetic;
mod equal;
mod lex;
mod normal;
mod numeric;
mod parse;
mod tree;
mod unicode;
mod units;
mod words;

use crate::verify::{GoldError, Reason, Verifier};
use equal::{Comparer, Outcome};
use parse::ParseError;
use tree::Node;

/// Longest answer read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 4096;

/// Compares answers as mathematics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Math;

impl Verifier for Math {
    fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        if gold.trim().is_empty() {
            return Err(GoldError::Empty);
        }
        if !balanced(gold) {
            return Err(GoldError::malformed(gold, "unbalanced braces"));
        }
        match read(gold, true) {
            Reading::TooLarge(limit) => Err(GoldError::too_large(gold, limit)),
            Reading::Tree(node) => match Comparer::default().check(&node) {
                Outcome::Budget(limit) => Err(GoldError::too_large(gold, limit)),
                Outcome::Undefined => Err(GoldError::malformed(gold, "its value is undefined")),
                Outcome::Equal | Outcome::Different => Ok(()),
            },
            // What is no formula (a time, a phrase) is compared as text.
            Reading::Text(_) => Ok(()),
        }
    }

    fn compare(&self, gold: &str, answer: &str) -> Reason {
        if let Err(error) = self.check_gold(gold) {
            return Reason::BadGold(error);
        }
        if answer.len() > MAX_ANSWER_BYTES {
            return too_large(&format!("more than {MAX_ANSWER_BYTES} bytes"));
        }
        if gold.trim() == answer.trim() {
            return Reason::Correct;
        }
        match compare_readings(&read(gold, true), &read(answer, true), gold, answer) {
            // `100,200` is one number or two: equal readings on both sides are equal answers.
            Reason::Wrong if gold.contains(',') && answer.contains(',') => {
                match compare_readings(&read(gold, false), &read(answer, false), gold, answer) {
                    Reason::Correct => Reason::Correct,
                    _ => Reason::Wrong,
                }
            }
            reason => reason,
        }
    }
}

fn too_large(limit: &str) -> Reason {
    Reason::BudgetExceeded(limit.to_owned())
}

enum Reading {
    Tree(Node),
    /// No formula; why.
    Text(String),
    TooLarge(String),
}

fn read(text: &str, grouped_thousands: bool) -> Reading {
    if text.len() > MAX_ANSWER_BYTES {
        return Reading::TooLarge(format!("more than {MAX_ANSWER_BYTES} bytes"));
    }
    let tokens = lex::tokens(&unicode::fold(text), grouped_thousands);
    match tokens.and_then(parse::parse) {
        Ok(node) => Reading::Tree(node),
        Err(ParseError::Syntax(what)) => Reading::Text(what),
        Err(ParseError::Budget(limit)) => Reading::TooLarge(limit.to_owned()),
    }
}

fn compare_readings(gold: &Reading, answer: &Reading, gold_text: &str, answer_text: &str) -> Reason {
    match (gold, answer) {
        (Reading::Tree(gold), Reading::Tree(answer)) => match Comparer::default().compare(gold, answer) {
            Outcome::Equal => Reason::Correct,
            Outcome::Different => Reason::Wrong,
            Outcome::Undefined => Reason::Malformed("its value is undefined".into()),
            Outcome::Budget(limit) => too_large(limit),
        },
        (_, Reading::TooLarge(limit)) | (Reading::TooLarge(limit), _) => too_large(limit),
        _ if plain(gold_text) == plain(answer_text) => Reason::Correct,
        (Reading::Tree(_), Reading::Text(what)) => Reason::Malformed(what.clone()),
        _ => Reason::Wrong,
    }
}

/// What remains of a phrase without white space, delimiters, text commands and a final full stop. Space between
/// digits stays: `1 23` is not `12 3`.
fn plain(text: &str) -> String {
    let mut folded = unicode::fold(text);
    for noise in ["\\left", "\\right", "\\text", "\\mathrm", "\\displaystyle", "\\,", "\\ ", "\\!", "$", "{", "}"] {
        folded = folded.replace(noise, " ");
    }
    let mut out = String::with_capacity(folded.len());
    for word in folded.split_whitespace() {
        if out.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit()) {
            out.push(' ');
        }
        out.push_str(word);
    }
    let out = out.trim_end_matches('.');
    // Case tells commands and variables apart, words not.
    if out.contains('\\') { out.to_owned() } else { out.to_lowercase() }
}

fn balanced(text: &str) -> bool {
    let mut depth = 0i64;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}
