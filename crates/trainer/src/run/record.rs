//! Samples kept as text: `rollouts/*.jsonl`, so that a person can read what the policy says at each stage.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

use super::collect::Batch;
use crate::checkpoint::write_whole;
use crate::evaluate::Sample;
use crate::metrics::read_rows;
use reward::Problem;

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
    /// Why it ended.
    pub finish: String,
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

/// Keeps some rollouts of a training step.
pub fn rollouts(folder: &Path, step: usize, batch: &Batch) -> Result<()> {
    let rows: Vec<Row> = batch
        .groups
        .iter()
        .take(GROUPS)
        .filter(|group| !group.rollouts.is_empty())
        .map(|group| Row {
            step,
            prompt: group.problem.prompt.clone(),
            response: group.responses[0].clone(),
            reward: group.rewards[0],
            finish: group.rollouts[0].finish.name().into(),
        })
        .collect();
    write(folder, &format!("step-{step:06}.jsonl"), &rows)
}

/// Keeps some samples of an evaluation.
pub fn evaluation(folder: &Path, step: usize, name: &str, problems: &[Problem], samples: &[Sample]) -> Result<()> {
    let rows: Vec<Row> = samples
        .iter()
        .filter(|sample| sample.problem < PROBLEMS)
        .map(|sample| Row {
            step,
            prompt: problems[sample.problem].prompt.clone(),
            response: sample.response.clone(),
            reward: f64::from(u8::from(sample.verdict.correct)),
            finish: sample.rollout.finish.name().into(),
        })
        .collect();
    write(folder, &format!("eval-{step:06}-{name}.jsonl"), &rows)
}

/// The response to one held-out problem at the first evaluation and at the last: of those that both finished, the first.
pub fn before_and_after(folder: &Path) -> Result<Option<[Row; 2]>> {
    let folder = folder.join("rollouts");
    if !folder.is_dir() {
        // A full disk had no room for any.
        return Ok(None);
    }
    let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.file_name().to_string_lossy().starts_with("eval-"));
    files.sort_by_key(fs::DirEntry::file_name);
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(None) };
    let (first, last) = (read_rows::<Row>(&first.path())?, read_rows::<Row>(&last.path())?);
    let mut pairs = first.into_iter().zip(last);
    let finished = |(a, b): &(Row, Row)| a.prompt == b.prompt && a.finish == "stop" && b.finish == "stop";
    Ok(pairs.find(|pair| finished(pair) && pair.0.step < pair.1.step).map(|(a, b)| [a, b]))
}

fn write(folder: &Path, name: &str, rows: &[Row]) -> Result<()> {
    let folder = folder.join("rollouts");
    fs::create_dir_all(&folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    write_whole(&folder.join(name), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_does_not_command_the_terminal() {
        let row = Row {
            step: 1,
            prompt: "?".into(),
            response: "a\u{1b}[2Jb\r\nc".into(),
            reward: 0.0,
            finish: "stop".into(),
        };
        assert_eq!(row.shown(), "  a\u{fffd}[2Jb\u{fffd}\n  c\n");
    }
}
