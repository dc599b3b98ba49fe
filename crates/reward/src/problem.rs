//! A problem: what the model is asked, the gold answer, and who judges.

use crate::verify::{GoldError, VerifierKind, check_gold};

/// One verifiable problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the user message says, before any chat template.
    pub prompt: String,
    /// The gold answer, in the form that `verifier` reads.
    pub answer: String,
    /// Which verifier compares a response with `answer`.
    pub verifier: VerifierKind,
}

impl Problem {
    /// A problem whose gold answer its verifier can read.
    ///
    /// # Errors
    /// [`GoldError`] when no response could ever be graded against `answer`.
    pub fn new(
        prompt: impl Into<String>,
        answer: impl Into<String>,
        verifier: VerifierKind,
    ) -> Result<Self, GoldError> {
        let answer = answer.into();
        check_gold(verifier, &answer)?;
        Ok(Self { prompt: prompt.into(), answer, verifier })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_gold_that_cannot_be_graded() {
        assert!(Problem::new("Make 19 from 3, 7, 12.", "19 from 3, 7, 12", VerifierKind::Countdown).is_ok());
        assert!(Problem::new("Make 19.", "nineteen", VerifierKind::Countdown).is_err());
        assert!(Problem::new("?", " ", VerifierKind::Math).is_err());
    }
}
