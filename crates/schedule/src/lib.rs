//! The schedules of a run, as pure functions of the step: how long a response may be, and how fast to learn.
//!
//! [`Budget`] gives the token budget `L(t)` that makes training compress and expand; [`LearningRate`] gives the
//! optimiser's rate. Neither holds state: the same step always has the same answer, so a resumed run continues exactly.
//!
//! ```
//! use schedule::{Budget, Kind, Phase, Settings};
//!
//! let budget = Budget::new(&Settings {
//!     kind: Kind::Cosine,
//!     cycles: 3,
//!     cycle_steps: 640,
//!     l_max: 16384,
//!     l_min: 8192,
//!     stages: Vec::new(),
//! })?;
//! assert_eq!(budget.length(0), 16384);
//! assert_eq!(budget.length(320), 8192);
//! assert_eq!(budget.phase(320), Phase::Expand);
//! # Ok::<(), schedule::Error>(())
//! ```

// Whatever users, files and servers say, the program ends with a message and not with a panic.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod budget;
mod error;
mod kind;
mod lr;

pub use budget::{Budget, Mark, Settings};
pub use error::Error;
pub use kind::{Kind, Phase};
pub use lr::{Decay, LearningRate};
