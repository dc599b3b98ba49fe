//! A run's state: opening it (fresh or resumed), its evaluations and checkpoints, and its end.

use anyhow::{Context, Result, bail};
use model::lora::Saved;
use model::{Qwen2, weights};
use reward::{Policy as Extraction, Problem};
use sampler::{Engine, Limits, Local, Sampling};
use schedule::{Budget, LearningRate};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{interrupt, record, screen::Screen};
use crate::checkpoint::{self, Checkpoints, OPTIMIZER_FILE, State};
use crate::commands::UsageError;
use crate::config::Config;
use crate::data::{self, Problems, Source, Use};
use crate::evaluate::{self, Label, Settings};
use crate::metrics::{MetricsWriter, read_evals};
use crate::optimizer::AdamW;
use crate::policy::{Policy, extraction, open_device};
use crate::{doctor, report};

/// Everything a step works on.
pub struct Run {
    pub config: Config,
    pub folder: PathBuf,
    pub schedule: Budget,
    pub rate: LearningRate,
    pub problems: Problems,
    held_out: Vec<Problem>,
    pub policy: Policy,
    pub reference: Option<Qwen2>,
    pub engine: Local,
    pub optimizer: AdamW,
    pub extraction: Extraction,
    pub metrics: MetricsWriter,
    checkpoints: Checkpoints,
    pub screen: Screen,
    /// Steps done.
    pub step: usize,
    /// Optimiser steps done.
    pub updates: usize,
    /// Rollout tokens spent.
    pub tokens_total: u64,
}

impl Run {
    /// Opens everything a run needs, the cheap and likely failures first.
    pub fn open(config: Config, resume: Option<PathBuf>) -> Result<Self> {
        let schedule = config.schedule.budget()?;
        let device = open_device(config.run.device)?;
        let config = refuse_early(config)?;
        let from = resume.as_deref().map(checkpoint_of).transpose()?;
        let state = from.as_deref().map(checkpoint::read).transpose()?;
        let train = load_problems(&config, &config.data.train, Use::Train)?;
        let held_out = load_problems(&config, &config.data.eval, Use::Evaluate)?;
        let policy = Policy::load(&config.model.path, config.model.dtype, &device)?.to_train(&config)?;
        let problems = fitting(train, &policy, &config)?;
        let held_out: Vec<Problem> =
            fitting(held_out, &policy, &config)?.first(config.evaluate.problems).into_iter().map(|(_, p)| p).collect();
        let reference = policy.reference(&config)?;
        let mut optimizer = AdamW::new(policy.model.variables(), config.optimizer.adamw())?;
        if let Some(from) = &from {
            restore(&policy, &mut optimizer, from)?;
        }
        let step = state.as_ref().map_or(0, |s| s.step as usize);
        let folder = run_folder(&config)?;
        let metrics = match &state {
            Some(_) => MetricsWriter::resume(&folder, step)?,
            None => MetricsWriter::create(&folder)?,
        };
        write_config(&folder, &config)?;
        let total = schedule.total_steps();
        Ok(Self {
            rate: config.optimizer.rate(total)?,
            engine: engine(&config.sampler),
            extraction: extraction(&policy.text)?,
            checkpoints: Checkpoints::open(&folder, config.checkpoint.keep)?,
            screen: Screen::new(step, total)?,
            updates: optimizer.step_count() as usize,
            tokens_total: state.map_or(0, |s| s.tokens_total),
            config,
            folder,
            schedule,
            problems,
            held_out,
            policy,
            reference,
            optimizer,
            metrics,
            step,
        })
    }

    /// Whether the last step is done: by the schedule, or because the rollout tokens are spent.
    pub fn done(&self) -> bool {
        self.share_done() >= 1.0
    }

    /// How much of the run is done, from 0: of its steps or of its rollout tokens, whichever is more.
    pub fn share_done(&self) -> f64 {
        let steps = self.step as f64 / self.schedule.total_steps() as f64;
        let limit = self.config.schedule.rollout_tokens;
        limit.map_or(steps, |limit| steps.max(self.tokens_total as f64 / limit as f64))
    }

