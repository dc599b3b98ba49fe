//! Judging many responses where a verifier that fails on one costs that one response and not the run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;
use reward::{GradeRow, Policy, Reason, Verdict, grade};

/// Why a response that the verifier failed on is wrong.
const FAILED: &str = "the verifier failed on it";

/// Judges responses in parallel; verdict `i` belongs to row `i`. One that the verifier fails on is wrong, and counted by
/// [`failures`].
#[must_use]
pub fn grade_all(rows: &[GradeRow<'_>], policy: &Policy) -> Vec<Verdict> {
    guarded(rows, |&(kind, gold, response)| grade(kind, gold, response, policy))
}

/// The same, where each row's answer is looked for in its own way.
#[must_use]
pub fn grade_each(rows: &[(GradeRow<'_>, Policy)]) -> Vec<Verdict> {
    guarded(rows, |&((kind, gold, response), ref policy)| grade(kind, gold, response, policy))
}

fn guarded<T: Sync>(rows: &[T], judge: impl Fn(&T) -> Verdict + Sync) -> Vec<Verdict> {
    // A verifier has no state that a failure could leave half-changed.
    let judge = |row: &T| catch_unwind(AssertUnwindSafe(|| judge(row)));
    rows.par_iter().map(|row| judge(row).unwrap_or_else(|_| failed())).collect()
}

fn failed() -> Verdict {
    Verdict::new(None, Reason::Malformed(FAILED.into()))
}

/// How many of these verdicts are a verifier's failure.
pub fn failures<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> usize {
    let failed = failed();
    verdicts.into_iter().filter(|verdict| **verdict == failed).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reward::VerifierKind;

    #[test]
    fn a_failure_costs_one_response() {
        let right = Verdict::new(Some("1".into()), Reason::Correct);
        let verdicts =
            guarded(&[1, 2, 3], |&row| if row == 2 { panic!("a fault of the verifier") } else { right.clone() });
        assert_eq!(verdicts.iter().map(|verdict| verdict.correct).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(failures(&verdicts), 1);
        let rows = [(VerifierKind::Math, "7", "\\boxed{7}"), (VerifierKind::Math, "7", "\\boxed{\\frac")];
        let verdicts = grade_all(&rows, &Policy::default());
        assert!(verdicts[0].correct && !verdicts[1].correct);
        assert_eq!(failures(&verdicts), 0, "what cannot be read is the response's fault");
    }
}
