//! Metal: one kernel file an op, compiled when it is first needed, and the launches of each.
//!
//! An op's launches are in the file of its name, in the terms of [`gpu`]. `tests` runs them on the CPU against the composed
//! twins.

pub(crate) mod adamw;
pub(crate) mod attention;
#[cfg(feature = "metal")]
pub(crate) mod decode;
pub(crate) mod decode_attention;
#[cfg(feature = "metal")]
mod device;
pub(crate) mod gpu;
#[cfg(feature = "metal")]
pub(crate) mod head;
#[cfg(test)]
mod host;
pub(crate) mod log_prob;
pub(crate) mod norm;
#[cfg(feature = "metal")]
pub(crate) mod optimizer;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod swiglu;
#[cfg(feature = "metal")]
pub(crate) mod tensors;
#[cfg(test)]
mod tests;
