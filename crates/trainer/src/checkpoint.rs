//! Checkpoints: folders that appear whole or not at all, are checked when read, and are thinned out as a run goes on.
//!
//! ```text
//! RUN/checkpoints/step-000040/  the model's files, optimizer.safetensors, state.json
//!                 cycle-1-low/  the same files under a name, hard links where the file system has them
//! ```
//! A checkpoint is written to a hidden folder, flushed to the disk and then renamed. `state.json` lists every file with
//! its size and hash; a name keeps its files when the step's own folder goes.

#![deny(clippy::indexing_slicing)]

mod disk;
mod find;
mod manifest;
pub mod tensors;

use anyhow::{Context, Result, ensure};
use disk::{entries, files, flush, flush_folder, link_or_copy, remove_all, rename};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub use disk::write_whole;
pub use find::{Found, checkpoint_or_newest, latest, names, newest_whole};

/// The folder of a run that holds its checkpoints.
pub const FOLDER: &str = "checkpoints";
/// The optimiser's file in a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file that says what a checkpoint is and holds; written last.
pub const STATE_FILE: &str = "state.json";

/// Folders that are being written or deleted: of no use after an interruption.
const UNFINISHED: &str = ".tmp-";
/// A folder that is being replaced: the only copy if the program stops before the new one has its place.
const REPLACED: &str = ".old-";
/// What is put before the name of a folder that is set aside: damaged, or of a future that was given up.
const ASIDE: [&str; 2] = ["damaged-", "later-"];

/// Where a run stands: what, besides weights and moments, it needs to go on.
///
/// The place in the data and every random choice follow from the seed and the step, so neither has a state to keep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done; the next one has this number if they count from 0.
    pub step: u64,
    /// The cycle of the last step done, from 1; 0 before the first.
    pub cycle: u64,
    /// Tokens generated and trained on so far, as the loop counts them.
    pub tokens_total: u64,
    /// The run's seed.
    pub seed: u64,
    /// The settings that the numbers depend on: `section.key` and the value as TOML.
    pub settings: BTreeMap<String, String>,
    /// Anything else that the loop has to know, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Reads where a run stood at a checkpoint and checks that its files are there and are what was written.
///
/// # Errors
/// If the folder is not a checkpoint, is one of another version, or a file is missing, torn or damaged; each names the
/// file.
pub fn read(checkpoint: &Path) -> Result<State> {
    manifest::read_whole(checkpoint)
}

