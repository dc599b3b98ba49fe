//! Makes the result table: SIRI and its controls at equal rollout tokens, over several seeds, with errors.
//!
//! `cargo run -p trainer --example study -- [--seeds 1,2,3,4,5] [--schedules cosine,stair,...] [--jobs 2]
//! [--out runs/study] [--set section.key=value]...`

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer::process::prepare();
    trainer::study::main(std::env::args_os())
}
