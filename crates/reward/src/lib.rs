//! Rewards for reasoning models: grade a response against a gold answer, turn verdicts and lengths into
//! scores, and estimate accuracies with their errors.
//!
//! The crate knows text, numbers and lengths; no tensors and no tokenizer. Every verdict is a pure function of
//! its inputs and does a bounded amount of work: an answer too large to compare is *not correct*, and the
//! [`Reason`] says so.
//!
//! ```
//! use reward::{Policy, VerifierKind, grade};
//! let verdict = grade(VerifierKind::Math, "1/2", r"so \boxed{\frac{1}{2}}.", &Policy::default());
//! assert!(verdict.correct);
//! ```

// Whatever users, files and servers say, the program ends with a message and not with a panic.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod countdown;
pub mod estimate;
pub mod exact;
pub mod extract;
pub mod math;
pub mod problem;
pub mod score;
pub mod verify;

pub use extract::{Fallback, Policy};
pub use problem::Problem;
pub use verify::{GoldError, GradeRow, Reason, UnknownVerifier, Verdict, Verifier, VerifierKind, check_gold, grade};
