//! A run's state, and opening it: fresh, or from the newest checkpoint that is whole.

use anyhow::{Context, Result, bail};
use model::lora::Saved;
use model::{Qwen2, weights};
use reward::{Policy as Extraction, Problem};
use sampler::{Limits, Local};
use schedule::{Budget, LearningRate};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{changes, lock::Lock, measured, preflight, record::Samples, screen::Screen, writing::Writing};
use crate::checkpoint::{self, Checkpoints, Found, OPTIMIZER_FILE};
use crate::commands::{UsageError, note};
use crate::config::Config;
use crate::data::Problems;
use crate::metrics::{EVALS_FILE, MetricsWriter, STEPS_FILE, read_steps};
use crate::optimizer::{AdamW, Gradients};
use crate::policy::{Policy, extraction, open_device};

/// Everything a step works on.
pub struct Run {
    pub config: Config,
    pub folder: PathBuf,
    pub schedule: Budget,
    pub rate: LearningRate,
    pub problems: Problems,
    pub held_out: Vec<Problem>,
    /// What the files of the problems hold, for checkpoints to remember.
    pub contents: BTreeMap<String, String>,
    pub policy: Policy,
    pub reference: Option<Qwen2>,
    pub engine: Local,
    pub optimizer: AdamW,
    /// Kept from one update to the next: its memory is as large as the weights.
    pub gradients: Gradients,
    pub extraction: Extraction,
    pub metrics: MetricsWriter,
    pub samples: Samples,
    pub checkpoints: Checkpoints,
    pub screen: Screen,
    /// Steps done.
    pub step: usize,
    /// Optimiser steps done.
    pub updates: usize,
    /// Rollout tokens spent.
    pub tokens_total: u64,
    /// Updates in a row, up to now, that were skipped because a loss or gradient was no number.
    pub skipped_in_a_row: usize,
    /// The newest checkpoint that is whole.
    pub saved: Option<PathBuf>,
    /// The checkpoint that is being written.
    pub writing: Option<Writing>,
    /// Whether checkpoints are written while the run goes on.
    pub background: bool,
    /// What the last look at the metrics' files found, so that it is said once.
    pub said: Option<String>,
    /// Last, so that the folder is free when all else is closed.
    _lock: Lock,
}

impl Run {
    /// Opens everything a run needs, the cheap and likely failures first. A folder that is resumed is locked before it
    /// is looked at; a new one is made when nothing else can fail.
    pub fn open(config: Config, resume: Option<PathBuf>) -> Result<Self> {
        let folder = run_folder(&config)?;
        let lock = resume.is_some().then(|| Lock::take(&folder)).transpose()?;
        let from = resume.as_deref().map(|path| found(path, &folder, &config)).transpose()?.flatten();
        let ready = preflight::check(config, &folder, resume.is_some())?;
        let config = ready.config;
        let contents = changes::contents(&config.data, &ready.train.problems, &ready.held_out.problems);
        if let Some(found) = &from {
            changes::refuse(&found.state.settings, &config, &contents, found.state.step as usize)?;
        }
        let schedule = config.schedule.budget()?;
        let device = open_device(config.run.device)?;
        let policy = Policy::load(&config.model.path, config.model.dtype, &device)?.to_train(&config)?;
        let problems = preflight::fitting("data.train", ready.train, &policy, &config)?;
        let held_out = preflight::fitting("data.eval", ready.held_out, &policy, &config)?;
        let held_out = held_out.first(config.evaluate.problems).into_iter().map(|(_, problem)| problem).collect();
        let reference = policy.reference(&config)?;
        let mut optimizer = AdamW::new(policy.model.variables(), config.optimizer.adamw())?;
        let gradients = Gradients::kept(policy.model.variables(), config.optimizer.adamw().narrow)?;
        if let Some(from) = &from {
            restore(&policy, &mut optimizer, &from.path)?;
        }
        let (lock, metrics, checkpoints) = claim(&folder, &config, lock, resume.is_some(), from.as_ref())?;
        let total = schedule.total_steps();
        let state = from.as_ref().map(|found| found.state.clone()).unwrap_or_default();
        let step = state.step as usize;
        let skipped = state.extra.get(super::save::SKIPPED).and_then(serde_json::Value::as_u64).unwrap_or(0);
        Ok(Self {
            rate: config.optimizer.rate(total)?,
            engine: engine(&config.sampler),
            extraction: extraction(&policy.text)?,
            checkpoints,
            screen: Screen::new(step, total)?,
            updates: optimizer.step_count() as usize,
            tokens_total: state.tokens_total,
            skipped_in_a_row: skipped as usize,
            saved: from.map(|found| found.path),
            writing: None,
            background: ready.background,
            said: None,
            samples: Samples::new(&folder),
            config,
            folder,
            schedule,
            problems,
            held_out,
            contents,
            policy,
            reference,
            optimizer,
            gradients,
            metrics,
            step,
            _lock: lock,
        })
    }
}

