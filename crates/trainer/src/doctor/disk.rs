//! The disk that a run's folder is on: whether it can be written, and whether its checkpoints fit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use model::config::Config as Shape;
use model::lora;

use super::memory::show;
use crate::config::{Config, Dtype};

/// What a run writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Checkpoints that are there at once at the end, one that is being written included.
    pub count: u64,
}

/// The small files of a checkpoint: the tokenizer, mostly. That of the embedded policy, and that of any other.
const SMALL_FILES: [u64; 2] = [64 << 10, 24 << 20];

impl Need {
    /// What a run with this policy and these settings writes: with `P` parameters of `w` bytes, of which `T` are trained,
    /// a checkpoint takes `w P` (adapters: `4 T`), `8 T` of moments, `4 T` of master copies where weights are bf16, and the
    /// small files; there are `checkpoint.keep` steps, two names a cycle, the best, and the one that is being written.
    pub fn of(shape: &Shape, config: &Config) -> Self {
        let parameters = shape.parameters() as u64;
        let adapters = config.model.lora.as_ref().map(|lora| lora::Settings::from(lora).parameters(shape) as u64);
        let width = if config.model.dtype == Dtype::Bf16 { 2 } else { 4 };
        let (weights, trained) = adapters.map_or((width * parameters, parameters), |trained| (4 * trained, trained));
        let master = if adapters.is_none() && config.model.dtype == Dtype::Bf16 { 4 * trained } else { 0 };
        let small = SMALL_FILES[usize::from(!config.is_embedded())];
        let count = (config.checkpoint.keep as u64).saturating_add(2 * config.schedule.cycles as u64).saturating_add(2);
        Self { checkpoint: weights + 8 * trained + master + small, count }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// A line for a person.
    pub fact: String,
    /// Why a run here would fail.
    pub failure: Option<String>,
    /// What may go wrong later.
    pub warning: Option<String>,
}

/// Looks at the disk that the run folder `folder`, which may not be there yet, is on.
pub fn look(folder: &Path, need: &Need) -> Disk {
    let shown = folder.display();
    let there = match nearest(folder) {
        Ok(there) => there,
        Err(why) => return Disk { fact: why.clone(), failure: Some(why), warning: None },
    };
    if let Err(error) = try_to_write(&there) {
        let failure = format!("{shown}: cannot write to {}: {error}; choose another --out", there.display());
        return Disk { fact: failure.clone(), failure: Some(failure), warning: None };
    }
    let free = match fs4::available_space(&there) {
        Ok(free) => free,
        Err(error) => {
            let fact = format!("the free space of {} cannot be told: {error}", there.display());
            return Disk { warning: Some(fact.clone()), fact, failure: None };
        }
    };
    let Need { checkpoint, count } = *need;
    // The one before is kept until the next one is whole.
    let (least, most) = (checkpoint.saturating_mul(2), checkpoint.saturating_mul(count));
    let fact = format!(
        "{} free in {}; a checkpoint takes {}, up to {count} of them {}",
        show(free),
        there.display(),
        show(checkpoint),
        show(most)
    );
    let short = |what: String| format!("{shown}: disk: {} free, {what}", show(free));
    let failure = (free < least).then(|| {
        short(format!("a checkpoint and the one before it take {}; make room, or choose another --out", show(least)))
    });
    let warning = (failure.is_none() && free < most).then(|| {
        short(format!(
            "all {count} checkpoints of this run take {}; a run goes on without those that do not fit",
            show(most)
        ))
    });
    Disk { fact, failure, warning }
}

/// The folder itself, or the nearest one above it that is there.
fn nearest(folder: &Path) -> Result<PathBuf, String> {
    let absolute = std::path::absolute(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let there = absolute.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(&absolute);
    if there.is_dir() {
        return Ok(there.to_owned());
    }
    let what = format!("{} is not a folder; choose another --out", there.display());
    Err(if there == absolute { what } else { format!("{}: {what}", folder.display()) })
}

fn try_to_write(folder: &Path) -> std::io::Result<()> {
    // A name of its own for each call: two threads may look at one folder.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".bellows-{}-{call}", std::process::id()));
    File::create(&path)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_of_the_embedded_policy_takes_what_is_said() {
        let config = Config::countdown();
        let shape = crate::doctor::policy::find("embedded").shape.unwrap();
        let need = Need::of(&shape, &config);
        // Measured: 9.2 MiB.
        assert!((8 << 20..12 << 20).contains(&need.checkpoint), "{need:?}");
        assert_eq!(need.count, 10);
    }

    #[test]
    fn a_disk_that_is_too_small_is_told_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let fine = look(&out, &Need { checkpoint: 1, count: 2 });
        assert!(fine.failure.is_none() && fine.warning.is_none(), "{fine:?}");
        let huge = look(&out, &Need { checkpoint: 1 << 60, count: 4 }).failure.unwrap();
        assert!(huge.contains("a/b: disk: ") && huge.contains("free, a checkpoint and the one before"), "{huge}");
        let later = look(&out, &Need { checkpoint: 1, count: u64::MAX });
        assert!(later.failure.is_none() && later.warning.is_some(), "{later:?}");
        std::fs::write(folder.path().join("a"), "").unwrap();
        let message = look(&out, &Need { checkpoint: 1, count: 2 }).failure.unwrap();
        assert!(message.contains("is not a folder"), "{message}");
    }
}
