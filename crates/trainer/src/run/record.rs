//! Samples kept as text: `rollouts/*.jsonl`, so that a person can read what the policy says at each stage.

#![deny(clippy::indexing_slicing)]

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::collect::Batch;
use crate::checkpoint::write_whole;
use crate::evaluate::Sample;
use reward::Problem;

/// The folder of a run that holds them.
pub const FOLDER: &str = "rollouts";

/// Steps between kept training rollouts.
pub const EVERY: usize = 8;

/// Groups of a step that are kept, one rollout of each.
const GROUPS: usize = 8;

/// Problems of an evaluation that are kept: the same ones each time, which is what makes before and after comparable.
const PROBLEMS: usize = 16;

/// One kept sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Steps done when it was sampled.
    pub step: usize,
    /// The problem's text.
    pub prompt: String,
    /// The response's text.
    pub response: String,
    /// What it was worth.
    pub reward: f64,
    /// Why it ended: `stop` or `length`.
    pub finish: String,
    /// Its tokens; older programs did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

impl Row {
    /// The response for a terminal: its first and last lines, indented, without the control characters that a terminal
    /// would obey.
    pub fn shown(&self) -> String {
        const ENDS: usize = 6;
        let response = self.response.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
        let lines: Vec<&str> = response.lines().collect();
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            if i < ENDS || i + ENDS >= lines.len() {
                text.push_str(&format!("  {line}\n"));
            } else if i == ENDS {
                text.push_str(&format!("  ... {} lines ...\n", lines.len() - 2 * ENDS));
            }
        }
        text
    }
}

/// Writes samples to a run's folder. Those that the disk has no room for wait in memory and are written with the next
/// ones, so that a disk that was full for a while leaves no gap.
#[derive(Debug)]
pub struct Samples {
    folder: PathBuf,
    /// Names and contents of the files that wait for room, and why.
    waiting: VecDeque<(String, String)>,
    trouble: Option<String>,
}

impl Samples {
    /// The samples of a run.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join(FOLDER), waiting: VecDeque::new(), trouble: None }
    }

    /// Keeps some rollouts of a training step.
    ///
    /// # Errors
    /// As [`Samples::write_waiting`].
    pub fn rollouts(&mut self, step: usize, batch: &Batch) -> Result<()> {
        let kept = batch.groups.iter().take(GROUPS).filter_map(|group| {
            let (rollout, response) = (group.rollouts.first()?, group.responses.first()?);
            Some(Row {
                step,
                prompt: group.problem.prompt.clone(),
                response: response.clone(),
                reward: *group.rewards.first()?,
                finish: rollout.finish.name().into(),
                tokens: Some(rollout.tokens.len()),
            })
        });
        self.keep(format!("step-{step:06}.jsonl"), kept)
    }

    /// Keeps some samples of an evaluation.
    ///
    /// # Errors
    /// As [`Samples::write_waiting`].
    pub fn evaluation(&mut self, step: usize, name: &str, problems: &[Problem], samples: &[Sample]) -> Result<()> {
        let kept = samples.iter().filter(|sample| sample.problem < PROBLEMS).filter_map(|sample| {
            Some(Row {
                step,
                prompt: problems.get(sample.problem)?.prompt.clone(),
                response: sample.response.clone(),
                reward: f64::from(u8::from(sample.verdict.correct)),
                finish: sample.rollout.finish.name().into(),
                tokens: Some(sample.rollout.tokens.len()),
            })
        });
        self.keep(evaluation_file(step, name), kept)
    }

    /// Whether the samples of an evaluation are there or wait for room.
    pub fn has_evaluation(&self, step: usize, name: &str) -> bool {
        let file = evaluation_file(step, name);
        self.waiting.iter().any(|(waiting, _)| *waiting == file) || self.folder.join(file).is_file()
    }

    /// Why samples wait, if any do.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn keep(&mut self, name: String, rows: impl Iterator<Item = Row>) -> Result<()> {
        let mut text = String::new();
        for row in rows {
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        self.waiting.push_back((name, text));
        self.write_waiting()
    }

    /// Writes what waits, as far as there is room for it.
    ///
    /// # Errors
    /// A file cannot be written for another reason than that. It is not worth a run, so it does not wait any longer.
    pub fn write_waiting(&mut self) -> Result<()> {
        self.trouble = None;
        while let Some((name, text)) = self.waiting.front() {
            match write(&self.folder, name, text) {
                Err(error) if is_for_want_of_room(&error) => {
                    self.trouble = Some(format!("{error:#}"));
                    break;
                }
                written => {
                    self.waiting.pop_front();
                    written?;
                }
            }
        }
        Ok(())
    }
}

fn evaluation_file(step: usize, name: &str) -> String {
    format!("eval-{step:06}-{name}.jsonl")
}

/// Whether a file could not be written because the disk, a quota or a limit on files has no room for it.
fn is_for_want_of_room(error: &anyhow::Error) -> bool {
    let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    error.downcast_ref::<io::Error>().is_some_and(|error| full.contains(&error.kind()))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    write_whole(&folder.join(name), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::read_rows;

    #[test]
    fn a_response_does_not_command_the_terminal() {
        let row = Row {
            step: 1,
            prompt: "?".into(),
            response: "a\u{1b}[2Jb\r\nc".into(),
            reward: 0.0,
            finish: "stop".into(),
            tokens: None,
        };
        assert_eq!(row.shown(), "  a\u{fffd}[2Jb\u{fffd}\n  c\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn samples_wait_for_room_and_for_nothing_else() {
        let run = tempfile::tempdir().unwrap();
        let mut samples = Samples::new(run.path());
        let folder = run.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        let row = |step| Row {
            step,
            prompt: "?".into(),
            response: "!".into(),
            reward: 1.0,
            finish: "stop".into(),
            tokens: Some(1),
        };
        // Every write to this device fails for want of room. The link is gone after the first.
        std::os::unix::fs::symlink("/dev/full", folder.join("eval-000001-a.jsonl.tmp")).unwrap();
        samples.keep(evaluation_file(1, "a"), [row(1)].into_iter()).unwrap();
        assert!(samples.trouble().unwrap().contains("eval-000001-a.jsonl: cannot write"), "{:?}", samples.trouble());
        assert!(samples.has_evaluation(1, "a") && !folder.join("eval-000001-a.jsonl").exists());
        samples.keep(evaluation_file(2, "b"), [row(2)].into_iter()).unwrap();
        assert_eq!(samples.trouble(), None);
        for (step, name) in [(1, "a"), (2, "b")] {
            assert_eq!(read_rows::<Row>(&folder.join(evaluation_file(step, name))).unwrap(), [row(step)]);
        }
        // A folder is in the way: no room will mend that.
        fs::create_dir(folder.join("eval-000003-c.jsonl.tmp")).unwrap();
        assert!(samples.keep(evaluation_file(3, "c"), [row(3)].into_iter()).is_err());
        assert!(samples.trouble().is_none() && !samples.has_evaluation(3, "c"));
    }
}
