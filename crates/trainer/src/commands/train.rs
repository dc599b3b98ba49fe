//! `trainer train`: settings in, a run folder out.

use std::path::{Path, PathBuf};

use crate::checkpoint;
use crate::cli::TrainArgs;
use crate::commands::UsageError;
use crate::config::{Config, Overrides};

/// The `--resume` that goes on with the run of `--out` where there is one, and begins it where there is none.
const AUTO: &str = "auto";

/// Trains, or continues a run with the settings in its folder.
pub(super) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let resume = resumed(args)?;
    let run_folder = resume.as_deref().map(run_folder).transpose()?;
    if let (Some(out), Some(folder)) = (&args.out, &run_folder)
        && !same_folder(out, folder)
    {
        let message = format!("--out {}: the run of --resume goes on in its own folder", out.display());
        return Err(UsageError::new(format!("{message}, {}; leave --out away", folder.display())).into());
    }
    let written = run_folder.as_deref().map(|folder| folder.join("config.toml"));
    let file = args.settings.config.as_deref().or(written.as_deref());
    let mut config = Config::resolve(file, &args.settings.set, &args.overrides())?;
    if args.out.is_none() && run_folder.is_some() {
        // Where it is now, not where it was when it was written.
        config.run.out = run_folder;
    }
    if let (None, Some(written)) = (config.model.micro_batch_tokens, &written)
        && resume.is_some()
    {
        // What was planned when the run began, whatever memory is free now: the order of its sums hangs on it.
        config.model.micro_batch_tokens =
            Config::resolve(Some(written), &[], &Overrides::default())?.model.micro_batch_tokens;
    }
    super::use_threads(config.run.threads)?;
    crate::run::train(config, resume)
}

/// What there is to resume, if anything.
fn resumed(args: &TrainArgs) -> anyhow::Result<Option<PathBuf>> {
    if args.resume.as_deref() != Some(Path::new(AUTO)) {
        return Ok(args.resume.clone());
    }
    let out = args.out.as_ref().ok_or_else(|| {
        UsageError::new("--resume auto: needs --out DIR, the run to go on with or to begin; or give --resume DIR")
    })?;
    Ok(out.join("config.toml").is_file().then(|| out.clone()))
}

fn same_folder(a: &Path, b: &Path) -> bool {
    let place =
        |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.into());
    place(a) == place(b)
}

/// The run folder that `resume` is or is a checkpoint of: the one with the settings.
fn run_folder(resume: &Path) -> anyhow::Result<PathBuf> {
    // `RUN`, `RUN/checkpoints` and `RUN/checkpoints/step-000040`, made absolute so that `.` has parents.
    let absolute = std::path::absolute(resume)?;
    let found = absolute.ancestors().take(3).find(|folder| folder.join("config.toml").is_file());
    match found {
        // Shown as it was typed when it is the run folder itself.
        Some(folder) if folder == absolute => Ok(resume.to_path_buf()),
        Some(folder)
            if folder.join(checkpoint::FOLDER) == absolute || absolute.join(checkpoint::STATE_FILE).is_file() =>
        {
            Ok(folder.to_path_buf())
        }
        Some(folder) => {
            let names = checkpoint::names(folder)?;
            let there = if names.is_empty() { "no checkpoint at all".into() } else { names.join(", ") };
            let what = format!("--resume {}: no checkpoint there; {} has {there}", resume.display(), folder.display());
            Err(UsageError::new(what).into())
        }
        None => Err(UsageError::new(format!(
            "--resume {}: no run folder with a config.toml there; give runs/NAME or runs/NAME/checkpoints/NAME",
            resume.display()
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_knows_its_run_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/one");
        let checkpoint = run.join("checkpoints/step-000040");
        std::fs::create_dir_all(&checkpoint).unwrap();
        std::fs::write(run.join("config.toml"), "").unwrap();
        std::fs::write(checkpoint.join("state.json"), "").unwrap();
        assert_eq!(run_folder(&run).unwrap(), run);
        assert_eq!(run_folder(&run.join("checkpoints")).unwrap(), run);
        assert_eq!(run_folder(&checkpoint).unwrap(), run);
        // Gone since, or never there: not a reason to begin the run again.
        for missing in ["checkpoints/step-000001", "rollouts"] {
            let message = run_folder(&run.join(missing)).unwrap_err().to_string();
            assert!(message.contains("no checkpoint there") && message.ends_with(" has step-000040"), "{message}");
        }
        let message = run_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("no run folder with a config.toml"), "{message}");
    }
}
