//! The trainer: configuration, data, the SIRI loop, its optimiser, evaluation and reports.
//!
//! Everything the `trainer` program does is a function here, so that tests and other programs can call it.

// Whatever users, files and servers say, the program ends with a message and not with a panic.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod advantage;
mod bar;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod doctor;
pub mod evaluate;
pub mod grading;
pub mod learn;
pub mod loss;
pub mod metrics;
pub mod optimizer;
pub mod policy;
pub mod process;
pub mod report;
pub mod run;
pub mod selftest;
pub mod sft;
pub mod study;
pub mod update;
