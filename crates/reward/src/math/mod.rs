//! The maths verifier: reads LaTeX and plain text into a tree, and compares by exact arithmetic first.
//!
//! `lex` cuts text into tokens, `parse` makes a tree, `normal` brings values to an exact normal form,
//! `numeric` evaluates in f64 and then in 320 bits where no exact rule applies, and `equal` decides. `budget`
//! bounds the work of a verdict.
//!
//! What it accepts beyond identical values, on purpose:
//!
//! - a missing unit, percent sign, degree sign, currency, number base or `x =` (a *different* one is wrong);
//! - a list in any order, and a point without its brackets in the same order;
//! - a percentage as its fraction, an angle in degrees as one in radians with `π`;
//! - an exact value for a gold that is a decimal with at least two places, when it rounds to it;
//! - a decimal of at least ten significant digits for a gold that no decimal can state exactly;
//! - `log` without a base as the natural one or that to base ten.

mod budget;
mod equal;
mod lex;
mod normal;
mod numeric;
mod parse;
mod read;
mod spelling;
#[cfg(test)]
mod tests;
mod tree;
mod unicode;
mod units;
mod words;

use std::borrow::Cow;

use crate::extract::{Policy, boxed, extract};
use crate::verify::{GoldError, Reason, Verdict, Verifier, judge};
use equal::{Comparer, Outcome};
pub use read::MAX_ANSWER_BYTES;
use read::{Reading, open_braces, plain, prepare, read};
use spelling::{choice, is_comma_decimal, lone_letter};

/// Compares answers as mathematics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Math;

impl Verifier for Math {
    fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        let text = unboxed(&closed(gold)).into_owned();
        gold_reading(gold, &text, &mut Comparer::default()).map(|_| ())
    }

    fn grade_with(&self, gold: &str, response: &str, policy: &Policy) -> Verdict {
        // A response that went through a string literal: all of its backslashes are doubled.
        let doubled = response.contains("\\\\boxed{") && !response.replace("\\\\", "").contains("\\boxed{");
        let response = if doubled { Cow::Owned(response.replace("\\\\", "\\")) } else { Cow::Borrowed(response) };
        judge(self, gold, &extract(&response, policy))
    }

    fn compare(&self, gold: &str, answer: &str) -> Reason {
        if let (Some(gold), Some(answer)) = (small_integer(gold), small_integer(answer)) {
            return if gold == answer { Reason::Correct } else { Reason::Wrong };
        }
        let whole = closed(gold);
        let gold_text = unboxed(&whole);
        let mut comparer = Comparer::default();
        let gold_reading = match gold_reading(gold, &gold_text, &mut comparer) {
            Ok(reading) => reading,
            Err(error) => return Reason::BadGold(error),
        };
        if answer == gold {
            return Reason::Correct;
        }
        let answer_text = unboxed(answer);
        if answer_text.len() > MAX_ANSWER_BYTES {
            return too_large(&format!("more than {MAX_ANSWER_BYTES} bytes"));
        }
        if gold_text == answer_text || is_comma_decimal(&gold_text, &answer_text) {
            return Reason::Correct;
        }
        let gold_side = Side { reading: gold_reading, text: &gold_text };
        let mut reason = compare_sides(&mut comparer, &gold_side, &Side::read(&answer_text, true));
        // `100,200` is one number or two: equal readings on both sides are equal answers.
        if reason == Reason::Wrong && gold_text.contains(',') && answer_text.contains(',') {
            reason = compare_sides(&mut comparer, &Side::read(&gold_text, false), &Side::read(&answer_text, false));
        }
        if reason != Reason::Correct
            && let Some((letter, rest)) = choice(&answer_text)
        {
            let correct = match lone_letter(&gold_text) {
                Some(gold) => gold == letter,
                None => compare_sides(&mut comparer, &gold_side, &Side::read(rest, true)) == Reason::Correct,
            };
            return if correct { Reason::Correct } else { reason };
        }
        reason
    }
}

/// Whether an answer is read as a formula. What is none is compared as words.
///
/// # Errors
/// What keeps it from being one.
pub fn form(answer: &str) -> Result<(), String> {
    match read(&unboxed(answer), true) {
        Reading::Tree(_) => Ok(()),
        Reading::Text(problem) | Reading::TooLarge(problem) => Err(problem),
    }
}

/// A text and what it was read as.
struct Side<'a> {
    reading: Reading,
    text: &'a str,
}

impl<'a> Side<'a> {
    fn read(text: &'a str, grouped_thousands: bool) -> Self {
        Self { reading: read(text, grouped_thousands), text }
    }
}

/// Whole numbers of at most 18 digits, which most answers are.
fn small_integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = (1..=18).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A gold answer with the closing braces that its end lacks: data sets have some that were cut off there. Any other text
/// is left as it is.
pub fn closed(gold: &str) -> Cow<'_, str> {
    match open_braces(gold) {
        Some(missing @ 1..=4) => (gold.to_owned() + &"}".repeat(missing)).into(),
        _ => gold.into(),
    }
}

/// The prepared text; a gold may be a solution's last step, with the answer in its box.
fn unboxed(gold: &str) -> Cow<'_, str> {
    let text = prepare(gold);
    match text.contains("\\boxed").then(|| boxed(&text)).flatten() {
        Some(inner) => inner.into(),
        None => text,
    }
}

fn gold_reading(gold: &str, text: &str, comparer: &mut Comparer) -> Result<Reading, GoldError> {
    if text.trim().is_empty() {
        return Err(GoldError::Empty);
    }
    if open_braces(text) != Some(0) {
        return Err(GoldError::malformed(gold, "unbalanced braces"));
    }
    let reading = read(text, true);
    match &reading {
        Reading::TooLarge(limit) => Err(GoldError::too_large(gold, limit.as_str())),
        Reading::Tree(node) => match comparer.check(node) {
            Outcome::Budget(limit) => Err(GoldError::too_large(gold, limit)),
            Outcome::Undefined => Err(GoldError::malformed(gold, "its value is undefined")),
            Outcome::Equal | Outcome::Different => Ok(reading),
        },
        // What is no formula even with its braces closed was cut off earlier.
        Reading::Text(_) if open_braces(gold) != Some(0) => Err(GoldError::malformed(gold, "unbalanced braces")),
        // What is no formula (a time, a phrase) is compared as text.
        Reading::Text(_) => Ok(reading),
    }
}

fn too_large(limit: &str) -> Reason {
    Reason::BudgetExceeded(limit.to_owned())
}

fn compare_sides(comparer: &mut Comparer, gold: &Side<'_>, answer: &Side<'_>) -> Reason {
    match (&gold.reading, &answer.reading) {
        (Reading::Tree(gold), Reading::Tree(answer)) => match comparer.compare(gold, answer) {
            Outcome::Equal => Reason::Correct,
            Outcome::Different => Reason::Wrong,
            Outcome::Undefined => Reason::Malformed("its value is undefined".into()),
            Outcome::Budget(limit) => too_large(limit),
        },
        (_, Reading::TooLarge(limit)) | (Reading::TooLarge(limit), _) => too_large(limit),
        _ if plain(gold.text) == plain(answer.text) => Reason::Correct,
        (Reading::Tree(_), Reading::Text(what)) => Reason::Malformed(what.clone()),
        _ => Reason::Wrong,
    }
}
