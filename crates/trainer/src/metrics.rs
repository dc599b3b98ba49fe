//! The figures of a run on disk: a row a step in `metrics.jsonl`, a row an evaluation in `eval.jsonl`, and the same for
//! TensorBoard.

#![deny(clippy::indexing_slicing)]

mod lines;
mod tensorboard;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use schedule::Phase;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::commands::UsageError;
use lines::Lines;
pub use tensorboard::EventFile;

/// The file of [`StepRow`]s in a run folder.
pub const STEPS_FILE: &str = "metrics.jsonl";
/// The file of [`EvalRow`]s in a run folder.
pub const EVALS_FILE: &str = "eval.jsonl";

/// What one step of training did. Means are over the step's rollouts unless the field says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Steps done, this one included: the first row has 1.
    pub step: usize,
    /// The cycle, from 1.
    pub cycle: usize,
    /// Which half of the cycle.
    pub phase: Phase,
    /// The most tokens a response could have.
    pub budget: usize,
    /// Mean reward.
    pub reward: f64,
    /// Share of correct responses, 0 to 1.
    pub accuracy: f64,
    /// Mean length of a response, tokens.
    pub response_tokens: f64,
    /// Share of responses that were cut at the budget, 0 to 1.
    pub truncated: f64,
    /// What the updates of the step did.
    #[serde(flatten)]
    pub learning: LearningFigures,
    /// Response tokens sampled a second of sampling.
    pub rollout_tokens_per_second: f64,
    /// Tokens (prompt and response) trained on a second of training.
    pub train_tokens_per_second: f64,
    /// Wall-clock time of the whole step.
    pub seconds: f64,
    /// Rollout tokens spent since the run began.
    pub tokens_total: u64,
    /// Updates skipped because a loss or gradient was infinite or not a number; only there where there are some.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub updates_skipped: usize,
    /// Responses that score 0 because the verifier failed on them; only there where there are some.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub graders_failed: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What the updates of a step did; zeros where no group carried a signal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LearningFigures {
    /// Entropy of the policy, nats, mean over response tokens.
    pub entropy: f64,
    /// KL divergence of the policy from the reference model, nats a response token; null when not tracked.
    pub kl: Option<f64>,
    /// Share of response tokens whose ratio was clipped, 0 to 1.
    pub clip_fraction: f64,
    /// The loss that was differentiated, mean over the updates.
    pub loss: f64,
    /// L2 norm of the gradient before clipping, mean over the updates.
    pub grad_norm: f64,
    /// The optimiser's rate in the last update.
    pub learning_rate: f64,
    /// Groups that carried a signal and entered the loss.
    pub groups_used: usize,
    /// Mean absolute difference of the sampler's and the trainer's log-probs, nats, over response tokens of the first
    /// update.
    pub logprob_gap: f64,
}

/// What one evaluation measured; each `_se` is one standard error of the figure before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Steps done: 0 before training.
    pub step: usize,
    /// Which evaluation: `start`, `cycle-1-low`, `cycle-1-high`, ...
    pub name: String,
    /// The data set.
    pub data: String,
    /// Problems evaluated.
    pub problems: usize,
    /// Responses to each problem.
    pub samples: usize,
    /// Mean share of correct responses, 0 to 1.
    pub pass_at_1: f64,
    /// Its standard error; null where there is one problem, which has no spread to take it from.
    pub pass_at_1_se: Option<f64>,
    /// Share of problems with at least one correct response among `samples`, 0 to 1.
    pub pass_at_k: f64,
    /// Mean length of a response, tokens.
    pub response_tokens: f64,
    /// Its standard error, null as that of `pass_at_1`.
    pub response_tokens_se: Option<f64>,
    /// Share of responses that reached the token limit, 0 to 1.
    pub truncated: f64,
    /// Rollout tokens spent on training so far.
    pub tokens_total: u64,
    /// Responses that score 0 because the verifier failed on them; only there where there are some.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub graders_failed: usize,
    /// Mean count of the word "wait" in a response, where it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub markers_per_response: Option<f64>,
}

/// ` ± 2.1`, to be put behind its figure; nothing where the error is not known.
pub fn plus_minus(error: Option<f64>, decimals: usize) -> String {
    error.map_or_else(String::new, |error| format!(" ± {error:.decimals$}"))
}

/// Appends to the metric files of one run folder; every row is on its way to the disk when the call returns.
///
/// A row that the disk has no room for waits in memory and is written with the next one, so that a run outlives a disk
/// that is full for a while and its files have neither gaps nor halves of rows.
#[derive(Debug)]
pub struct MetricsWriter {
    steps: Lines,
    evals: Lines,
    events: EventFile,
    lost_events: LostEvents,
}

/// Whether TensorBoard's copy lacks rows, and whether that was said.
#[derive(Debug)]
enum LostEvents {
    None,
    Unsaid(String),
    Said,
}