    /// The named points that the steps done so far end at: `start`, a cycle's low or high, or the `end` of a run that
    /// stops elsewhere.
    fn names(&self) -> Vec<String> {
        if self.step == 0 {
            return vec!["start".into()];
        }
        let mut names = Vec::new();
        for mark in self.schedule.marks() {
            if mark.low == self.step {
                names.push(format!("cycle-{}-low", mark.cycle));
            }
            if mark.high == self.step {
                names.push(format!("cycle-{}-high", mark.cycle));
            }
        }
        if names.is_empty() && self.done() {
            names.push("end".into());
        }
        names
    }

    /// What is due after a step: checkpoints and evaluations at each low and high, and others as configured.
    pub fn mark(&mut self) -> Result<()> {
        let names = self.names();
        let due = |every: usize| every > 0 && self.step.is_multiple_of(every);
        let evaluate_unnamed = names.is_empty() && due(self.config.evaluate.every);
        if !names.is_empty() || due(self.config.checkpoint.every) {
            let saved = self.save()?;
            for name in &names {
                self.checkpoints.name(&saved, name)?;
            }
        }
        if evaluate_unnamed {
            self.evaluate(&format!("step-{}", self.step))?;
        }
        names.iter().try_for_each(|name| self.evaluate(name))
    }

    /// Evaluations that the step begun with should have: the start's, and those that an interruption cut short.
    pub fn catch_up(&mut self) -> Result<()> {
        let written: Vec<String> = read_evals(&self.folder)?.into_iter().map(|row| row.name).collect();
        let missing: Vec<String> = self.names().into_iter().filter(|name| !written.contains(name)).collect();
        missing.iter().try_for_each(|name| self.evaluate(name))
    }

    /// Measures the policy on the held-out problems.
    pub fn evaluate(&mut self, name: &str) -> Result<()> {
        self.screen.evaluating(name);
        let config = &self.config.evaluate;
        let mut sampling = Sampling::at(config.temperature, self.policy.text.stop_tokens());
        sampling.top_p = config.top_p;
        let settings = Settings {
            samples: config.samples,
            max_tokens: config.max_tokens.unwrap_or(self.schedule.largest()),
            sampling,
            seed: self.config.run.seed,
            extraction: self.extraction,
        };
        self.engine.load_weights(&self.policy.model)?;
        let watch = &mut |_| interrupt::control();
        let samples = evaluate::sample(&mut self.engine, &self.policy.text, &self.held_out, &settings, watch)?;
        let data = &self.config.data.eval;
        let label = Label { step: self.step, name, data, tokens_total: self.tokens_total };
        let row = evaluate::summarise(&samples, &settings, label);
        self.metrics.eval(&row)?;
        record::evaluation(&self.folder, self.step, name, &self.held_out, &samples)?;
        self.screen.evaluated(&row);
        Ok(())
    }

    /// Writes a checkpoint of the state after the last whole step.
    pub fn save(&self) -> Result<PathBuf> {
        let state = State {
            step: self.step as u64,
            tokens_total: self.tokens_total,
            seed: self.config.run.seed,
            config_hash: checkpoint::config_hash(&self.config.to_toml()),
            extra: BTreeMap::new(),
        };
        self.checkpoints.save(&state, &|folder| self.policy.save(folder), &self.optimizer)
    }

    /// Writes the report and shows the result.
    pub fn finish(&self) -> Result<()> {
        self.screen.finish();
        let report = report::write_run_report(&self.folder)?;
        let evals = read_evals(&self.folder)?;
        crate::commands::print(&format!("\n{}\n", report::summary_table(&evals)))?;
        if let Some([before, after]) = record::before_and_after(&self.folder)? {
            let prompt = &before.prompt;
            crate::commands::print(&format!("{prompt}\n\nbefore:\n{}\nafter:\n{}\n", before.shown(), after.shown()))?;
        }
        eprintln!("report: {}", report.display());
        Ok(())
    }
}