/// The checkpoints of a run that is being trained.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Opens a run's checkpoints to write to, keeping the `keep` newest steps, and clears up after an interruption.
    /// Only one program may do so at a time.
    ///
    /// # Errors
    /// If `keep` is 0 or the folder can't be made or cleared.
    pub fn open(run: &Path, keep: usize) -> Result<Self> {
        ensure!(keep > 0, "checkpoint.keep is 0; keep at least 1");
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{}: can't be made", folder.display()))?;
        for name in entries(&folder)? {
            let path = folder.join(&name);
            match name.strip_prefix(REPLACED) {
                Some(original) if !folder.join(original).exists() => {
                    rename(&path, &folder.join(original))?;
                }
                Some(_) => remove_all(&path)?,
                None if name.starts_with(UNFINISHED) => remove_all(&path)?,
                None => {}
            }
        }
        Ok(Self { folder, keep })
    }

    /// Writes the checkpoint of `state.step`, replacing one of that step, then deletes the steps that are too many.
    ///
    /// `write_files` writes the model's files and the optimiser's into the folder it is given, the variables in their own
    /// type, so that a resumed run has the same weights to the bit. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// If a file can't be written, or what `write_files` returns. The other checkpoints are not touched then, and what
    /// was written is deleted again, so that a full disk is not left fuller.
    pub fn save(&self, state: &State, write_files: &dyn Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        let checkpoint = self.replace(&step_name(state.step), |unfinished| {
            write_files(unfinished)?;
            manifest::write(unfinished, state)
        })?;
        self.prune()?;
        Ok(checkpoint)
    }

    /// Gives a checkpoint of this run a second, lasting name, such as `cycle-1-low`; a name in use moves to it.
    ///
    /// # Errors
    /// If the name is not made of letters, digits, `-`, `_` and `.`, is that of a step, or files can't be written.
    pub fn name(&self, checkpoint: &Path, name: &str) -> Result<PathBuf> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !name.is_empty() && name.chars().all(allowed) && !name.starts_with('.'),
            "`{name}` can't name a checkpoint: use letters, digits, `-`, `_` and `.`"
        );
        ensure!(
            !name.starts_with("step-") && !ASIDE.iter().any(|aside| name.starts_with(aside)),
            "`{name}` can't name a checkpoint: step-N are the steps themselves, damaged-N and later-N what was set aside"
        );
        self.replace(name, |unfinished| {
            for file in files(checkpoint)? {
                let (from, to) = (checkpoint.join(&file), unfinished.join(&file));
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
                }
                link_or_copy(&from, &to)?;
            }
            Ok(())
        })
    }

    /// Where the checkpoint of a step is, or would be.
    #[must_use]
    pub fn step_path(&self, step: u64) -> PathBuf {
        self.path(&step_name(step))
    }

    /// Where the checkpoint of a name is, or would be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The step that a name of this run stands for, as far as its `state.json` can be read.
    #[must_use]
    pub fn step_of(&self, name: &str) -> Option<u64> {
        manifest::read_state(&self.path(name)).ok().map(|state| state.step)
    }

    /// Moves a damaged checkpoint out of the way, so that it is neither resumed from again nor counted among those that
    /// are kept. Returns where it is now.
    ///
    /// # Errors
    /// If it can't be renamed.
    pub fn set_aside_damaged(&self, checkpoint: &Path) -> Result<PathBuf> {
        self.set_aside(checkpoint, ASIDE[0])
    }

    /// Moves the checkpoints of steps after `step`, under whatever name, out of the way of a run that goes back to it: its
    /// rows end there, so it could not go on from them. Returns where they are, the newest last.
    ///
    /// # Errors
    /// If one can't be renamed.
    pub fn set_aside_later(&self, step: u64) -> Result<Vec<PathBuf>> {
        let mut later = find::named(&self.folder)?;
        later.extend(find::steps(&self.folder)?);
        later.retain(|(of, _)| *of > step);
        later.sort();
        later.iter().map(|(_, name)| self.set_aside(&self.folder.join(name), ASIDE[1])).collect()
    }

    fn set_aside(&self, checkpoint: &Path, prefix: &str) -> Result<PathBuf> {
        let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
        let place = self.folder.join(format!("{prefix}{name}"));
        if place.exists() {
            remove_all(&place)?;
        }
        rename(checkpoint, &place)?;
        Ok(place)
    }

    /// Writes a folder in a hidden place and puts it in its own when it is whole; what `write` left is deleted when it
    /// fails.
    fn replace(&self, name: &str, write: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
        if unfinished.exists() {
            remove_all(&unfinished)?;
        }
        fs::create_dir(&unfinished).with_context(|| format!("{}: can't be made", unfinished.display()))?;
        let written = write(&unfinished).and_then(|()| self.finish(&unfinished, name));
        if written.is_err() {
            // Nobody needs it; if it can't be deleted now, the next run does it.
            let _ = fs::remove_dir_all(&unfinished);
        }
        written
    }

    /// Flushes a written folder to the disk, then puts it in its place.
    fn finish(&self, unfinished: &Path, name: &str) -> Result<PathBuf> {
        flush(unfinished)?;
        let (place, old) = (self.folder.join(name), self.folder.join(format!("{REPLACED}{name}")));
        let replaces = place.exists();
        if replaces {
            rename(&place, &old)?;
        }
        if let Err(error) = rename(unfinished, &place) {
            if replaces {
                rename(&old, &place)?;
            }
            return Err(error);
        }
        flush_folder(&self.folder)?;
        if replaces {
            remove_all(&old)?;
        }
        Ok(place)
    }

    fn prune(&self) -> Result<()> {
        let steps = find::steps(&self.folder)?;
        let excess = steps.len().saturating_sub(self.keep);
        for name in steps.values().take(excess) {
            // Renamed first, so that an interruption leaves no half of a checkpoint under its name.
            let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
            rename(&self.folder.join(name), &unfinished)?;
            remove_all(&unfinished)?;
        }
        Ok(())
    }
}

fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

#[cfg(test)]
mod tests;
