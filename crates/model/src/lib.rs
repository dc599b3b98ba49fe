//! The policy: a Qwen2 or Qwen3 decoder that trains and generates from one set of weights, its text side, and its files.
//!
//! [`qwen2`] is the differentiable forward over packed sequences, made of [`ops`] (each a formula, a composed twin, a fused
//! CPU kernel and its backward), [`backward`] the way back through it; [`decode`] is the step that generates, over a
//! [`cache`] the caller owns, and [`decode_device`] that of a GPU. [`files`] says where a model comes from (compiled in, a
//! folder, the [`hub`]), [`weights`] and [`text`] read it.

// Whatever users, files and servers say, the program ends with a message and not with a panic.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod backward;
mod block;
pub mod cache;
pub mod config;
pub mod decode;
pub mod decode_device;
pub mod device;
pub mod embedded;
mod error;
pub mod files;
pub mod hub;
pub mod init;
pub mod kernels;
pub mod lora;
pub mod ops;
mod packed_model;
pub mod qwen2;

pub mod scaling;
pub mod selftest;
pub mod shards;
pub mod split;
pub mod text;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
pub use files::{Files, Source};
pub use qwen2::{PackedBatch, Qwen2};
pub use text::Text;