/// Refuses a run that this version cannot make, or that would not fit, before anything large is loaded; returns the
/// settings with what they leave to the memory that is there.
fn refuse_early(config: Config) -> Result<Config> {
    let found = doctor::policy::find(&config.model.path);
    if let Some(failure) = found.failure {
        return Err(UsageError::new(failure).into());
    }
    let device = doctor::machine::resolve(config.run.device);
    if let Some(refused) = doctor::unsupported(&config, device).into_iter().next() {
        return Err(UsageError::new(refused).into());
    }
    let Some(shape) = found.shape else { return Ok(config) };
    let there = doctor::machine::device_memory(device);
    let config = doctor::memory::planned(&shape, &config, there);
    let need = doctor::memory::estimate(&shape, &config);
    match there.and_then(|there| doctor::shortage(&need, there, &config)) {
        Some(message) => Err(UsageError::new(message).into()),
        None => Ok(config),
    }
}

/// The checkpoint that `--resume` means: itself, or the newest of a run folder.
fn checkpoint_of(resume: &Path) -> Result<PathBuf> {
    if resume.join(checkpoint::STATE_FILE).is_file() {
        return Ok(resume.into());
    }
    let run = if resume.ends_with(checkpoint::FOLDER) { resume.parent().unwrap_or(resume) } else { resume };
    checkpoint::latest(run)?.ok_or_else(|| {
        let message = "there is no checkpoint to resume from; the run stopped before its first one";
        UsageError::new(format!("--resume {}: {message}", resume.display())).into()
    })
}

fn restore(policy: &Policy, optimizer: &mut AdamW, from: &Path) -> Result<()> {
    if policy.model.lora().is_some() {
        Saved::open(from)?.restore(&policy.model).with_context(|| from.display().to_string())?;
        return optimizer.load(&from.join(OPTIMIZER_FILE));
    }
    let files = model::Files::open(&model::Source::Folder(from.into()))?;
    let (name, var) = &policy.model.variables()[0];
    let saved = weights::load(&files, var.dtype(), policy.model.device())?;
    if saved.variables().len() != policy.model.variables().len() {
        bail!("{}: the checkpoint is of another model than {name}'s", from.display());
    }
    for ((name, var), (_, saved)) in policy.model.variables().iter().zip(saved.variables()) {
        var.set(&saved.as_detached_tensor()).with_context(|| format!("{}: tensor {name}", from.display()))?;
    }
    optimizer.load(&from.join(OPTIMIZER_FILE))
}

fn load_problems(config: &Config, name: &str, purpose: Use) -> Result<Problems> {
    let source: Source = name.parse()?;
    let loaded = data::load(&source, purpose, config.run.seed, config.reward.verifier_kind())?;
    if let Some(first) = loaded.left_out.first() {
        eprintln!("{name}: {} rows left out; the first: {first}", loaded.left_out.len());
    }
    Ok(loaded.problems)
}

/// Leaves out problems whose prompt is too long for `data.max_prompt_tokens`.
fn fitting(mut problems: Problems, policy: &Policy, config: &Config) -> Result<Problems> {
    let limit = config.data.max_prompt_tokens;
    let mut failure = None;
    let left_out = problems.retain(|problem| match policy.text.prompt(&problem.prompt) {
        Ok(prompt) => prompt.len() <= limit,
        Err(error) => {
            failure.get_or_insert(error);
            false
        }
    });
    if let Some(error) = failure {
        return Err(error.into());
    }
    if problems.is_empty() {
        let message = format!("data.max_prompt_tokens = {limit}: every prompt is longer; raise it");
        return Err(UsageError::new(message).into());
    }
    if left_out > 0 {
        eprintln!("{left_out} problems left out: their prompts are longer than data.max_prompt_tokens = {limit}");
    }
    Ok(problems)
}

fn run_folder(config: &Config) -> Result<PathBuf> {
    config.run.out.clone().map_or_else(|| folder_by_time(config.schedule.kind.name()), Ok)
}

/// `runs/KIND-SECONDS`: a new folder for a run that was given none.
pub fn folder_by_time(kind: &str) -> Result<PathBuf> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    Ok(PathBuf::from("runs").join(format!("{kind}-{now}")))
}

fn write_config(folder: &Path, config: &Config) -> Result<()> {
    let path = folder.join("config.toml");
    std::fs::write(&path, config.to_toml()).with_context(|| format!("{}: cannot write", path.display()))
}

/// The sampler that the settings ask for, without weights yet.
fn engine(settings: &crate::config::Sampler) -> Local {
    let limits = Limits { max_rows: settings.max_rows, cache_bytes: settings.cache_bytes() };
    Local::new(limits, settings.compute.into())
}
