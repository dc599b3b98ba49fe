//! Which checkpoint a run goes on from: the newest that is whole, and why those after it are not used.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::disk::entries;
use super::{ASIDE, FOLDER, STATE_FILE, State, manifest, read, step_name};

/// A checkpoint to go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: State,
    /// Newer checkpoints that are not whole, newest first, each with what is wrong in one line.
    pub damaged: Vec<(PathBuf, String)>,
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

/// The newest checkpoint of a run that is whole, steps and names alike; `None` if the run has none at all.
///
/// # Errors
/// If there are checkpoints and none of them is whole, saying what is wrong with each; or if the folder can't be listed.
pub fn newest_whole(run: &Path) -> Result<Option<Found>> {
    let folder = run.join(FOLDER);
    let mut candidates: Vec<(u64, PathBuf)> =
        steps(&folder)?.into_iter().map(|(step, name)| (step, folder.join(name))).collect();
    candidates.reverse();
    candidates.extend(named(&folder)?.into_iter().map(|(step, name)| (step, folder.join(name))));
    // Stable: of the same step, its own folder comes before its names.
    candidates.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    let mut damaged = Vec::new();
    for (_, path) in candidates {
        match read(&path) {
            Ok(state) => return Ok(Some(Found { path, state, damaged })),
            Err(error) => damaged.push((path, format!("{error:#}"))),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    let reasons: Vec<String> = damaged.into_iter().map(|(_, why)| why).collect();
    anyhow::bail!("{}: none of its checkpoints is whole: {}", folder.display(), reasons.join("; "))
}

/// What `--resume` means: a checkpoint itself, which has to be whole, or the newest whole one of a run folder (or of its
/// `checkpoints`); `None` if the run has none yet.
///
/// # Errors
/// As [`read`] and [`newest_whole`].
pub fn checkpoint_or_newest(path: &Path) -> Result<Option<Found>> {
    if path.join(STATE_FILE).is_file() {
        return Ok(Some(Found { path: path.to_owned(), state: read(path)?, damaged: Vec::new() }));
    }
    newest_whole(if path.ends_with(FOLDER) { path.parent().unwrap_or(path) } else { path })
}

/// The names of a run's checkpoints, in the order of their steps, without a look at what they hold.
///
/// # Errors
/// If the run's folder can't be listed.
pub fn names(run: &Path) -> Result<Vec<String>> {
    let folder = run.join(FOLDER);
    let mut all = named(&folder)?;
    all.extend(steps(&folder)?);
    all.sort();
    Ok(all.into_iter().map(|(_, name)| name).collect())
}

/// The checkpoints that have a name of their own, such as `cycle-1-low`, with their steps, as far as a `state.json` can be
/// read; those that are set aside are not among them.
pub(super) fn named(folder: &Path) -> Result<Vec<(u64, String)>> {
    let names = entries(folder)?.into_iter().filter(|name| {
        !name.starts_with('.') && !name.starts_with("step-") && !ASIDE.iter().any(|aside| name.starts_with(aside))
    });
    Ok(names.filter_map(|name| Some((manifest::read_state(&folder.join(&name)).ok()?.step, name))).collect())
}

/// The steps that have a checkpoint, in order, with the names of their folders.
pub(super) fn steps(folder: &Path) -> Result<BTreeMap<u64, String>> {
    let named = entries(folder)?.into_iter().filter_map(|name| {
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (step_name(step) == name).then_some((step, name))
    });
    Ok(named.collect())
}