/// The checkpoint to go on from, after what an interruption left is cleared up; says which damaged ones are passed over.
fn found(path: &Path, folder: &Path, config: &Config) -> Result<Option<Found>> {
    let checkpoints = Checkpoints::open(folder, config.checkpoint.keep)?;
    let found = checkpoint::checkpoint_or_newest(path)?;
    match &found {
        None => note(&format!("{}: it has no checkpoint yet; the run begins again", folder.display())),
        Some(found) => {
            for (damaged, why) in &found.damaged {
                let step = found.state.step;
                note(&format!("{why}; going back to {} (step {step})", found.path.display()));
                // A name too: the run comes to it again, and would take it for what it has written.
                checkpoints.set_aside_damaged(damaged)?;
            }
        }
    }
    Ok(found)
}

/// Makes the folder this run's: its lock, its settings, the files of its figures, its checkpoints.
fn claim(
    folder: &Path,
    config: &Config,
    lock: Option<Lock>,
    resumes: bool,
    from: Option<&Found>,
) -> Result<(Lock, MetricsWriter, Checkpoints)> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the run folder", folder.display()))?;
    let lock = lock.map_or_else(|| Lock::take(folder), Ok)?;
    if !resumes {
        // Once more, now that nobody else can write here.
        preflight::refuse_existing(folder)?;
    }
    write_config(folder, config)?;
    match from {
        Some(found) => measured::refuse_lost(folder, config, found.state.step as usize)?,
        None if resumes => keep_rows(folder, config)?,
        None => {}
    }
    let metrics = match (resumes, from) {
        (false, _) => MetricsWriter::create(folder)?,
        (true, from) => MetricsWriter::resume(folder, from.map(|found| found.state.step as usize))?,
    };
    let checkpoints = Checkpoints::open(folder, config.checkpoint.keep)?;
    if let Some(found) = from {
        let later = checkpoints.set_aside_later(found.state.step)?;
        if let Some(newest) = later.last() {
            let count = later.len();
            note(&format!("{count} later checkpoints are set aside, the newest as {}", newest.display()));
        }
    }
    Ok((lock, metrics, checkpoints))
}

/// Sets the rows of a run aside that begins again although it has come as far as a checkpoint: that was deleted, or there
/// was no room for it.
fn keep_rows(folder: &Path, config: &Config) -> Result<()> {
    let rows = folder.join(STEPS_FILE);
    if !rows.exists() {
        return Ok(());
    }
    let every = Some(config.checkpoint.every).filter(|every| *every > 0);
    let low = config.schedule.budget()?.marks().first().map(|mark| mark.low);
    let done = read_steps(folder)?.last().map_or(0, |row| row.step);
    if every.into_iter().chain(low).all(|due| done < due) {
        return Ok(());
    }
    for file in [STEPS_FILE, EVALS_FILE] {
        let (from, to) = (folder.join(file), folder.join(format!("earlier-{file}")));
        if from.exists() {
            std::fs::rename(&from, &to).with_context(|| format!("{}: cannot be kept", from.display()))?;
        }
    }
    let folder = folder.display();
    note(&format!(
        "{folder}: its rows reach step {done}, where there was a checkpoint; they are kept in earlier-{STEPS_FILE}"
    ));
    Ok(())
}

fn restore(policy: &Policy, optimizer: &mut AdamW, from: &Path) -> Result<()> {
    if policy.model.lora().is_some() {
        Saved::open(from)?.restore(&policy.model).with_context(|| from.display().to_string())?;
        return optimizer.load(&from.join(OPTIMIZER_FILE));
    }
    let files = model::Files::open(&model::Source::Folder(from.into()))?;
    let dtype = policy.model.variables().first().context("the policy has nothing to train")?.1.dtype();
    let saved = weights::load(&files, dtype, policy.model.device())?;
    if saved.variables().len() != policy.model.variables().len() {
        bail!("{}: the checkpoint is of another model than {}", from.display(), policy.source);
    }
    for ((name, var), (_, saved)) in policy.model.variables().iter().zip(saved.variables()) {
        var.set(&saved.as_detached_tensor()).with_context(|| format!("{}: tensor {name}", from.display()))?;
    }
    optimizer.load(&from.join(OPTIMIZER_FILE))
}

fn run_folder(config: &Config) -> Result<PathBuf> {
    config.run.out.clone().map_or_else(|| folder_by_time(config.schedule.kind.name()), Ok)
}

/// `runs/KIND-SECONDS-PROCESS`: a new folder for a run that was given none, also when another begins in the same second.
pub fn folder_by_time(kind: &str) -> Result<PathBuf> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_err(|_| UsageError::new("the clock is before 1970; set it, or give the folder with --out"))?;
    Ok(PathBuf::from("runs").join(format!("{kind}-{}-{}", now.as_secs(), std::process::id())))
}

fn write_config(folder: &Path, config: &Config) -> Result<()> {
    let (path, text) = (folder.join("config.toml"), config.to_toml());
    // A full disk has no room for a second copy, and needs none if nothing changes.
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    checkpoint::write_whole(&path, text.as_bytes())
}

/// The sampler that the settings ask for, without weights yet.
fn engine(settings: &crate::config::Sampler) -> Local {
    let limits = Limits { max_rows: settings.max_rows, cache_bytes: settings.cache_bytes() };
    Local::new(limits, settings.compute).with_graphs(settings.cuda_graphs)
}
