//! Whole runs on the embedded policy, as a user starts them: the same seed gives the same run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A run of a few seconds that goes through one whole cycle.
const SMALL: &[&str] = &[
    "schedule.cycle_steps=4",
    "schedule.l_max=96",
    "schedule.l_min=48",
    "sampler.prompts_per_step=6",
    "sampler.group_size=4",
    "evaluate.problems=12",
    "checkpoint.every=1",
    "checkpoint.keep=8",
];

/// What a row of `metrics.jsonl` may have different from run to run.
const TIMES: &[&str] = &["seconds", "rollout_tokens_per_second", "train_tokens_per_second"];

fn trainer(out: &Path, extra: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(["--cycles", "1", "--seed", "3", "--out"]).arg(out);
    SMALL.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command.args(extra).output().expect("the program starts")
}

fn run(out: PathBuf, extra: &[&str]) -> PathBuf {
    let output = trainer(&out, extra);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn rows(run: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join(file)).unwrap();
    let rows = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        TIMES.iter().for_each(|key| {
            row.as_object_mut().unwrap().remove(*key);
        });
        row
    });
    rows.collect()
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/cycle-1-high/model.safetensors")).unwrap()
}

fn assert_same(a: &Path, b: &Path) {
    assert_eq!(rows(a, "metrics.jsonl"), rows(b, "metrics.jsonl"));
    assert_eq!(rows(a, "eval.jsonl"), rows(b, "eval.jsonl"));
    assert!(weights(a) == weights(b), "the weights differ");
}

#[test]
fn the_same_seed_is_the_same_run_at_any_number_of_threads_and_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let one = run(folder.path().join("one"), &["--set", "run.threads=1"]);
    let two = run(folder.path().join("two"), &["--set", "run.threads=2"]);
    let again = run(folder.path().join("again"), &["--set", "run.threads=2"]);
    assert_same(&one, &two);
    assert_same(&two, &again);

    let metrics = rows(&one, "metrics.jsonl");
    assert_eq!(metrics.len(), 4);
    for row in &metrics {
        assert!(row["logprob_gap"].as_f64().unwrap() < 1e-4, "sampler and trainer disagree: {row}");
        assert!(row["kl"].as_f64().unwrap() >= 0.0);
    }
    let names: Vec<Value> = rows(&one, "eval.jsonl").into_iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["start", "cycle-1-low", "cycle-1-high"]);
    for file in ["config.toml", "report.html", "pareto.svg", "rollouts", "checkpoints/cycle-1-low/state.json"] {
        assert!(one.join(file).exists(), "{file} is missing");
    }

    // Back to the state after step 3, and on from there.
    let output = trainer(&again, &["--resume", again.join("checkpoints/step-000003").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&one, &again);
}

#[test]
fn another_seed_is_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let one = run(folder.path().join("one"), &["--set", "schedule.cycle_steps=2"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    let two = folder.path().join("two");
    command.args(["--cycles", "1", "--seed", "4", "--set", "schedule.cycle_steps=2", "--out"]).arg(&two);
    SMALL[1..].iter().for_each(|set| {
        command.args(["--set", set]);
    });
    assert!(command.output().unwrap().status.success());
    assert_ne!(rows(&one, "metrics.jsonl"), rows(&two, "metrics.jsonl"));
}

#[test]
fn every_loss_option_trains() {
    let folder = tempfile::tempdir().unwrap();
    let options: &[&[&str]] = &[
        &["loss.aggregation=sequence", "loss.advantage=leave-one-out", "optimizer.updates_per_step=2"],
        &["loss.aggregation=constant", "loss.advantage=group-mean", "loss.dual_clip=3.0", "loss.entropy_bonus=0.01"],
        &["loss.advantage=batch", "reference.kl_beta=0.05", "reference.track=1.0", "loss.importance_cap=2.0"],
        &["reward.overlong=soft", "reward.outlier_truncation=true", "model.recompute=true"],
        &["reward.overlong=filter", "reference.track=0.0", "schedule.kind=stair", "evaluate.every=1"],
    ];
    for (i, set) in options.iter().enumerate() {
        // Room enough that some responses are right and some are not.
        let mut extra =
            vec!["--set", "schedule.cycle_steps=2", "--set", "schedule.l_max=256", "--set", "schedule.l_min=192"];
        set.iter().for_each(|set| extra.extend(["--set", set]));
        let run = run(folder.path().join(i.to_string()), &extra);
        for row in rows(&run, "metrics.jsonl") {
            assert!(
                row["groups_used"].as_u64().unwrap() > 0 && row["grad_norm"].as_f64().unwrap() > 0.0,
                "{set:?}: {row}"
            );
        }
    }
}

/// Groups without signal make room for others, which are sampled, counted and paid for, and come again after a resume.
#[test]
fn groups_without_signal_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    // Short budgets, so that many groups have no right response.
    let few = ["--set", "schedule.cycle_steps=2", "--set", "sampler.prompts_per_step=4"];
    let more = [&few[..], &["--set", "sampler.resample_tries=3"]].concat();
    let dropped = run(folder.path().join("dropped"), &few);
    let replaced = run(folder.path().join("replaced"), &more);
    let (dropped, rows_replaced) = (rows(&dropped, "metrics.jsonl"), rows(&replaced, "metrics.jsonl"));
    let used = |row: &Value| row["groups_used"].as_u64().unwrap();
    let tokens = |rows: &[Value]| rows[0]["tokens_total"].as_u64().unwrap();
    assert!(used(&dropped[0]) < 4, "nothing to replace: {}", dropped[0]);
    assert!(used(&rows_replaced[0]) > used(&dropped[0]), "{}", rows_replaced[0]);
    assert!(rows_replaced.iter().all(|row| used(row) <= 4));
    assert!(tokens(&rows_replaced) > tokens(&dropped), "replacements are paid for");

    let again = run(folder.path().join("again"), &more);
    let first = again.join("checkpoints/step-000001");
    run(again.clone(), &[&more[..], &["--resume", first.to_str().unwrap()]].concat());
    assert_same(&replaced, &again);
}

