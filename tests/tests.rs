//! Tests of the program as its users call it; one file a topic.

#[cfg(unix)]
mod bad_inputs;
mod cli;
mod commands;
#[cfg(target_os = "linux")]
mod disk;
mod export;
mod faults;
#[cfg(target_os = "linux")]
mod gpu;
mod hub;
#[cfg(unix)]
mod kill;
mod program;
mod run;
mod training_step;
