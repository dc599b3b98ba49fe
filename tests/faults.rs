//! Runs whose numbers or data go wrong: they are stopped or go on as they should, and say so.

use std::fs;

use crate::program::{refusal, trainer, write};

const SMALL: [&str; 9] = [
    "schedule.cycles=1",
    "schedule.cycle_steps=6",
    "schedule.l_max=256",
    "schedule.l_min=192",
    "sampler.prompts_per_step=6",
    "sampler.group_size=4",
    "evaluate.problems=4",
    "checkpoint.every=1",
    "run.seed=3",
];

fn run(out: &str, more: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec!["--out", out];
    SMALL.iter().chain(more).for_each(|set| arguments.extend(["--set", set]));
    let output = trainer(&arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A rate that makes every weight infinite with its first update.
#[test]
fn a_run_whose_weights_are_no_numbers_stops_with_the_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (status, said) = run(out.to_str().unwrap(), &["optimizer.learning_rate=1e39"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("no checkpoint after step 1: ") && said.contains("infinite or not a number"), "{said}");
    assert!(said.contains("step 2: an update was skipped: the sampler's log-probs are no numbers"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: step 4: 3 updates in a row were skipped (optimizer.skip_limit)"), "{said}");
    assert!(last.contains("evidence/step-000004") && last.contains("lower optimizer.learning_rate"), "{said}");
    let evidence = out.join("evidence/step-000004");
    assert_eq!(fs::read_to_string(evidence.join("rollouts.jsonl")).unwrap().lines().count(), 24);
    assert!(evidence.join("reasons.txt").is_file() && evidence.join("policy/model.safetensors").is_file());
    let rows = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(rows.lines().nth(1).unwrap().contains("\"updates_skipped\":1"), "{rows}");
    assert!(!rows.lines().next().unwrap().contains("updates_skipped"), "{rows}");
    assert!(fs::read_dir(out.join("checkpoints")).unwrap().next().is_none(), "a checkpoint of no numbers");
}

/// A sampler's log-prob of minus infinity makes the loss of a wrong response infinite.
#[test]
fn a_step_without_a_finite_loss_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let row = |reward: u8| {
        format!("{{\"group\":1,\"prompt_ids\":[2],\"response_ids\":[4],\"logprobs\":[-1e39],\"reward\":{reward}}}\n")
    };
    let file = write(&folder, "rows.jsonl", &(row(0) + &row(1)));
    let out = folder.path().join("out");
    let arguments = ["score", "--model", "embedded", "--data", &file, "--update", out.to_str().unwrap()];
    let message = refusal(&arguments, 1);
    assert!(message.contains("there is no step along these rollouts: the "), "{message}");
    assert!(!out.exists());
}

#[test]
fn bad_rows_and_long_prompts_are_left_out_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let long = "12, ".repeat(60);
    let rows = format!(
        "{{\"problem\":\"Make 18 from 4, 8, 9.\",\"answer\":\"18 from 4, 8, 9\",\"verifier\":\"countdown\"}}\n{{\n\
         {{\"problem\":\"Make {long}\",\"answer\":\"11 from 5, 6, 10\",\"verifier\":\"countdown\"}}\n"
    );
    let file = write(&folder, "rows.jsonl", &rows);
    let out = folder.path().join("run");
    let data = format!("data.train={file}");
    let more = [data.as_str(), "data.bad_rows=skip", "schedule.cycle_steps=2"];
    let (status, said) = run(out.to_str().unwrap(), &more);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains(&format!("data.train: 1 rows left out; the first: {file}:2: is not JSON")), "{said}");
    assert!(said.contains(&format!("the first: {file}:3: ")) && said.contains("data.max_prompt_tokens = 64"), "{said}");
}
