//! Metal: one kernel file an op, compiled when it is first needed, and the launches of each.
//!
//! An op's launches are in the file of its name, in the terms of [`gpu`]. `tests` runs them on the CPU against the composed
//! twins.

pub mod adamw;
pub mod gpu;
#[cfg(test)]
mod host;
pub mod norm;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
#[cfg(test)]
mod tests;
