//! What can be told before anything large is loaded: everything that would stop the run, all of it at once.

use std::path::Path;

use anyhow::Result;

use crate::checkpoint;
use crate::commands::{UsageError, note};
use crate::config::Config;
use crate::data::{self, DataError, Loaded, Problems, Source, Use};
use crate::doctor;
use crate::metrics;
use crate::policy::Policy;

/// What a run begins with.
pub struct Ready {
    /// The settings, with what they leave to the memory that is there.
    pub config: Config,
    /// What `data.train` holds.
    pub train: Loaded,
    /// What `data.eval` holds.
    pub held_out: Loaded,
}

/// Looks at the policy, the device, the memory, the data, the run's folder and its disk.
///
/// # Errors
/// [`UsageError`] with a line for everything that would fail.
pub fn check(config: Config, folder: &Path, resumes: bool) -> Result<Ready> {
    let mut failures = Vec::new();
    let device = doctor::machine::resolve(config.run.device);
    if let Err(reason) = doctor::machine::usable(device) {
        failures.push(format!("run.device = \"{device}\": {reason}"));
    }
    let found = doctor::policy::find(&config.model.path);
    failures.extend(found.failure);
    failures.extend(doctor::unsupported(&config));
    let mut config = config;
    if let Some(shape) = &found.shape {
        failures.extend(doctor::too_long(shape, &config));
        let there = doctor::machine::device_memory(device);
        config = doctor::memory::planned(shape, &config, there);
        let need = doctor::memory::estimate(shape, &config);
        failures.extend(there.and_then(|there| doctor::shortage(&need, there, &config)));
    }
    let need = found.shape.map(|shape| doctor::disk::Need::of(&shape, &config)).unwrap_or_default();
    let disk = doctor::disk::look(folder, &need);
    failures.extend(disk.failure);
    disk.warning.iter().for_each(|warning| note(warning));
    if !resumes && let Err(there) = refuse_existing(folder) {
        failures.push(there.to_string());
    }
    let mut load = |key: &str, name: &str, purpose: Use| {
        let loaded = name.parse::<Source>().and_then(|source| data::load(&source, purpose, &settings(&config)));
        let advice = |error: &DataError| match error {
            DataError::Row { .. } | DataError::Rows { .. } => "; mend them, or set data.bad_rows = \"skip\"",
            _ => "",
        };
        loaded.map_err(|error| failures.push(format!("{key}: {error}{}", advice(&error)))).ok()
    };
    let train = load("data.train", &config.data.train, Use::Train);
    let held_out = load("data.eval", &config.data.eval, Use::Evaluate);
    match (train, held_out) {
        (Some(train), Some(held_out)) if failures.is_empty() => Ok(Ready { config, train, held_out }),
        _ => Err(UsageError::several(failures).into()),
    }
}

/// Refuses a folder that holds a run.
///
/// # Errors
/// [`UsageError`] that names what is there.
pub fn refuse_existing(folder: &Path) -> Result<()> {
    metrics::refuse_existing(folder)?;
    let checkpoints = folder.join(checkpoint::FOLDER);
    if checkpoints.exists() {
        let advice = "choose another --out or go on with --resume";
        return Err(UsageError::new(format!("{}: already there; {advice}", checkpoints.display())).into());
    }
    Ok(())
}

/// What the settings say about reading data.
pub fn settings(config: &Config) -> data::Reading {
    data::Reading { seed: config.run.seed, verifier: config.reward.verifier_kind(), bad_rows: config.data.bad_rows }
}

/// The problems of a source whose prompts are not too long for `data.max_prompt_tokens`; says what is left out.
///
/// # Errors
/// [`UsageError`] when none is left; or when a prompt cannot be rendered.
pub fn fitting(key: &str, loaded: Loaded, policy: &Policy, config: &Config) -> Result<Problems> {
    let Loaded { mut problems, left_out, places } = loaded;
    if let Some(first) = left_out.first() {
        note(&format!("{key}: {} rows left out; the first: {first}", left_out.len()));
    }
    let limit = config.data.max_prompt_tokens;
    let (mut failure, mut row, mut first) = (None, 0, None);
    let left_out = problems.retain(|problem| {
        row += 1;
        let tokens = match policy.text.prompt(&problem.prompt) {
            Ok(prompt) => prompt.len(),
            Err(error) => {
                failure.get_or_insert(error);
                return false;
            }
        };
        if tokens > limit {
            first.get_or_insert((row - 1, tokens));
        }
        tokens <= limit
    });
    if let Some(error) = failure {
        return Err(error.into());
    }
    let Some((row, tokens)) = first else { return Ok(problems) };
    if problems.is_empty() {
        let message = format!("data.max_prompt_tokens = {limit}: every prompt of {key} is longer; raise it");
        return Err(UsageError::new(message).into());
    }
    let place = places.get(row).unwrap_or_default();
    note(&format!(
        "{key}: {left_out} problems left out: their prompts are longer than data.max_prompt_tokens = {limit}; the first: \
         {place}: {tokens} tokens"
    ));
    Ok(problems)
}
