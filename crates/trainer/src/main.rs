//! The `trainer` program: the library's command line and its exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: nothing else runs yet, so no other thread reads or writes the environment.
        //
        // candle's own pool waits at spinning barriers, which takes the cores from the loops that train (measured: a
        // quarter of the time). Parallel work is ours to share out; candle reads this once, on its first operation.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    trainer::commands::main(std::env::args_os())
}
