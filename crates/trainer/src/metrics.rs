//! The figures of a run on disk: a row a step in `metrics.jsonl`, a row an evaluation in `eval.jsonl`, and the same for
//! TensorBoard.

mod tensorboard;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use schedule::Phase;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

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
    /// Its standard error.
    pub pass_at_1_se: f64,
    /// Share of problems with at least one correct response among `samples`, 0 to 1.
    pub pass_at_k: f64,
    /// Mean length of a response, tokens.
    pub response_tokens: f64,
    /// Its standard error.
    pub response_tokens_se: f64,
    /// Share of responses that reached the token limit, 0 to 1.
    pub truncated: f64,
    /// Rollout tokens spent on training so far.
    pub tokens_total: u64,
    /// Mean count of the word "wait" in a response, where it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub markers_per_response: Option<f64>,
}

/// Appends to the metric files of one run folder; every row is on its way to the disk when the call returns.
#[derive(Debug)]
pub struct MetricsWriter {
    steps: Lines,
    evals: Lines,
    events: EventFile,
}

impl MetricsWriter {
    /// Starts the files of a new run in `dir`, which is made if need be.
    ///
    /// # Errors
    /// `dir` already holds metrics, or cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot make the run folder", dir.display()))?;
        for file in [STEPS_FILE, EVALS_FILE] {
            let path = dir.join(file);
            if path.exists() {
                bail!("{}: already there; choose another --out or go on with --resume", path.display());
            }
        }
        Ok(Self {
            steps: Lines::open(dir.join(STEPS_FILE))?,
            evals: Lines::open(dir.join(EVALS_FILE))?,
            events: EventFile::create(dir, None)?,
        })
    }

    /// Reopens the files of the run in `dir` to go on after `step` steps: rows of later steps are removed, because the
    /// resumed run writes them again. TensorBoard is told to forget them too.
    ///
    /// # Errors
    /// A file is missing, is not JSONL with a `step` in each row, or cannot be rewritten.
    pub fn resume(dir: &Path, step: usize) -> Result<Self> {
        for file in [STEPS_FILE, EVALS_FILE] {
            truncate_after(&dir.join(file), step)?;
        }
        Ok(Self {
            steps: Lines::open(dir.join(STEPS_FILE))?,
            evals: Lines::open(dir.join(EVALS_FILE))?,
            events: EventFile::create(dir, Some(step + 1))?,
        })
    }

    /// Appends the row of a step.
    ///
    /// # Errors
    /// A figure is infinite or not a number (which JSON cannot hold), or a file cannot be written.
    pub fn step(&mut self, row: &StepRow) -> Result<()> {
        let object = self.steps.append(row, row.step)?;
        self.events.scalars("train", row.step, &figures(&object))
    }

    /// Appends the row of an evaluation.
    ///
    /// # Errors
    /// As [`MetricsWriter::step`].
    pub fn eval(&mut self, row: &EvalRow) -> Result<()> {
        let object = self.evals.append(row, row.step)?;
        self.events.scalars(&format!("eval/{}", row.data), row.step, &figures(&object))
    }
}

/// A JSONL file open for appending.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens `path` at its end, making it if need be.
    fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{}: cannot write", path.display()))?;
        Ok(Self { path, file })
    }

    /// Writes `row` as one line, in one call, and returns it as an object.
    fn append(&mut self, row: &impl Serialize, step: usize) -> Result<Map<String, Value>> {
        let Value::Object(object) = serde_json::to_value(row)? else { bail!("a row is not a JSON object") };
        // serde_json turns NaN and infinity into null; `kl` is the one figure that may be absent.
        if let Some((key, _)) = object.iter().find(|(key, value)| value.is_null() && *key != "kl") {
            bail!("{}: step {step}: {key} is infinite or not a number", self.path.display());
        }
        let line = serde_json::to_string(&object)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .with_context(|| format!("{}: cannot write", self.path.display()))?;
        Ok(object)
    }
}

/// The numbers of a row with their keys, without the step itself.
fn figures(object: &Map<String, Value>) -> Vec<(&str, f32)> {
    object
        .iter()
        .filter(|(key, _)| *key != "step")
        .filter_map(|(key, value)| Some((key.as_str(), value.as_f64()? as f32)))
        .collect()
}

