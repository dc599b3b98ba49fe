//! Metal: one kernel file an op, compiled when it is first needed, and the launches of each.
//!
//! An op's launches are in the file of its name, in the terms of [`gpu`]. `tests` runs them on the CPU against the composed
//! twins.

pub mod adamw;
pub mod attention;
pub mod decode_attention;
#[cfg(feature = "metal")]
mod device;
pub mod gpu;
#[cfg(feature = "metal")]
pub(crate) mod head;
#[cfg(test)]
mod host;
pub mod log_prob;
pub mod norm;
#[cfg(feature = "metal")]
pub(crate) mod optimizer;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;
#[cfg(feature = "metal")]
pub(crate) mod tensors;
#[cfg(test)]
mod tests;