#[test]
fn equal_rollout_tokens_end_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path().join("run"), &["--set", "schedule.rollout_tokens=1500"]);
    let metrics = rows(&run, "metrics.jsonl");
    assert!(metrics.len() < 4 && metrics.last().unwrap()["tokens_total"].as_u64().unwrap() >= 1500);
    assert_eq!(rows(&run, "eval.jsonl").last().unwrap()["name"], "end");
}

const LORA: &[&str] = &[
    "--set",
    "model.lora={ rank = 4, alpha = 8, targets = ['q_proj', 'v_proj', 'o_proj', 'down_proj'] }",
    "--set",
    "model.dtype=bf16",
    "--set",
    "reference.track=1",
    "--set",
    "model.micro_batch_tokens=none",
    "--set",
    "optimizer.learning_rate=1e-3",
    // Room enough that some responses are right and some are not.
    "--set",
    "schedule.l_max=256",
    "--set",
    "schedule.l_min=192",
];

/// Runs the program and returns what it printed.
fn printed(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Goes back to the state after step 2, and on from there with the settings in the folder.
fn resume(run: &Path) {
    printed(&["train", "--resume", run.join("checkpoints/step-000002").to_str().unwrap()]);
}

/// Adapters over frozen bf16 weights: the sampler has them, a checkpoint holds them alone, a run goes on from them, and
/// an export is a whole model again.
#[test]
fn adapters_train_resume_and_export() {
    let folder = tempfile::tempdir().unwrap();
    let whole = run(folder.path().join("whole"), LORA);
    let metrics = rows(&whole, "metrics.jsonl");
    for row in &metrics {
        assert!(row["logprob_gap"].as_f64().unwrap() < 1e-4, "{row}");
    }
    assert_eq!(
        metrics[0]["kl"].as_f64().map(|kl| kl.abs() < 1e-6),
        Some(true),
        "adapters begin as nothing: {}",
        metrics[0]
    );
    assert!(metrics.last().unwrap()["kl"].as_f64().unwrap() > 1e-6, "{}", metrics.last().unwrap());
    let planned = fs::read_to_string(whole.join("config.toml")).unwrap();
    assert!(
        planned.contains("micro_batch_tokens = ") && !planned.contains("micro_batch_tokens = \"none\""),
        "{planned}"
    );

    let checkpoint = whole.join("checkpoints/cycle-1-high");
    let adapters = || fs::read(checkpoint.join("adapter_model.safetensors")).unwrap();
    assert!(!checkpoint.join("model.safetensors").exists());
    let before = adapters();
    resume(&whole);
    assert!(adapters() == before, "the adapters differ");
    assert_eq!(rows(&whole, "metrics.jsonl"), metrics);

    let exported = folder.path().join("exported");
    printed(&["export", checkpoint.to_str().unwrap(), exported.to_str().unwrap(), "--dtype", "f32"]);
    let file = folder.path().join("rows.jsonl");
    fs::write(&file, r#"{"prompt_ids":[2,8,9],"response_ids":[10,11,12,13]}"#).unwrap();
    let score = |model: &Path| {
        let printed = printed(&["score", "--model", model.to_str().unwrap(), "--data", file.to_str().unwrap()]);
        let row: Value = serde_json::from_slice(&printed).unwrap();
        row["logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>()
    };
    let gap = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    let (adapted, merged) = (score(&checkpoint), score(&exported));
    assert!(gap(&adapted, &merged) < 1e-4, "{adapted:?} {merged:?}");
    assert!(gap(&adapted, &score(Path::new("embedded"))) > 1e-4, "the adapters changed nothing");

    // What was planned stays, whatever memory is free now and whatever the settings leave open again.
    let planned = "micro_batch_tokens = 1999";
    let text = fs::read_to_string(whole.join("config.toml")).unwrap();
    let before = text.lines().find(|line| line.starts_with("micro_batch_tokens")).unwrap();
    fs::write(whole.join("config.toml"), text.replace(before, planned)).unwrap();
    run(whole.clone(), &[LORA, &["--resume", "auto"]].concat());
    let text = fs::read_to_string(whole.join("config.toml")).unwrap();
    assert!(text.contains(planned), "{text}");

    let refused = trainer(&folder.path().join("again"), &["--set", &format!("model.path={}", checkpoint.display())]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("trainer export"));
}

/// All weights in bf16 with f32 master copies, and the same with products, gradients and moments in bf16: a resumed run is
/// the same run.
#[test]
fn weights_in_bf16_train_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let bf16 = ["--set", "model.dtype=bf16", "--set", "schedule.l_max=256", "--set", "schedule.l_min=192"];
    let all = ["--set", "model.compute=bf16", "--set", "sampler.compute=bf16", "--set", "optimizer.state=bf16"];
    for (name, more, gap) in [("weights", &[][..], 1e-4), ("all", &all, 0.05)] {
        let whole = run(folder.path().join(name), &[&bf16, more].concat());
        let metrics = rows(&whole, "metrics.jsonl");
        for row in &metrics {
            assert!(row["logprob_gap"].as_f64().unwrap() < gap, "{row}");
        }
        let before = weights(&whole);
        resume(&whole);
        assert_eq!(rows(&whole, "metrics.jsonl"), metrics, "{name}");
        assert!(weights(&whole) == before, "{name}: the weights differ");
    }
}
