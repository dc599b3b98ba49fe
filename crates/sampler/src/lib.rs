//! Rollouts: responses sampled from a policy, each seeded by its own place in the run.
//!
//! An [`Engine`] takes weights and requests and gives [`Rollout`]s. [`Local`] is the engine in this process, with
//! continuous batching; it knows tokens and a budget, not answers.

mod backend;
mod batch;
mod device;
mod ending;
mod engine;
mod local;
pub mod pick;
mod prefix;
mod rollout;
mod times;

pub use ending::{Ending, Endings};
pub use engine::{Control, Engine, Error, Request, Result, Sampled};
pub use local::{Batching, Limits, Local, Work};
pub use model::decode::Compute;
pub use model::decode_device::Form;
pub use pick::Sampling;
pub use rollout::{Finish, Rollout, Times};
