//! The `trainer` program: the library's command line and its exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::process::prepare();
    trainer::commands::main(std::env::args_os())
}
