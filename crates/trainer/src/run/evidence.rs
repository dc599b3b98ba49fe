//! What is kept of a step whose updates were no numbers, so that it can be made again and looked at.
//!
//! ```text
//! RUN/evidence/step-000012/rollouts.jsonl  every rollout, as `trainer score --update` takes it
//!                          reasons.txt     why each update was skipped
//!                          policy/         the weights that sampled and could not be updated
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use super::collect::Batch;
use super::open::Run;
use crate::learn::Learned;

/// The folder of a run that holds it.
const FOLDER: &str = "evidence";

/// Saves the evidence of the step at work and, where the step has changed nothing yet, a checkpoint; returns why the run
/// stops.
pub fn stop(run: &mut Run, batch: &Batch, learned: &Learned) -> anyhow::Error {
    let step = run.step + 1;
    let folder = run.folder.join(FOLDER).join(format!("step-{step:06}"));
    let evidence = match save(run, &folder, batch, learned) {
        Ok(()) => format!("the evidence is in {}", folder.display()),
        Err(error) => format!("the evidence cannot be written: {error:#}"),
    };
    let checkpoint = if learned.updates == 0 { run.save() } else { Err(anyhow!("the step was begun")) };
    let checkpoint = match (checkpoint, &run.saved) {
        (Ok(saved), _) => format!("the state before the step is in {}", saved.display()),
        (Err(_), Some(saved)) => format!("the last good checkpoint is {}", saved.display()),
        (Err(error), None) => format!("there is no checkpoint: {error:#}"),
    };
    let why = learned.skipped.last().map_or("no reason is known", String::as_str);
    anyhow!(
        "step {step}: {} updates in a row were skipped (optimizer.skip_limit), the last because {why}; {evidence}; \
         {checkpoint}; lower optimizer.learning_rate and start a new run",
        learned.skipped_in_a_row
    )
}

fn save(run: &Run, folder: &Path, batch: &Batch, learned: &Learned) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut text = String::new();
    for (index, group) in batch.groups.iter().enumerate() {
        for (i, rollout) in group.rollouts.iter().enumerate() {
            let row = json!({
                "group": index, "prompt_ids": group.prompt, "response_ids": rollout.tokens,
                "logprobs": rollout.log_probs, "reward": group.rewards.get(i), "kept": group.kept.get(i),
            });
            text.push_str(&format!("{row}\n"));
        }
    }
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    write("rollouts.jsonl", &text)?;
    write("reasons.txt", &(learned.skipped.join("\n") + "\n"))?;
    run.policy.save(&folder.join("policy"))
}
