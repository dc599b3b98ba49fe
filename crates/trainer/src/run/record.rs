//! Samples kept as text: `rollouts/*.jsonl`, so that a person can read what the policy says at each stage.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;

use super::collect::Batch;
use crate::evaluate::Sample;
use reward::Problem;

/// Steps between kept training rollouts.
pub const EVERY: usize = 8;

/// Groups of a step that are kept, one rollout of each.
const GROUPS: usize = 8;

/// Problems of an evaluation that are kept: the same ones each time, which is what makes before and after comparable.
const PROBLEMS: usize = 16;

#[derive(Serialize)]
struct Row<'a> {
    step: usize,
    prompt: &'a str,
    response: &'a str,
    reward: f64,
    finish: &'a str,
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
            prompt: &group.problem.prompt,
            response: &group.responses[0],
            reward: group.rewards[0],
            finish: group.rollouts[0].finish.name(),
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
            prompt: &problems[sample.problem].prompt,
            response: &sample.response,
            reward: f64::from(u8::from(sample.verdict.correct)),
            finish: sample.rollout.finish.name(),
        })
        .collect();
    write(folder, &format!("eval-{step:06}-{name}.jsonl"), &rows)
}

fn write(folder: &Path, name: &str, rows: &[Row]) -> Result<()> {
    let folder = folder.join("rollouts");
    fs::create_dir_all(&folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("{}: cannot write", path.display()))
}
