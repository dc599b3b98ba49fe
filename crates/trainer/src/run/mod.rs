//! The loop: budget, rollouts, rewards, advantages, step, new weights.
//!
//! ```text
//! schedule --budget--> sampler --rollouts--> reward --scores--> trainer --advantages, loss, step--> model --weights--> sampler
//! ```

mod collect;
mod interrupt;
mod record;
mod screen;
mod setup;

use anyhow::Result;
use sampler::Engine;
use std::path::PathBuf;
use std::time::Instant;

use crate::commands::Interrupted;
use crate::config::Config;
use crate::learn::{Group, Learned, Learner};
use crate::metrics::StepRow;
use collect::Batch;
use setup::Run;
pub use setup::folder_by_time;

/// Trains a policy through its cycles, or continues a run from `resume` (a run folder or one of its checkpoints).
///
/// # Errors
/// When a setting, file or device is unusable; [`Interrupted`] after a checkpoint when the user stops it.
pub fn train(config: Config, resume: Option<PathBuf>) -> Result<()> {
    interrupt::listen()?;
    let mut run = Run::open(config, resume)?;
    match cycles(&mut run) {
        Err(error) if interrupt::requested() && is_stop(&error) => {
            let checkpoint = run.save()?;
            run.screen.finish();
            Err(Interrupted { checkpoint }.into())
        }
        Err(error) => Err(error),
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
    let batch = collect::rollouts(run, budget)?;
    let sampling_seconds = started.elapsed().as_secs_f64();

    let learning = Instant::now();
    let learned = learn(run, &batch)?;
    let learning_seconds = learning.elapsed().as_secs_f64();

    run.tokens_total += batch.tokens() as u64;
    run.updates += learned.updates;
    let row = StepRow {
        step: run.step + 1,
        cycle: run.schedule.cycle(run.step),
        phase: run.schedule.phase(run.step),
        budget,
        reward: batch.mean(|g, i| g.rewards[i]),
        accuracy: batch.mean(|g, i| f64::from(u8::from(g.correct[i]))),
        response_tokens: batch.mean(|g, i| g.rollouts[i].tokens.len() as f64),
        truncated: batch.mean(|g, i| f64::from(u8::from(g.rollouts[i].truncated()))),
        learning: learned.figures,
        rollout_tokens_per_second: batch.tokens() as f64 / sampling_seconds,
        train_tokens_per_second: learned.tokens as f64 / learning_seconds,
        seconds: started.elapsed().as_secs_f64(),
        tokens_total: run.tokens_total,
    };
    finish_step(run, &batch, &row)
}

/// New weights from the step's rollouts.
fn learn(run: &mut Run, batch: &Batch) -> Result<Learned> {
    let groups: Vec<Group> = batch.groups.iter().map(collect::Group::recorded).collect();
    let (rate, updates, share_done) = (run.rate, run.updates, run.share_done());
    let mut learner = Learner {
        config: &run.config,
        model: &run.policy.model,
        reference: run.reference.as_ref(),
        optimizer: &mut run.optimizer,
        largest_budget: run.schedule.largest(),
    };
    learner.step(&groups, |i| rate.at_share(updates + i, share_done))
}

fn finish_step(run: &mut Run, batch: &Batch, row: &StepRow) -> Result<()> {
    run.metrics.step(row)?;
    if run.step.is_multiple_of(record::EVERY) {
        record::rollouts(&run.folder, row.step, batch)?;
    }
    run.screen.step(row);
    run.step += 1;
    Ok(())
}
