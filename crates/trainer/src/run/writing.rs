//! A checkpoint that is being written while the run goes on: one thread, and a copy of what is trained.

use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};

use crate::checkpoint::{Checkpoints, OPTIMIZER_FILE, State};
use crate::optimizer::{AdamW, Stored};
use crate::policy::{self, Policy};

/// What is trained and its moments as they were after some step, in memory of their own.
pub struct Snapshot {
    policy: policy::Snapshot,
    optimizer: Stored<'static>,
}

impl Snapshot {
    /// Copies them.
    ///
    /// # Errors
    /// When there is no memory for the copy, or a device fails.
    pub fn of(policy: &Policy, optimizer: &AdamW) -> Result<Self> {
        Ok(Self { policy: policy.snapshot()?, optimizer: optimizer.stored()?.into_owned() })
    }

    /// Writes the files of a checkpoint: the same bytes as from the originals.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.policy.save(folder)?;
        self.optimizer.write(&folder.join(OPTIMIZER_FILE))
    }
}

/// What became of a checkpoint.
pub struct Written {
    /// Its folder.
    pub folder: PathBuf,
    /// Whether it got its names.
    pub named: Result<()>,
}

/// A checkpoint that is being written.
pub struct Writing {
    /// The steps it comes after.
    pub step: u64,
    thread: JoinHandle<Result<Written>>,
}

impl Writing {
    /// Starts to write the checkpoint of `state`, under its step and `names`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn begin(checkpoints: Checkpoints, state: State, snapshot: Snapshot, names: Vec<String>) -> Result<Self> {
        let step = state.step;
        let write = move || {
            let folder = checkpoints.save(&state, &|folder| snapshot.write(folder))?;
            // Names are links: they need no copy.
            drop(snapshot);
            let named = names.iter().try_for_each(|name| checkpoints.name(&folder, name).map(drop));
            Ok(Written { folder, named })
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(write).context("no thread to write with")?;
        Ok(Self { step, thread })
    }

    /// Whether [`end`](Self::end) would not wait.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it is written.
    ///
    /// # Errors
    /// When it could not be; the other checkpoints are as they were.
    pub fn end(self) -> Result<Written> {
        self.thread.join().unwrap_or_else(|_| Err(anyhow!("the thread that wrote it failed")))
    }
}
