//! What a run folder of a study holds: nothing, a part of the run, all of it, or a run with other settings.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    checkpoint,
    config::{Config, Overrides},
    metrics::{EVALS_FILE, EvalRow, STEPS_FILE, StepRow, read_evals, read_steps},
    run::{changes, measured::missing_before},
};

/// How far a run has come.
#[derive(Debug, PartialEq)]
pub enum State {
    /// There is no run.
    Absent,
    /// The run has other settings than the study wants.
    Other,
    /// The run stopped early and goes on from its last checkpoint.
    Resumable,
    /// The run stopped early and has to start over.
    Torn,
    /// The run reached its end and has every evaluation.
    Complete(Ended),
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Its evaluations, in order.
    pub evals: Vec<EvalRow>,
    /// Steps done.
    pub steps: usize,
    /// Rollout tokens spent.
    pub tokens: u64,
}

/// Looks into `folder`, which should hold a run with the settings `wanted`.
///
/// # Errors
/// A file is there and malformed; the message names it.
pub fn inspect(folder: &Path, wanted: &Config) -> Result<State> {
    let config = folder.join("config.toml");
    if !config.exists() {
        // Metrics come before the settings; without either there is at most a log.
        return Ok(if folder.join(STEPS_FILE).exists() { State::Torn } else { State::Absent });
    }
    let found = Config::resolve(Some(&config), &[], &Overrides::default())?;
    if !same(&found, wanted)? {
        return Ok(State::Other);
    }
    if !folder.join(STEPS_FILE).exists() || !folder.join(EVALS_FILE).exists() {
        return Ok(State::Torn);
    }
    let (steps, evals) = (read_steps(folder)?, read_evals(folder)?);
    let (done, tokens) = steps.last().map_or((0, 0), |row| (row.step, row.tokens_total));
    let last = evals.last().is_some_and(|row| row.step == done);
    if ended(wanted, &steps)? && last && missing_before(wanted, &evals, done)?.is_none() {
        return Ok(State::Complete(Ended { evals, steps: done, tokens }));
    }
    // Where no checkpoint is whole, the run is made again. It makes up for the evaluation of the step that it goes on from,
    // but not for one before.
    let resumable = match checkpoint::newest_whole(folder) {
        Ok(Some(found)) => missing_before(wanted, &evals, found.state.step as usize)?.is_none(),
        Ok(None) | Err(_) => false,
    };
    Ok(if resumable { State::Resumable } else { State::Torn })
}

/// Whether `folder` holds a run that another study made, whose settings differ in more than the rollout tokens, which
/// come of the cosine run.
///
/// # Errors
/// The settings there cannot be read.
pub fn is_other(folder: &Path, wanted: &Config) -> Result<bool> {
    let path = folder.join("config.toml");
    if !path.exists() {
        return Ok(false);
    }
    let mut found = Config::resolve(Some(&path), &[], &Overrides::default())?;
    found.schedule.rollout_tokens = wanted.schedule.rollout_tokens;
    Ok(!same(&found, wanted)?)
}

/// Whether two runs have the same results: where a run lies, how many threads it has and how it plans its memory does not
/// matter.
fn same(a: &Config, b: &Config) -> Result<bool> {
    Ok(changes::lasting(a)? == changes::lasting(b)?)
}

