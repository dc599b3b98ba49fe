//! Checkpoints: folders that appear whole or not at all, are checked when read, and are thinned out as a run goes on.
//!
//! ```text
//! RUN/checkpoints/step-000040/  the model's files, optimizer.safetensors, state.json
//!                 cycle-1-low/  the same files under a name, hard links where the file system has them
//! ```
//! A checkpoint is written to a hidden folder, flushed to the disk and then renamed. `state.json` lists every file with
//! its size; a name keeps its files when the step's own folder goes.

pub mod tensors;

use crate::optimizer::AdamW;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};
use tensors::TensorFile;

/// The folder of a run that holds its checkpoints.
pub const FOLDER: &str = "checkpoints";
/// The optimiser's file in a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The file that says what a checkpoint is and holds; written last.
pub const STATE_FILE: &str = "state.json";

/// Raised whenever a checkpoint of an older program can no longer be read.
const VERSION: u32 = 1;
const FORMAT: &str = "bellows-checkpoint";
/// Folders that are being written or deleted: of no use after an interruption.
const UNFINISHED: &str = ".tmp-";
/// A folder that is being replaced: the only copy if the program stops before the new one has its place.
const REPLACED: &str = ".old-";

/// Where a run stands: what, besides weights and moments, it needs to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done; the next one has this number if they count from 0.
    pub step: u64,
    /// Tokens generated and trained on so far, as the loop counts them.
    pub tokens_total: u64,
    /// The run's seed. Every random choice follows from it and the step, so no generator's state is kept.
    pub seed: u64,
    /// [`config_hash`] of the settings that the numbers depend on.
    pub config_hash: String,
    /// Anything else that the loop has to know, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// The content of `state.json`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    #[serde(flatten)]
    state: State,
    /// Size in bytes of each other file, by its path in the folder, with `/`.
    files: BTreeMap<String, u64>,
}

