//! The loop: budget, rollouts, rewards, advantages, step, new weights.
//!
//! ```text
//! schedule --budget--> sampler --rollouts--> reward --scores--> trainer --advantages, loss, step--> model --weights--> sampler
//! ```

pub(crate) mod changes;
mod collect;
mod evidence;
mod example;
mod interrupt;
mod lock;
pub(crate) mod measured;
mod open;
mod points;
pub mod preflight;
mod record;
mod save;
mod screen;
mod writing;

use anyhow::{Context, Result};
use sampler::Engine;
use std::path::PathBuf;
use std::time::Instant;

use crate::commands::Interrupted;
use crate::config::Config;
use crate::learn::{Group, Learned, Learner};
use crate::metrics::StepRow;
use crate::process;
use collect::Batch;
use open::Run;
pub use open::folder_by_time;

/// Trains a policy through its cycles, or continues a run from `resume` (a run folder or one of its checkpoints).
///
/// # Errors
/// When a setting, file or device is unusable; [`Interrupted`] after a checkpoint when the user stops it.
pub fn train(config: Config, resume: Option<PathBuf>) -> Result<()> {
    interrupt::listen()?;
    let mut run = Run::open(config, resume)?;
    if run.saved.is_some() {
        run.screen.line(&format!("resumed at step {} of {}", run.step, run.schedule.total_steps()));
    }
    match cycles(&mut run) {
        Err(error) if interrupt::requested() && is_stop(&error) => {
            run.screen.finish();
            run.wait_for_writing();
            let last = run.saved.clone().unwrap_or_else(|| run.folder.clone());
            let advice =
                || format!("interrupted, and the checkpoint cannot be written; {} is as it was", last.display());
            let checkpoint = run.save().with_context(advice)?;
            Err(Interrupted { checkpoint }.into())
        }
        Err(error) => {
            // What it was written from was whole.
            run.wait_for_writing();
            Err(error)
        }
        Ok(()) => run.finish(),
    }
}

fn is_stop(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<sampler::Error>(), Some(sampler::Error::Stopped))
}

fn cycles(run: &mut Run) -> Result<()> {
    run.catch_up()?;
    while !run.done() {
        step(run)?;
        run.mark()?;
        // What lies free between what is in use would add up over steps of different lengths.
        process::return_freed_memory();
        if interrupt::requested() {
            return Err(sampler::Error::Stopped.into());
        }
    }
    Ok(())
}

/// One step of GRPO at the budget of the schedule.
fn step(run: &mut Run) -> Result<()> {
    let started = Instant::now();
    let budget = run.schedule.length(run.step);
    run.engine.load_weights(&run.policy.model)?;
    run.screen.sampling();
    let batch = collect::rollouts(run, budget)?;
    run.after_sampling();
    let sampling_seconds = started.elapsed().as_secs_f64();

    let learning = Instant::now();
    run.screen.updating();
    let learned = learn(run, &batch)?;
    let learning_seconds = learning.elapsed().as_secs_f64();

    if learned.skipped_in_a_row >= run.config.optimizer.skip_limit {
        return Err(evidence::stop(run, &batch, &learned));
    }
    run.tokens_total += batch.tokens() as u64;
    run.updates += learned.updates;
    run.skipped_in_a_row = learned.skipped_in_a_row;
    let row = StepRow {
        step: run.step + 1,
        cycle: run.schedule.cycle(run.step),
        phase: run.schedule.phase(run.step),
        budget,
        reward: batch.mean(|g, i| g.rewards[i]),
        accuracy: batch.mean(|g, i| f64::from(u8::from(g.correct[i]))),
        response_tokens: batch.mean(|g, i| g.rollouts[i].tokens.len() as f64),
        truncated: batch.mean(|g, i| f64::from(u8::from(g.rollouts[i].truncated()))),
        learning: learned.figures.clone(),
        rollout_tokens_per_second: batch.tokens() as f64 / sampling_seconds,
        train_tokens_per_second: learned.tokens as f64 / learning_seconds,
        seconds: started.elapsed().as_secs_f64(),
        tokens_total: run.tokens_total,
        updates_skipped: learned.skipped.len(),
        graders_failed: batch.graders_failed(),
    };
    finish_step(run, &batch, &learned, &row)
}

/// New weights from the step's rollouts.
fn learn(run: &mut Run, batch: &Batch) -> Result<Learned> {
    if !batch.is_finite() {
        let why = "the sampler's log-probs are no numbers, so neither are the weights".to_string();
        let skipped_in_a_row = run.skipped_in_a_row + 1;
        return Ok(Learned { skipped: vec![why], skipped_in_a_row, ..Learned::default() });
    }
    let groups: Vec<Group> = batch.groups.iter().map(collect::Group::recorded).collect();
    let (rate, updates, share_done) = (run.rate, run.updates, run.share_done());
    let mut learner = Learner {
        config: &run.config,
        model: &run.policy.model,
        reference: run.reference.as_ref(),
        optimizer: &mut run.optimizer,
        gradients: &mut run.gradients,
        largest_budget: run.schedule.largest(),
        skipped_in_a_row: run.skipped_in_a_row,
    };
    learner.step(&groups, |i| rate.at_share(updates + i, share_done))
}

fn finish_step(run: &mut Run, batch: &Batch, learned: &Learned, row: &StepRow) -> Result<()> {
    run.metrics.step(row)?;
    if run.step.is_multiple_of(record::EVERY) {
        let kept = run.samples.rollouts(row.step, batch);
        run.tolerate(kept);
    }
    run.screen.step(row);
    for why in &learned.skipped {
        run.screen.line(&format!("step {}: an update was skipped: {why}", row.step));
    }
    if row.graders_failed > 0 {
        let count = row.graders_failed;
        run.screen.line(&format!("step {}: the verifier failed on {count} responses, which score 0", row.step));
    }
    run.say_trouble();
    run.step += 1;
    Ok(())
}