/// Whether a run with these steps is at its end.
fn ended(config: &Config, steps: &[StepRow]) -> Result<bool> {
    let total = config.schedule.budget().context("the schedule of a study")?.total_steps();
    let spent = |row: &StepRow| config.schedule.rollout_tokens.is_some_and(|limit| row.tokens_total >= limit);
    Ok(steps.last().is_some_and(|row| row.step >= total || spent(row)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::metrics::{
        MetricsWriter,
        tests::{eval_row, step_row},
    };

    /// Two steps a cycle, one cycle: low after step 1, high after step 2.
    fn config(more: &[&str]) -> Config {
        let sets = ["schedule.cycles=1", "schedule.cycle_steps=2"].iter().chain(more);
        Config::resolve(None, &sets.map(|set| set.to_string()).collect::<Vec<_>>(), &Overrides::default()).unwrap()
    }

    fn write(folder: &Path, config: &Config, steps: usize, names: &[(usize, &str)]) {
        let mut writer = MetricsWriter::create(folder).unwrap();
        fs::write(folder.join("config.toml"), config.to_toml()).unwrap();
        (1..=steps).for_each(|step| writer.step(&step_row(step)).unwrap());
        names.iter().for_each(|&(step, name)| writer.eval(&eval_row(step, name, 0.5, 300.0)).unwrap());
    }

    fn state(config: &Config, steps: usize, names: &[(usize, &str)]) -> State {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), config, steps, names);
        let elsewhere = {
            let mut wanted = config.clone();
            (wanted.run.out, wanted.run.threads) = (Some("elsewhere".into()), Some(7));
            wanted
        };
        inspect(folder.path(), &elsewhere).unwrap()
    }

    #[test]
    fn a_run_is_complete_with_its_last_evaluation() {
        let all = [(0, "start"), (1, "cycle-1-low"), (2, "cycle-1-high")];
        let State::Complete(ended) = state(&config(&[]), 2, &all) else { panic!("not complete") };
        assert_eq!((ended.evals.len(), ended.steps, ended.tokens), (3, 2, 119_136));
        assert_eq!(state(&config(&[]), 2, &all[..2]), State::Torn);
        assert_eq!(state(&config(&[]), 1, &all[..2]), State::Torn, "there is no checkpoint to resume from");
        assert_eq!(state(&config(&[]), 2, &[all[0], all[2]]), State::Torn, "the low is missing");
    }

    #[test]
    fn a_run_ends_when_its_tokens_are_spent() {
        // 59 568 tokens a step: the second step passes 100 000, in the middle of a cycle of eight.
        let config = config(&["schedule.cycle_steps=8", "schedule.rollout_tokens=100000"]);
        assert!(matches!(state(&config, 2, &[(0, "start"), (2, "end")]), State::Complete(_)));
        assert_eq!(state(&config, 2, &[(0, "start")]), State::Torn);
        assert_eq!(state(&config, 1, &[(0, "start"), (1, "end")]), State::Torn);
    }

    #[test]
    fn a_run_goes_on_from_a_checkpoint_whose_own_evaluation_is_missing() {
        let with_checkpoint = |step: u64, names: &[(usize, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &config(&[]), 2, names);
            let checkpoints = checkpoint::Checkpoints::open(folder.path(), 1).unwrap();
            let state = checkpoint::State { step, ..Default::default() };
            // A safetensors file without a tensor.
            let file = b"\x02\0\0\0\0\0\0\0{}";
            checkpoints.save(&state, &|to| Ok(fs::write(to.join(checkpoint::OPTIMIZER_FILE), file)?)).unwrap();
            inspect(folder.path(), &config(&["model.micro_batch_tokens=99"])).unwrap()
        };
        assert_eq!(with_checkpoint(1, &[(0, "start")]), State::Resumable);
        assert_eq!(with_checkpoint(2, &[(0, "start"), (1, "cycle-1-low")]), State::Resumable);
        assert_eq!(with_checkpoint(2, &[(0, "start")]), State::Torn, "the low would be missing for good");
    }

    #[test]
    fn other_settings_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(inspect(folder.path(), &config(&[])).unwrap(), State::Absent);
        write(folder.path(), &config(&[]), 0, &[]);
        assert_eq!(inspect(folder.path(), &config(&["run.seed=2"])).unwrap(), State::Other);
        assert!(is_other(folder.path(), &config(&["run.seed=2"])).unwrap());
        let spends = config(&["schedule.rollout_tokens=9"]);
        assert_eq!(inspect(folder.path(), &spends).unwrap(), State::Other);
        assert!(!is_other(folder.path(), &spends).unwrap());
        fs::remove_file(folder.path().join("config.toml")).unwrap();
        assert_eq!(inspect(folder.path(), &config(&[])).unwrap(), State::Torn);
    }
}