/// A short fingerprint of resolved settings: FNV-1a, 64 bits, as hexadecimal digits.
#[must_use]
pub fn config_hash(settings: &str) -> String {
    let hash = settings
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// The newest `step-N` checkpoint of a run, if there is one. It is not opened; [`read`] checks it.
///
/// # Errors
/// If the run's folder can't be listed.
pub fn latest(run: &Path) -> Result<Option<PathBuf>> {
    let folder = run.join(FOLDER);
    let newest = steps(&folder)?.into_iter().next_back();
    Ok(newest.map(|(_, name)| folder.join(name)))
}

/// Reads where a run stood at a checkpoint and checks that its files are there and whole.
///
/// # Errors
/// If the folder is not a checkpoint, is one of another version, or a file is missing or torn; each names the file.
pub fn read(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join(STATE_FILE);
    let shown = path.display();
    let text =
        fs::read_to_string(&path).with_context(|| format!("{shown}: can't be read, so its folder is no checkpoint"))?;
    let header: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{shown}: torn or not JSON"))?;
    ensure!(header["format"] == FORMAT, "{shown}: not the state of a checkpoint (its `format` is not \"{FORMAT}\")");
    ensure!(
        header["version"] == VERSION,
        "{shown}: checkpoint version {}, this program reads {VERSION}",
        header["version"]
    );
    let manifest: Manifest = serde_json::from_value(header).with_context(|| shown.to_string())?;
    ensure!(manifest.files.contains_key(OPTIMIZER_FILE), "{shown}: lists no {OPTIMIZER_FILE}");
    for (name, &size) in &manifest.files {
        let path = checkpoint.join(name);
        let found =
            fs::metadata(&path).with_context(|| format!("{}: missing from the checkpoint", path.display()))?.len();
        ensure!(found == size, "{}: torn: {found} bytes, {STATE_FILE} says {size}", path.display());
        if path.extension().is_some_and(|kind| kind == "safetensors") {
            TensorFile::open(&path)?;
        }
    }
    Ok(manifest.state)
}

/// The checkpoints of a run that is being trained.
#[derive(Debug)]
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
    /// `write_model` writes the model's files into the folder it is given, in the variables' own type, so that a
    /// resumed run has the same weights to the bit. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// If a file can't be written, or what `write_model` returns. The other checkpoints are not touched then.
    pub fn save(&self, state: &State, write_model: &dyn Fn(&Path) -> Result<()>, optimizer: &AdamW) -> Result<PathBuf> {
        let name = step_name(state.step);
        let unfinished = self.unfinished(&name)?;
        write_model(&unfinished)?;
        optimizer.save(&unfinished.join(OPTIMIZER_FILE))?;
        write_state(&unfinished, state)?;
        let checkpoint = self.finish(&unfinished, &name)?;
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
        ensure!(!name.starts_with("step-"), "`{name}` can't name a checkpoint: step-N are the steps themselves");
        let unfinished = self.unfinished(name)?;
        for file in files(checkpoint)? {
            let (from, to) = (checkpoint.join(&file), unfinished.join(&file));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
            }
            link_or_copy(&from, &to)?;
        }
        self.finish(&unfinished, name)
    }

    /// An empty hidden folder to write in.
    fn unfinished(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{UNFINISHED}{name}"));
        if path.exists() {
            remove_all(&path)?;
        }
        fs::create_dir(&path).with_context(|| format!("{}: can't be made", path.display()))?;
        Ok(path)
    }

    /// Flushes a written folder to the disk, then puts it in its place.
    fn finish(&self, unfinished: &Path, name: &str) -> Result<PathBuf> {
        flush(unfinished)?;
        let (place, old) = (self.folder.join(name), self.folder.join(format!("{REPLACED}{name}")));
        let replaces = place.exists();
        if replaces {
            rename(&place, &old)?;
        }
        rename(unfinished, &place)?;
        flush_folder(&self.folder)?;
        if replaces {
            remove_all(&old)?;
        }
        Ok(place)
    }

    fn prune(&self) -> Result<()> {
        let steps = steps(&self.folder)?;
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

/// The steps that have a checkpoint, in order, with the names of their folders.
fn steps(folder: &Path) -> Result<BTreeMap<u64, String>> {
    let named = entries(folder)?.into_iter().filter_map(|name| {
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (step_name(step) == name).then_some((step, name))
    });
    Ok(named.collect())
}

/// Names in a folder, sorted; none if it doesn't exist.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.with_context(|| format!("{}: can't be listed", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.with_context(|| folder.display().to_string())?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Paths of all files under a folder, relative to it and with `/`, sorted.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in entries(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            let inner = files(&path)?;
            found.extend(inner.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

fn write_state(folder: &Path, state: &State) -> Result<()> {
    let mut sizes = BTreeMap::new();
    for file in files(folder)? {
        let path = folder.join(&file);
        let size = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        sizes.insert(file, size);
    }
    let path = folder.join(STATE_FILE);
    if sizes.contains_key(STATE_FILE) {
        bail!("{}: the model's files may not include it", path.display());
    }
    let manifest = Manifest { format: FORMAT.to_owned(), version: VERSION, state: state.clone(), files: sizes };
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(&path, text).with_context(|| format!("{}: can't be written", path.display()))
}

/// A second name for a file's content; a copy where the file system or its limit on links doesn't allow one.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(|_| ()).with_context(|| format!("{}: can't be copied to {}", from.display(), to.display()))
}

fn flush(folder: &Path) -> Result<()> {
    for name in entries(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            flush(&path)?;
        } else {
            let flushed = File::options().append(true).open(&path).and_then(|file| file.sync_all());
            flushed.with_context(|| format!("{}: can't be flushed", path.display()))?;
        }
    }
    flush_folder(folder)
}

/// Makes the names in a folder last. Only Unix lets a program open a folder to do so; elsewhere the system does it.
fn flush_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("{}: can't be flushed", folder.display()))?;
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("{}: can't be renamed to {}", from.display(), to.display()))
}

fn remove_all(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("{}: can't be deleted", path.display()))
}

#[cfg(test)]
mod tests;
