//! Tests of the program as its users call it; one file a topic.

mod cli;
mod commands;
mod hub;
mod program;
mod run;
mod training_step;
