//! The program: one file a subcommand, dispatched from a command line to an exit status.

mod bench;
mod doctor;
mod eval;
mod export;
mod generate;
mod grade;
pub mod outcome;
mod progress;
mod ready;
mod report;
mod schedule;
mod score;
mod selftest;
mod sft;
mod train;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{self, Cli, Command};
pub use outcome::{Interrupted, UsageError, note, print};

/// Runs the program on a command line, its name first, and returns its exit status: 0 done, 1 failed, 2 wrong usage or
/// configuration, 130 interrupted after a checkpoint.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.into_command(),
        Err(error) if !error.use_stderr() => {
            // `--help` and `--version`. A reader that closed its end early has what it wanted.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(&[cli::one_line(&error)], outcome::USAGE),
    };
    match dispatch(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match outcome::exit_code(&error) {
            0 => ExitCode::SUCCESS,
            code => complain(&outcome::lines(&error), code),
        },
    }
}

fn dispatch(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Grade(args) => grade::run(args),
        Command::Schedule(args) => schedule::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Report(args) => report::run(args),
        Command::Sft(args) => sft::run(args),
        Command::Export(args) => export::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Selftest(args) => selftest::run(args),
    }
}

/// Sizes the pool that every parallel loop runs on; `None` leaves a thread a core.
fn use_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .with_context(|| format!("cannot start {threads} threads (run.threads)"))
}

fn complain(messages: &[String], code: u8) -> ExitCode {
    for message in messages {
        // Not `eprintln!`, which panics when stderr is closed.
        let _ = writeln!(std::io::stderr(), "error: {message}");
    }
    ExitCode::from(code)
}
