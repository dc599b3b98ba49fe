//! The text verifier: the answer is the gold, character for character, up to white space.

use crate::verify::{GoldError, Reason, Verifier};

/// Compares texts after trimming and after turning each run of white space into one space.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exact;

impl Verifier for Exact {
    fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        if gold.trim().is_empty() { Err(GoldError::Empty) } else { Ok(()) }
    }

    fn compare(&self, gold: &str, answer: &str) -> Reason {
        if let Err(error) = self.check_gold(gold) {
            return Reason::BadGold(error);
        }
        if gold.split_whitespace().eq(answer.split_whitespace()) { Reason::Correct } else { Reason::Wrong }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_text() {
        assert!(Exact.grade("San  Marino", "\\boxed{San Marino }").correct);
        assert_eq!(Exact.grade("San Marino", "\\boxed{san marino}").reason, Reason::Wrong);
        assert_eq!(Exact.grade("San Marino", "San Marino").reason, Reason::NoAnswer);
        assert_eq!(Exact.grade(" ", "\\boxed{x}").reason, Reason::BadGold(GoldError::Empty));
    }
}
