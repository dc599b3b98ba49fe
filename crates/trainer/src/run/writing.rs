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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use candle_core::Device;

    use super::*;
    use crate::config::{Dtype, Lora};
    use crate::optimizer::{AdamWSettings, Gradients};

    fn policy(dtype: Dtype, lora: bool) -> (Policy, AdamW) {
        let policy = Policy::load("embedded", dtype, &Device::Cpu).unwrap();
        let adapters = Lora { rank: 2, alpha: 4.0, targets: vec!["q_proj".into(), "down_proj".into()] };
        let policy = if lora { policy.with_adapters(&adapters, 3).unwrap() } else { policy };
        let optimizer = AdamW::new(policy.model.variables(), AdamWSettings::default()).unwrap();
        (policy, optimizer)
    }

    fn step(policy: &Policy, optimizer: &mut AdamW) {
        let mut gradients = Gradients::new(policy.model.variables()).unwrap();
        for (index, (_, var)) in policy.model.variables().iter().enumerate() {
            gradients.add(index, &var.as_detached_tensor().affine(1.0, 0.5).unwrap()).unwrap();
        }
        optimizer.step(&gradients, 1e-2).unwrap();
    }

    fn written(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
        files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
    }

    /// What is written from a copy is what would have been written, however far training has gone on.
    #[test]
    fn a_copy_is_what_it_was_copied_from() {
        for (dtype, lora) in [(Dtype::F32, false), (Dtype::Bf16, false), (Dtype::Bf16, true)] {
            let (policy, mut optimizer) = policy(dtype, lora);
            step(&policy, &mut optimizer);
            let folder = tempfile::tempdir().unwrap();
            let [direct, copied, later] = ["direct", "copied", "later"].map(|name| {
                let path = folder.path().join(name);
                fs::create_dir(&path).unwrap();
                path
            });
            let write = |folder: &Path, optimizer: &AdamW| {
                policy.save(folder).unwrap();
                optimizer.save(&folder.join(OPTIMIZER_FILE)).unwrap();
            };
            write(&direct, &optimizer);
            let snapshot = Snapshot::of(&policy, &optimizer).unwrap();
            step(&policy, &mut optimizer);
            write(&later, &optimizer);
            snapshot.write(&copied).unwrap();
            let (direct, later) = (written(&direct), written(&later));
            assert!(direct == written(&copied), "{dtype:?} {lora}");
            assert!(direct[OPTIMIZER_FILE] != later[OPTIMIZER_FILE], "nothing was trained");
        }
    }

    #[test]
    fn a_checkpoint_appears_under_its_step_and_names_or_says_why_not() {
        let run = tempfile::tempdir().unwrap();
        let (policy, optimizer) = policy(Dtype::F32, false);
        let checkpoints = Checkpoints::open(run.path(), 1).unwrap();
        let begin = |step, name: &str| {
            let (state, snapshot) = (State { step, ..State::default() }, Snapshot::of(&policy, &optimizer).unwrap());
            Writing::begin(checkpoints.clone(), state, snapshot, vec![name.to_owned()]).unwrap()
        };
        let written = begin(1, "cycle-1-low").end().unwrap();
        written.named.unwrap();
        assert_eq!(written.folder, checkpoints.step_path(1));
        assert_eq!((checkpoints.step_of("step-000001"), checkpoints.step_of("cycle-1-low")), (Some(1), Some(1)));
        // A name that is none costs the name.
        let written = begin(2, "a/b").end().unwrap();
        assert!(written.named.is_err() && checkpoints.step_of("step-000002") == Some(2));
        // A folder that is gone costs the checkpoint.
        fs::remove_dir_all(run.path().join(crate::checkpoint::FOLDER)).unwrap();
        let writing = begin(3, "best");
        assert_eq!(writing.step, 3);
        let message = format!("{:#}", writing.end().err().unwrap());
        assert!(message.contains("can't be made"), "{message}");
    }
}
