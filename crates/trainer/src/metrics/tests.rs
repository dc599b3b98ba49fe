//! Rows written, read, resumed, and kept while a disk is full.

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
        updates_skipped: 0,
        graders_failed: 0,
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
        pass_at_1_se: Some(0.02),
        pass_at_k: accuracy,
        response_tokens: tokens,
        response_tokens_se: Some(5.0),
        truncated: 0.25,
        tokens_total: 59_568 * step as u64,
        graders_failed: 0,
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
fn an_unknown_error_is_null_and_a_file_without_null_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MetricsWriter::create(dir.path()).unwrap();
    let row = EvalRow { pass_at_1_se: None, response_tokens_se: None, ..eval_row(0, "start", 1.0, 300.0) };
    writer.eval(&row).unwrap();
    let path = dir.path().join(EVALS_FILE);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""pass_at_1_se":null"#) && text.contains(r#""response_tokens_se":null"#), "{text}");
    assert_eq!(read_evals(dir.path()).unwrap(), [row]);
    // As programs wrote it that took an unknown error for zero.
    fs::write(&path, text.replace("null", "0.0")).unwrap();
    assert_eq!(read_evals(dir.path()).unwrap()[0].pass_at_1_se, Some(0.0));
    assert_eq!([plus_minus(Some(0.25), 1), plus_minus(None, 1)], [" ± 0.2", ""]);
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

    let mut writer = MetricsWriter::resume(dir.path(), Some(3)).unwrap();
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
    let path = dir.path().join(STEPS_FILE);
    let before = fs::read_to_string(&path).unwrap();
    fs::write(&path, before + "{\"step\":\"two\"}\n").unwrap();
    for message in [
        format!("{:#}", read_steps(dir.path()).unwrap_err()),
        format!("{:#}", MetricsWriter::resume(dir.path(), Some(1)).unwrap_err()),
    ] {
        assert!(message.contains("metrics.jsonl: line 2"), "{message}");
    }
    let missing = format!("{:#}", read_steps(Path::new("no/such/run")).unwrap_err());
    assert!(missing.contains("no/such/run/metrics.jsonl"), "{missing}");
}
