//! `trainer score --update`: one training step on recorded rollouts, so that it can be compared with another program's.

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use anyhow::{Context, Result, bail};
use model::Qwen2;
use sampler::{Finish, Rollout, Times};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Row, rows};
use crate::checkpoint::OPTIMIZER_FILE;
use crate::cli::ScoreArgs;
use crate::commands::{UsageError, export, print, ready};
use crate::config::{Config, Overrides};
use crate::doctor;
use crate::learn::{Group, Learned, Learner};
use crate::metrics::LearningFigures;
use crate::optimizer::{AdamW, Gradients};
use crate::policy::Policy;

/// The rollouts of one problem, owned.
struct Recorded {
    name: Value,
    prompt: Vec<u32>,
    rollouts: Vec<Rollout>,
    rewards: Vec<f64>,
    kept: Vec<bool>,
}

/// What is printed. Means are over the response tokens of all updates.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    learning: LearningFigures,
    updates: usize,
    response_tokens: u64,
    clipped_low: u64,
    clipped_high: u64,
    clipped_dual: u64,
    ratio: f64,
    ratio_max: f64,
    policy_kl: f64,
    reference_kl: f64,
    importance: f64,
}

impl Figures {
    fn new(learned: Learned) -> Self {
        let metrics = &learned.metrics;
        Self {
            updates: learned.updates,
            response_tokens: metrics.tokens,
            clipped_low: metrics.clipped_low,
            clipped_high: metrics.clipped_high,
            clipped_dual: metrics.clipped_dual,
            ratio: metrics.mean(metrics.ratio),
            ratio_max: metrics.ratio_max,
            policy_kl: metrics.mean(metrics.policy_kl),
            reference_kl: metrics.mean(metrics.reference_kl),
            importance: metrics.mean(metrics.importance),
            learning: learned.figures,
        }
    }
}

/// Makes the step, writes the new weights and moments to `out`, and prints the figures.
pub(super) fn run(args: &ScoreArgs, out: &Path) -> Result<()> {
    let config = Config::resolve(args.settings.config.as_deref(), &args.settings.set, &Overrides::default())?;
    if let Some(refused) = doctor::unsupported(&config).into_iter().next() {
        return Err(UsageError::new(refused).into());
    }
    export::check_out(out)?;
    let policy = ready::load(&args.model, config.model.dtype, args.device)?.to_train(&config)?;
    let groups = groups(args, &policy.model)?;
    let mut optimizer = AdamW::new(policy.model.variables(), config.optimizer.adamw())?;
    let mut gradients = Gradients::kept(policy.model.variables(), config.optimizer.adamw().narrow)?;
    let reference = reference(args, &config, &policy)?;
    let schedule = config.schedule.budget()?;
    let rate = config.optimizer.rate(schedule.total_steps())?;
    let borrowed: Vec<Group> = groups.iter().map(Recorded::group).collect();
    let mut learner = Learner {
        config: &config,
        model: &policy.model,
        reference: reference.as_ref(),
        optimizer: &mut optimizer,
        gradients: &mut gradients,
        largest_budget: schedule.largest(),
        skipped_in_a_row: 0,
    };
    let learned = learner.step(&borrowed, |update| rate.at_share(update, 0.0))?;
    if let Some(why) = learned.skipped.first() {
        bail!("{}: there is no step along these rollouts: {why}", args.data.display());
    }
    if let Some(name) = policy.first_not_finite()? {
        bail!(
            "the step made values of `{name}` infinite or not a number; nothing is written (is the learning rate right?)"
        );
    }
    policy.save(out)?;
    optimizer.save(&out.join(OPTIMIZER_FILE))?;
    print(&format!("{}\n", serde_json::to_string(&Figures::new(learned))?))
}

/// `--reference`, or else the policy as it is, where its KL is asked for.
fn reference(args: &ScoreArgs, config: &Config, policy: &Policy) -> Result<Option<Qwen2>> {
    let Some(name) = args.reference.as_ref().filter(|_| config.reference.is_used()) else {
        return policy.reference(config);
    };
    let reference =
        ready::load(name, config.model.dtype, args.device).with_context(|| format!("--reference {name}"))?;
    if reference.model.config().vocab_size != policy.model.config().vocab_size {
        let message = "has another vocabulary than the model; give the policy that it was trained from";
        return Err(UsageError::new(format!("--reference {name}: {message}")).into());
    }
    Ok(Some(reference.model.detached()))
}

impl Recorded {
    fn group(&self) -> Group<'_> {
        Group { prompt: &self.prompt, rollouts: &self.rollouts, rewards: &self.rewards, kept: &self.kept }
    }
}

/// The rows of the file by their `group`, in the order in which the groups begin.
fn groups(args: &ScoreArgs, model: &Qwen2) -> Result<Vec<Recorded>> {
    let mut groups: Vec<Recorded> = Vec::new();
    for row in rows(&args.data, model.config())? {
        let row = row?;
        let line = row.line;
        add(row, &mut groups)
            .map_err(|problem| UsageError::new(format!("{}:{line}: {problem}", args.data.display())))?;
    }
    Ok(groups)
}

fn add(row: Row, groups: &mut Vec<Recorded>) -> Result<(), String> {
    let name = row.fields.get("group").ok_or("there is no `group`, which rollouts of one problem share")?;
    let (prompt, response) = row.sequence.tokens.split_at(row.sequence.prompt);
    if response.is_empty() {
        return Err("response_ids is empty: a rollout has at least one token".into());
    }
    let index = groups.iter().position(|group| &group.name == name).unwrap_or_else(|| {
        let (name, prompt) = (name.clone(), prompt.to_vec());
        groups.push(Recorded { name, prompt, rollouts: Vec::new(), rewards: Vec::new(), kept: Vec::new() });
        groups.len() - 1
    });
    let group = groups.get_mut(index).ok_or("a group that is not there")?;
    if group.prompt != prompt {
        return Err(format!("the rows of group {name} have different prompts"));
    }
    let reward = row.fields.get("reward").and_then(Value::as_f64).ok_or("`reward` must be a number")?;
    let log_probs = log_probs(&row.fields, response.len())?;
    group.rewards.push(reward);
    group.kept.push(match row.fields.get("kept") {
        None => true,
        Some(kept) => kept.as_bool().ok_or("`kept` must be true or false")?,
    });
    // Neither the end of a response nor its weights matter to a step.
    let (tokens, finish) = (response.to_vec(), Finish::Stop);
    group.rollouts.push(Rollout { tokens, log_probs, finish, weight_version: 0, times: Times::default() });
    Ok(())
}

fn log_probs(fields: &Map<String, Value>, tokens: usize) -> Result<Vec<f32>, String> {
    let expected = || format!("`logprobs` must be the sampler's log-probs of the {tokens} response tokens");
    let list = fields.get("logprobs").and_then(Value::as_array).ok_or_else(expected)?;
    let values: Option<Vec<f32>> = list.iter().map(|value| value.as_f64().map(|value| value as f32)).collect();
    values.filter(|values| values.len() == tokens).ok_or_else(expected)
}
