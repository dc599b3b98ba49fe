//! The verifier interface: kinds, verdicts with their reasons, and grading one response.

use std::fmt;
use std::str::FromStr;

use crate::countdown::Countdown;
use crate::exact::Exact;
use crate::extract::{Extracted, Policy, extract};
use crate::math::Math;

/// Which verifier judges a problem. Chosen per problem, so that data sets can be mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerifierKind {
    /// Mathematical equality of a LaTeX or plain answer with the gold.
    Math,
    /// An arithmetic expression that uses each given number exactly once and has the exact value.
    Countdown,
    /// The same text, up to white space.
    Exact,
}

impl VerifierKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Math, Self::Countdown, Self::Exact];

    /// The name used in data files and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Math => "math",
            Self::Countdown => "countdown",
            Self::Exact => "exact",
        }
    }

    /// The verifier of this kind.
    pub fn verifier(self) -> &'static dyn Verifier {
        match self {
            Self::Math => &Math,
            Self::Countdown => &Countdown,
            Self::Exact => &Exact,
        }
    }
}

impl fmt::Display for VerifierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no verifier's, cut to a readable length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown verifier `{0}`: use math, countdown or exact")]
pub struct UnknownVerifier(pub String);

impl FromStr for VerifierKind {
    type Err = UnknownVerifier;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownVerifier(excerpt(name)))
    }
}

/// Why a gold answer cannot be graded against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoldError {
    /// Nothing but white space.
    #[error("the gold answer is empty")]
    Empty,
    /// Not in the form that the verifier reads.
    #[error("gold answer `{gold}`: {problem}")]
    Malformed {
        /// The gold answer, cut to a readable length.
        gold: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Too large to compare within the budget of one verdict.
    #[error("gold answer `{gold}` is over the grader's budget: {limit}")]
    TooLarge {
        /// The gold answer, cut to a readable length.
        gold: String,
        /// The limit it exceeds.
        limit: String,
    },
}

impl GoldError {
    pub(crate) fn malformed(gold: &str, problem: impl Into<String>) -> Self {
        Self::Malformed { gold: excerpt(gold), problem: problem.into() }
    }

    pub(crate) fn too_large(gold: &str, limit: impl Into<String>) -> Self {
        Self::TooLarge { gold: excerpt(gold), limit: limit.into() }
    }
}

/// The first 80 characters, so that an error stays one line.
pub(crate) fn excerpt(text: &str) -> String {
    let mut cut: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// Why a verdict came out as it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The answer equals the gold.
    Correct,
    /// There is an answer, and it is another one.
    Wrong,
    /// The response holds no answer.
    NoAnswer,
    /// The response ends inside its thought, so that it holds no answer yet.
    UnfinishedThought,
    /// The answer cannot be read; what is wrong with it.
    Malformed(String),
    /// The answer is larger than one verdict may work on; the limit it exceeds.
    BudgetExceeded(String),
    /// The gold cannot be read; [`check_gold`] tells before training.
    BadGold(GoldError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Correct => f.write_str("correct"),
            Self::Wrong => f.write_str("wrong"),
            Self::NoAnswer => f.write_str("no answer"),
            Self::UnfinishedThought => f.write_str("unfinished thought"),
            Self::Malformed(what) => write!(f, "malformed answer: {what}"),
            Self::BudgetExceeded(limit) => write!(f, "over the grader's budget: {limit}"),
            Self::BadGold(error) => write!(f, "{error}"),
        }
    }
}

/// The judgement of one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the response answers correctly; true exactly when `reason` is [`Reason::Correct`].
    pub correct: bool,
    /// The answer as the response states it; `None` where there is none.
    pub answer: Option<String>,
    /// Why.
    pub reason: Reason,
}

impl Verdict {
    /// The verdict that follows from a reason.
    pub fn new(answer: Option<String>, reason: Reason) -> Self {
        Self { correct: reason == Reason::Correct, answer, reason }
    }
}

/// Judges answers against golds. Deterministic, and bounded in its work for any input.
pub trait Verifier: Sync {
    /// Whether `gold` can be graded against.
    ///
    /// # Errors
    /// [`GoldError`] says what is wrong with it.
    fn check_gold(&self, gold: &str) -> Result<(), GoldError>;

    /// Judges an extracted answer.
    fn compare(&self, gold: &str, answer: &str) -> Reason;

    /// Extracts the answer of a whole response as `policy` says, and judges it.
    fn grade_with(&self, gold: &str, response: &str, policy: &Policy) -> Verdict {
        judge(self, gold, &extract(response, policy))
    }

    /// Judges a whole response under the default policy: boxed answers only.
    fn grade(&self, gold: &str, response: &str) -> Verdict {
        self.grade_with(gold, response, &Policy::default())
    }
}

/// The verdict on what was extracted of a response.
pub(crate) fn judge<V: Verifier + ?Sized>(verifier: &V, gold: &str, found: &Extracted) -> Verdict {
    match found {
        Extracted::Answer(answer) => Verdict::new(Some(answer.clone()), verifier.compare(gold, answer)),
        Extracted::None => Verdict::new(None, Reason::NoAnswer),
        Extracted::UnfinishedThought => Verdict::new(None, Reason::UnfinishedThought),
    }
}

/// Whether a response could ever be graded against `gold`; ask before training.
///
/// # Errors
/// [`GoldError`] says what is wrong with it.
pub fn check_gold(kind: VerifierKind, gold: &str) -> Result<(), GoldError> {
    kind.verifier().check_gold(gold)
}

/// Judges a whole response with the verifier of `kind`.
pub fn grade(kind: VerifierKind, gold: &str, response: &str, policy: &Policy) -> Verdict {
    kind.verifier().grade_with(gold, response, policy)
}

/// One row to grade: verifier, gold answer, whole response.
pub type GradeRow<'a> = (VerifierKind, &'a str, &'a str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for kind in VerifierKind::ALL {
            assert_eq!(kind.to_string().parse::<VerifierKind>(), Ok(kind));
        }
        let error = "maths".parse::<VerifierKind>().unwrap_err();
        assert_eq!(error.to_string(), "unknown verifier `maths`: use math, countdown or exact");
    }
}
