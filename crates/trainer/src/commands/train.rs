//! `trainer train`: settings in, a run folder out.

use std::path::{Path, PathBuf};

use crate::cli::TrainArgs;
use crate::commands::UsageError;
use crate::config::Config;

/// Trains, or continues a run with the settings in its folder.
pub(super) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let run_folder = args.resume.as_deref().map(run_folder).transpose()?;
    let written = run_folder.as_deref().map(|folder| folder.join("config.toml"));
    let file = args.settings.config.as_deref().or(written.as_deref());
    let mut config = Config::resolve(file, &args.settings.set, &args.overrides())?;
    if args.out.is_none() && run_folder.is_some() {
        // Where it is now, not where it was when it was written.
        config.run.out = run_folder;
    }
    super::use_threads(config.run.threads)?;
    crate::run::train(config, args.resume.clone())
}

/// The run folder that `resume` is or is a checkpoint of: the one with the settings.
fn run_folder(resume: &Path) -> anyhow::Result<PathBuf> {
    // `RUN`, `RUN/checkpoints` and `RUN/checkpoints/step-000040`, made absolute so that `.` has parents.
    let absolute = std::path::absolute(resume)?;
    let found = absolute.ancestors().take(3).find(|folder| folder.join("config.toml").is_file());
    match found {
        // Shown as it was typed when it is the run folder itself.
        Some(folder) if folder == absolute => Ok(resume.to_path_buf()),
        Some(folder) => Ok(folder.to_path_buf()),
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
        assert_eq!(run_folder(&run).unwrap(), run);
        assert_eq!(run_folder(&checkpoint).unwrap(), run);
        let message = run_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("no run folder with a config.toml"), "{message}");
    }
}
