//! `trainer export`: a checkpoint as a folder that transformers and vLLM load, and that says nothing but what they read.

use std::path::Path;

use anyhow::{Context, Result};
use model::{Config, weights};

use super::ready;
use crate::checkpoint;
use crate::cli::ExportArgs;
use crate::commands::{UsageError, note};
use crate::config::{Dtype, EMBEDDED};
use crate::doctor::memory::thousands;
use crate::policy::{Policy, compute_type};

/// Writes the folder.
pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let name = args.checkpoint.to_str().ok_or_else(|| {
        UsageError::new(format!("{}: the path of a checkpoint must be UTF-8", args.checkpoint.display()))
    })?;
    // A name that could be a Hub id is a folder here: nothing is downloaded for a checkpoint that is not there.
    if name != EMBEDDED && !args.checkpoint.is_dir() {
        let problem = "there is no such checkpoint folder; give one such as runs/NAME/checkpoints/cycle-3-high";
        return Err(UsageError::new(format!("{name}: {problem}")).into());
    }
    ready::check_folder(name)?;
    check_out(&args.out)?;
    if args.checkpoint.join(checkpoint::STATE_FILE).is_file() {
        checkpoint::read(&args.checkpoint)?;
    }
    let mut policy = Policy::to_merge(name, args.dtype)?;
    let config = &mut policy.files.config;
    *config = Config::for_others(config, &args.checkpoint)?;
    let dtype = Some(compute_type(args.dtype));
    weights::save_folder_in_files(&policy.model, &policy.files, &args.out, dtype, args.file_bytes)?;
    let dtype = match args.dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
    };
    let parameters = thousands(policy.model.config().parameters() as u64);
    note(&format!("{}: {parameters} parameters in {dtype}", args.out.display()));
    Ok(())
}

/// Refuses to mix a model with other files, or to write over one.
pub(super) fn check_out(out: &Path) -> Result<()> {
    let refuse = |why: &str| Err(UsageError::new(format!("{}: {why}", out.display())).into());
    if !out.exists() {
        // The nearest thing on the way to it that is there.
        return match out.ancestors().skip(1).find(|above| above.exists()) {
            Some(above) if !above.is_dir() => {
                Err(UsageError::new(format!("{}: {} is not a folder", out.display(), above.display())).into())
            }
            _ => Ok(()),
        };
    }
    if !out.is_dir() {
        return refuse("not a folder; give a new or an empty one");
    }
    let mut entries = std::fs::read_dir(out).with_context(|| out.display().to_string())?;
    if entries.next().is_some() {
        return refuse("the folder is not empty; give a new or an empty one");
    }
    Ok(())
}