impl MetricsWriter {
    /// Starts the files of a new run in `dir`, which is made if need be.
    ///
    /// # Errors
    /// `dir` already holds metrics, or cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot make the run folder", dir.display()))?;
        refuse_existing(dir)?;
        Self::open(dir, None)
    }

    /// Reopens the files of the run in `dir` to go on after `step` steps, or from its very start: rows of later steps are
    /// removed, because the resumed run writes them again. TensorBoard is told to forget them too.
    ///
    /// # Errors
    /// A file lacks a row of a step that is done, is not JSONL with a `step` in each row, or cannot be rewritten.
    pub fn resume(dir: &Path, step: Option<usize>) -> Result<Self> {
        let done = lines::keep_up_to(&dir.join(STEPS_FILE), step)?;
        if let Some(missing) = (1..=step.unwrap_or(0)).find(|step| !done.contains(step)) {
            let path = dir.join(STEPS_FILE);
            let what = "the checkpoint to go on from comes after it; put the file back, or start a new run";
            return Err(
                UsageError::new(format!("{}: there is no row of step {missing}; {what}", path.display())).into()
            );
        }
        lines::keep_up_to(&dir.join(EVALS_FILE), step)?;
        Self::open(dir, Some(step.map_or(0, |step| step + 1)))
    }

    fn open(dir: &Path, purge_from: Option<usize>) -> Result<Self> {
        Ok(Self {
            steps: Lines::open(dir.join(STEPS_FILE))?,
            evals: Lines::open(dir.join(EVALS_FILE))?,
            events: EventFile::create(dir, purge_from)?,
            lost_events: LostEvents::None,
        })
    }

    /// Appends the row of a step.
    ///
    /// # Errors
    /// A figure is infinite or not a number, which JSON cannot hold.
    pub fn step(&mut self, row: &StepRow) -> Result<()> {
        let object = self.steps.append(row, row.step)?;
        self.draw("train", row.step, &object);
        Ok(())
    }

    /// Appends the row of an evaluation.
    ///
    /// # Errors
    /// As [`MetricsWriter::step`].
    pub fn eval(&mut self, row: &EvalRow) -> Result<()> {
        let object = self.evals.append(row, row.step)?;
        self.draw(&format!("eval/{}", row.data), row.step, &object);
        Ok(())
    }

    /// TensorBoard's copy of a row: not worth a run, so that a failure is only remembered.
    fn draw(&mut self, section: &str, step: usize, object: &Map<String, Value>) {
        if let Err(error) = self.events.scalars(section, step, &figures(object))
            && matches!(self.lost_events, LostEvents::None)
        {
            self.lost_events = LostEvents::Unsaid(format!("{error:#}"));
        }
    }

    /// Why rows wait to be written, in a line; `None` if none does.
    pub fn trouble(&self) -> Option<&str> {
        self.steps.waiting().or(self.evals.waiting())
    }

    /// Why TensorBoard's copy lacks a row, in a line, for the first such row.
    pub fn lost_events(&mut self) -> Option<String> {
        match std::mem::replace(&mut self.lost_events, LostEvents::Said) {
            LostEvents::Unsaid(error) => Some(error),
            before => {
                self.lost_events = before;
                None
            }
        }
    }

    /// Writes what waits and makes all rows last: a checkpoint must never be ahead of them.
    ///
    /// # Errors
    /// There is still no room for a row; the message names the file.
    pub fn sync(&mut self) -> Result<()> {
        self.steps.sync()?;
        self.evals.sync()
    }
}

/// Refuses a folder that holds the metrics of a run.
///
/// # Errors
/// [`UsageError`] that names the file.
pub fn refuse_existing(dir: &Path) -> Result<()> {
    let there = [STEPS_FILE, EVALS_FILE].into_iter().map(|file| dir.join(file)).find(|path| path.exists());
    there.map_or(Ok(()), |path| {
        let advice = "choose another --out or go on with --resume";
        Err(UsageError::new(format!("{}: already there; {advice}", path.display())).into())
    })
}

/// The numbers of a row with their keys, without the step itself.
fn figures(object: &Map<String, Value>) -> Vec<(&str, f32)> {
    object
        .iter()
        .filter(|(key, _)| *key != "step")
        .filter_map(|(key, value)| Some((key.as_str(), value.as_f64()? as f32)))
        .collect()
}

/// Reads the rows of all steps of the run in `dir`, in order. A last line without its end is a row that an interrupted
/// run was writing, and is left out.
///
/// # Errors
/// `metrics.jsonl` cannot be read, or a line is not a row; the message names the file and the line.
pub fn read_steps(dir: &Path) -> Result<Vec<StepRow>> {
    read_rows(&dir.join(STEPS_FILE))
}

/// Reads the rows of all evaluations of the run in `dir`, in order, as [`read_steps`] does.
///
/// # Errors
/// `eval.jsonl` cannot be read, or a line is not a row; the message names the file and the line.
pub fn read_evals(dir: &Path) -> Result<Vec<EvalRow>> {
    read_rows(&dir.join(EVALS_FILE))
}

/// Reads a JSONL file; errors name the file and the line.
pub(crate) fn read_rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = lines::read(path)?;
    lines::whole(&text).map(|(number, line)| lines::parse(path, number, line)).collect()
}

#[cfg(test)]
pub(crate) mod tests;
