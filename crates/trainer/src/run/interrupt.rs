//! Ctrl-C and SIGTERM: the first asks the run to stop at a safe point, the second ends the program at once.

use anyhow::{Context, Result};
use sampler::Control;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::commands::note;
use crate::process::but_for_ignored;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen; a second call changes nothing.
pub fn listen() -> Result<()> {
    let stop = || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(crate::commands::outcome::INTERRUPTED));
        }
        // Not `eprintln!`: a terminal that is gone must not take this thread along.
        note("stopping: a checkpoint is being written (once more: stop now)");
    };
    match but_for_ignored(|| ctrlc::set_handler(stop)) {
        Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        other => other.context("cannot listen for Ctrl-C"),
    }
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The same for the sampler.
pub fn control() -> Control {
    if requested() { Control::Stop } else { Control::Continue }
}