/// Rewrites the JSONL file at `path` without the rows whose `step` is above `step`, by way of a second file that takes
/// its name, so that an interruption leaves either the old rows or the new ones. Kept lines keep their bytes.
fn truncate_after(path: &Path, step: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Step {
        step: usize,
    }
    let text = read(path)?;
    let mut kept = String::with_capacity(text.len());
    for (number, line) in whole_lines(&text) {
        let row: Step = parse(path, number, line)?;
        if row.step <= step {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    let temporary = path.with_extension("jsonl.tmp");
    let rewrite = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(kept.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    rewrite().with_context(|| format!("{}: cannot rewrite", path.display()))
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
    let text = read(path)?;
    whole_lines(&text).map(|(number, line)| parse(path, number, line)).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}

fn parse<T: DeserializeOwned>(path: &Path, number: usize, line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("{}: line {number} is not a row", path.display()))
}

/// The lines that end, with their numbers from 1; blank ones are passed over.
fn whole_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n')
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, line.strip_suffix('\n')?)))
        .filter(|(_, line)| !line.trim().is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row with plain figures, for tests.
    pub(crate) fn step_row(step: usize) -> StepRow {
        StepRow {
            step,
            cycle: 1,
            phase: Phase::Compress,
            budget: 448,
            reward: 0.5,
            accuracy: 0.5,
            response_tokens: 310.25,
            truncated: 0.25,
            learning: LearningFigures {
                entropy: 0.4,
                kl: Some(0.001),
                clip_fraction: 0.01,
                loss: -0.02,
                grad_norm: 0.3,
                learning_rate: 1.5e-4,
                groups_used: 20,
                logprob_gap: 1e-6,
            },
            rollout_tokens_per_second: 9000.0,
            train_tokens_per_second: 20000.0,
            seconds: 4.5,
            tokens_total: 59_568 * step as u64,
        }
    }

    /// An evaluation with the given result, for tests.
    pub(crate) fn eval_row(step: usize, name: &str, accuracy: f64, tokens: f64) -> EvalRow {
        EvalRow {
            step,
            name: name.into(),
            data: "countdown".into(),
            problems: 500,
            samples: 1,
            pass_at_1: accuracy,
            pass_at_1_se: 0.02,
            pass_at_k: accuracy,
            response_tokens: tokens,
            response_tokens_se: 5.0,
            truncated: 0.25,
            tokens_total: 59_568 * step as u64,
            markers_per_response: Some(4.5),
        }
    }

    fn steps(dir: &Path) -> Vec<usize> {
        read_steps(dir).unwrap().iter().map(|row| row.step).collect()
    }

    #[test]
    fn rows_come_back_as_written_with_the_keys_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        let mut untracked = step_row(1);
        untracked.learning.kl = None;
        writer.step(&untracked).unwrap();
        writer.eval(&eval_row(0, "start", 0.5, 300.0)).unwrap();
        assert_eq!(read_steps(dir.path()).unwrap(), [untracked]);
        assert_eq!(read_evals(dir.path()).unwrap(), [eval_row(0, "start", 0.5, 300.0)]);
        let text = fs::read_to_string(dir.path().join(STEPS_FILE)).unwrap();
        let row: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let keys: Vec<&str> = row.keys().map(String::as_str).collect();
        let expected = "step cycle phase budget reward accuracy response_tokens truncated entropy kl clip_fraction loss \
            grad_norm learning_rate groups_used logprob_gap rollout_tokens_per_second train_tokens_per_second seconds \
            tokens_total";
        assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!((&row["phase"], &row["kl"]), (&Value::from("compress"), &Value::Null));
    }

    #[test]
    fn a_resume_drops_later_rows_and_a_torn_one_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        (1..=5).for_each(|step| writer.step(&step_row(step)).unwrap());
        for (step, name) in [(0, "start"), (3, "cycle-1-low"), (5, "cycle-1-high")] {
            writer.eval(&eval_row(step, name, 0.5, 300.0)).unwrap();
        }
        drop(writer);
        let path = dir.path().join(STEPS_FILE);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}{{\"step\":6,\"cy")).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5], "a reader leaves the torn row out");

        let mut writer = MetricsWriter::resume(dir.path(), 3).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert!(before.starts_with(&after), "kept lines keep their bytes");
        writer.step(&step_row(4)).unwrap();
        assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
        let evals: Vec<String> = read_evals(dir.path()).unwrap().into_iter().map(|row| row.name).collect();
        assert_eq!(evals, ["start", "cycle-1-low"]);
        assert!(!path.with_extension("jsonl.tmp").exists());
    }

    #[test]
    fn a_new_run_does_not_touch_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(MetricsWriter::create(dir.path()).unwrap());
        let message = MetricsWriter::create(dir.path()).unwrap_err().to_string();
        assert!(message.contains(STEPS_FILE) && message.contains("--resume"), "{message}");
    }

    #[test]
    fn a_figure_that_is_no_number_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        let mut row = step_row(7);
        row.learning.loss = f64::NAN;
        let message = writer.step(&row).unwrap_err().to_string();
        assert!(message.contains("step 7: loss"), "{message}");
        assert_eq!(read_steps(dir.path()).unwrap(), []);
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        writer.step(&step_row(1)).unwrap();
        writer.steps.file.write_all(b"{\"step\":\"two\"}\n").unwrap();
        for message in [
            format!("{:#}", read_steps(dir.path()).unwrap_err()),
            format!("{:#}", MetricsWriter::resume(dir.path(), 1).unwrap_err()),
        ] {
            assert!(message.contains("metrics.jsonl: line 2"), "{message}");
        }
        let missing = format!("{:#}", read_steps(Path::new("no/such/run")).unwrap_err());
        assert!(missing.contains("no/such/run/metrics.jsonl"), "{missing}");
    }
}
