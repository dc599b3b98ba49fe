//! `--model`, `--device` and the sampling flags as something that can be run: loaded, checked, with its memory bounded.

use std::path::Path;

use anyhow::{Context, Result};
use model::cache::{Host, blocks_for};
use model::{Source, Text};
use sampler::{Compute, Engine, Limits, Local, Sampling};

use crate::checkpoint;
use crate::cli::SamplingArgs;
use crate::commands::UsageError;
use crate::config::{DeviceChoice, Dtype};
use crate::data::{self, Problems, Reading, Use};
use crate::doctor;
use crate::policy::{self, Policy, open_device};

/// Rows decoded at once, where memory allows: past this many, the embedded policy gets no faster.
const MAX_ROWS: usize = 192;
/// The budget of a model that names none: the largest of SIRI's run.
const MAX_TOKENS: usize = 16384;
/// Decides the order of Countdown's held-out problems: `run.seed`'s default, so that "the first so many" are those of
/// a run, whatever `--seed` the samples have.
const PROBLEM_ORDER: u64 = 1;

/// Loads what `--model` names to compute in `dtype` on a device.
///
/// # Errors
/// [`UsageError`] when the name, the folder, the type or the device is none that can be used here; otherwise when the
/// files are torn or cannot be downloaded.
pub(super) fn load(name: &str, dtype: Dtype, device: DeviceChoice) -> Result<Policy> {
    let device = open_device(device)?;
    check_folder(name)?;
    Policy::load(name, dtype, &device)
}

/// Refuses a folder that holds no model this program runs, before anything large is read.
///
/// # Errors
/// [`UsageError`] says what is missing, and where a run folder's checkpoints are.
pub(super) fn check_folder(name: &str) -> Result<()> {
    let source: Source = name.parse().map_err(|error: model::Error| UsageError::new(error.to_string()))?;
    let Source::Folder(folder) = source else { return Ok(()) };
    if !folder.is_dir() {
        let message = "there is no such model folder; give `embedded`, a folder, or a Hub id org/name[@revision]";
        return Err(UsageError::new(format!("{}: {message}", folder.display())).into());
    }
    if !folder.join("config.json").is_file()
        && let Ok(Some(newest)) = checkpoint::latest(&folder)
    {
        let message = format!("{}: this is a run; give one of its checkpoints, such as", folder.display());
        return Err(UsageError::new(format!("{message} {}", newest.display())).into());
    }
    match doctor::policy::find(name).failure {
        Some(failure) => Err(UsageError::new(failure).into()),
        None => Ok(()),
    }
}

/// Loads the evaluation problems of `--data`, and says on stderr what had to be left out.
///
/// # Errors
/// When the data cannot be read, or have no end and `limit` is absent.
pub(super) fn problems(name: &str, limit: Option<usize>) -> Result<Vec<reward::Problem>> {
    let source: data::Source = name.parse()?;
    let loaded = data::load(&source, Use::Evaluate, &Reading { seed: PROBLEM_ORDER, ..Reading::default() })?;
    if let Some(first) = loaded.left_out.first() {
        super::note(&format!("{name}: {} rows left out; the first: {first}", loaded.left_out.len()));
    }
    let limit = match (limit, &loaded.problems) {
        (None, Problems::Countdown { .. }) => {
            return Err(UsageError::new(format!("--data {name}: has no end; say how many with --problems N")).into());
        }
        (limit, _) => limit.unwrap_or(usize::MAX),
    };
    Ok(loaded.problems.first(limit).into_iter().map(|(_, problem)| problem).collect())
}

/// How tokens are drawn.
///
/// # Errors
/// [`UsageError`] when `--stop` has a text that cannot end a response.
pub(super) fn sampling(args: &SamplingArgs, text: &Text) -> Result<Sampling> {
    Ok(Sampling { top_p: args.top_p, ..policy::sampling(text, args.temperature, &args.stop)? })
}

/// The budget of responses to prompts of at most `longest_prompt` tokens: `--max-tokens`, or what the model's
/// `generation_config.json` says, or [`MAX_TOKENS`]. Only what nobody asked for is cut to the model's positions.
///
/// # Errors
/// [`UsageError`] when prompt and budget together are beyond the model's positions.
pub(super) fn max_tokens(args: &SamplingArgs, policy: &Policy, longest_prompt: usize) -> Result<usize> {
    let limit = policy.model.config().max_positions;
    let room = limit.saturating_sub(longest_prompt);
    let wanted = match args.max_tokens {
        Some(asked) => asked,
        None => generation_limit(policy)?.unwrap_or(MAX_TOKENS).min(room.max(1)),
    };
    if wanted <= room {
        return Ok(wanted);
    }
    let message = format!("--max-tokens {wanted}: with a prompt of {longest_prompt} tokens it is beyond the model's");
    Err(UsageError::new(format!("{message} limit of {limit}; at most {room} tokens are left")).into())
}

fn generation_limit(policy: &Policy) -> Result<Option<usize>> {
    let Some(text) = &policy.files.generation_config else { return Ok(None) };
    let path = policy.files.path("generation_config.json");
    let values: serde_json::Value = serde_json::from_str(text).with_context(|| path.display().to_string())?;
    let limit = values.get("max_new_tokens").and_then(serde_json::Value::as_u64);
    Ok(limit.and_then(|limit| usize::try_from(limit).ok()).filter(|&limit| limit > 0))
}

/// An engine with the policy's weights for sequences of at most `capacity` tokens, whose cache takes at most half of
/// the machine's memory, but one row's in any case; on a GPU with memory of its own, at most what is free there. What is
/// sampled does not depend on the number of rows.
///
/// # Errors
/// When the engine cannot hold the weights.
pub(super) fn engine(policy: &Policy, capacity: usize, compute: Compute) -> Result<Local> {
    let one_row = (Host::block_bytes(policy.model.config()) * blocks_for(capacity)) as u64;
    let half = (doctor::machine::memory().available / 2).max(one_row);
    let cache_bytes = (!policy.model.device().is_cuda()).then_some(half);
    let mut engine = Local::new(Limits { max_rows: MAX_ROWS, cache_bytes }, compute);
    engine.load_weights(&policy.model)?;
    if let Some(news) = engine.news() {
        super::note(&news);
    }
    Ok(engine)
}

/// Makes the file that `--out` names, before hours are spent on what goes into it.
///
/// # Errors
/// [`UsageError`] when it cannot be written.
pub(super) fn create(path: &Path) -> Result<std::io::BufWriter<std::fs::File>> {
    let file = std::fs::File::create(path);
    let file = file.map_err(|error| UsageError::new(format!("--out {}: cannot write: {error}", path.display())))?;
    Ok(std::io::BufWriter::new(file))
}
