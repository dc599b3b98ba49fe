//! The command line: exit statuses, one-line errors, and what the quick commands print.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::{refusal, stdout, trainer, write};

/// What was typed, and what the message has to name.
const NONSENSE: &[(&[&str], &str)] = &[
    (&["--cylces", "3"], "'--cycles'"),
    (&["--cycles"], "'--cycles <N>'"),
    (&["--cycles", "three"], "'three'"),
    (&["--cycles", "-1"], "'-1'"),
    (&["--cycles", "0"], "--cycles: schedule.cycles = 0: must be at least 1"),
    (&["--seed", "99999999999999999999999"], "'--seed <N>'"),
    (&["--seed", "18446744073709551615"], "--seed: run.seed"),
    (&["--device", "gpu"], "[possible values: auto, cpu, cuda, metal]"),
    (&["--resume", "no/such/run"], "no/such/run"),
    (&["--config", "no/such/file.toml"], "no/such/file.toml"),
    (&["--set", "schedule.cycles"], "there is no `=`"),
    (&["--set", "schedule.cycels=3"], "did you mean `schedule.cycles`?"),
    (&["--set", "shedule.cycles=3"], "did you mean `schedule`?"),
    (&["--set", "cycles=3"], "did you mean `schedule.cycles`?"),
    (&["--set", "schedule.kind=cosin"], "did you mean \"cosine\"?"),
    (&["--set", "schedule.l_min=500"], "must not be above l_max"),
    (&["--set", "sampler.group_size=1"], "at least 2"),
    (&["--set", "sampler.group_size=eight"], "must be a whole number"),
    (&["--set", "optimizer.learning_rate=nan"], "optimizer.learning_rate"),
    (&["train", "--set", "run.seed=-1"], "run.seed = -1"),
    (&["trian"], "'train'"),
    (&["shedule"], "'schedule'"),
    (&["3"], "'3'"),
    (&["--cycles", "1", "schedule"], "cannot be used with"),
    (&["eval", "--model", "embedded"], "--data <DATA>"),
    (&["eval", "--model", "embedded", "--data", "countdown", "--samples", "0"], "at least 1"),
    (&["eval", "--model", "embedded", "--data", "countdown", "--temperature", "-1"], "0 or more"),
    (&["eval", "--model", "embedded", "--data", "countdown", "--top-p", "2"], "at most 1"),
    (&["generate", "--model", "embedded"], "--prompt <TEXT>"),
    (&["generate", "--model", "embedded", "--prompt", "a", "--data", "countdown"], "cannot be used with"),
    (&["bench", "dance", "--model", "embedded"], "'dance'"),
    (&["bench", "rollout", "--model", "embedded", "--dtype", "f8"], "'f8'"),
    (&["bench", "rollout", "--model", "embedded", "--compute", "f8"], "must be f32, bf16 or int8"),
    (&["grade"], "--data <FILE>"),
    (&["grade", "--data", "no/such/rows.jsonl"], "no/such/rows.jsonl"),
    (&["grade", "--data", "x", "--verifier", "maths"], "'maths'"),
    (&["schedule", "--config", "no/such/file.toml"], "no/such/file.toml"),
    (&["report"], "<RUN>..."),
    (&["report", "no/such/run"], "no/such/run"),
    (&["export", "only/one"], "<OUT>"),
    (&["sft", "--set", "train.leraning_rate=1"], "did you mean `train.learning_rate`?"),
    (&["sft", "--cycles", "3"], "'--cycles'"),
    (&["doctor", "--set", "model.dtype=f16"], "must be one of f32, bf16"),
];

#[test]
fn nonsense_ends_in_one_clear_line_and_status_2() {
    for (arguments, expected) in NONSENSE {
        let message = refusal(arguments, 2);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn nonsense_in_a_settings_file_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("[schedule]\ncycels = 3\n", ": unknown key `schedule.cycels`; did you mean `schedule.cycles`?"),
        ("[shedule]\ncycles = 3\n", ": unknown key `shedule`; did you mean `schedule`?"),
        ("[schedule]\ncycles = \"3\"\n", ": schedule.cycles = \"3\": must be a whole number, 0 or more"),
        ("[schedule]\ncycles = 0\n", ": schedule.cycles = 0: must be at least 1"),
        ("[schedule]\n\ncycles 3\n", ":3: not valid TOML"),
        ("[schedule]\ncycles = 1\ncycles = 2\n", ":3: not valid TOML"),
        ("\u{0}\u{1}", ":1: not valid TOML"),
    ] {
        let file = write(&folder, "bad.toml", text);
        let message = refusal(&["schedule", "--config", &file], 2);
        assert!(message.contains(&format!("{file}{expected}")), "{text:?}: {message}");
    }
    let message = refusal(&["schedule", "--config", folder.path().to_str().unwrap()], 2);
    assert!(message.contains("cannot read"), "{message}");
}

#[test]
fn help_is_there_for_every_command() {
    let top = trainer(&["--help"]);
    assert_eq!(top.status.code(), Some(0));
    let commands = ["train", "eval", "generate", "score", "grade", "schedule", "bench", "report", "sft", "export"];
    for command in commands.into_iter().chain(["doctor", "selftest"]) {
        assert!(stdout(&top).contains(&format!("\n  {command}")), "{command}: {}", stdout(&top));
        let help = trainer(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(stdout(&help).contains("Usage: trainer"), "{command}: {}", stdout(&help));
    }
    assert!(stdout(&trainer(&["--version"])).starts_with("trainer "));
}

/// `L(t) = mid + amp · cos(2π t / T)`, rounded to the nearest token, half away from zero (arXiv 2509.25176).
#[test]
fn the_schedule_of_the_paper_is_its_formula_at_every_step() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/siri-1.5b.toml");
    let output = trainer(&["schedule", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("step,cycle,phase,budget"));
    let rows: Vec<&str> = lines.collect();
    assert_eq!(rows.len(), 1920);
    for (step, row) in rows.iter().enumerate() {
        let angle = std::f64::consts::TAU * step as f64 / 640.0;
        let exact = 12288.0 + 4096.0 * angle.cos();
        let phase = if step % 640 < 320 { "compress" } else { "expand" };
        let start = format!("{step},{},{phase},", step / 640 + 1);
        let budget: f64 = row.strip_prefix(&start).unwrap_or_else(|| panic!("{row}")).parse().unwrap();
        assert!((budget - exact).abs() <= 0.5 + 1e-9, "{row}: {exact}");
    }
}

#[test]
fn the_schedule_takes_settings_and_draws() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("budget.svg");
    let sets = ["--set", "schedule.kind=stair", "--set", "schedule.cycles=1", "--set", "schedule.cycle_steps=3"];
    let mut arguments = vec!["schedule", "--svg", svg.to_str().unwrap()];
    arguments.extend(sets);
    let output = trainer(&arguments);
    assert_eq!(stdout(&output), "step,cycle,phase,budget\n0,1,compress,128\n1,1,compress,128\n2,1,expand,448\n");
    assert!(fs::read_to_string(&svg).unwrap().trim_start().starts_with("<svg"));
}

#[test]
fn grading_keeps_order_and_count() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        r#"{"gold":"16 from 3, 7, 12","response":"12-3=9</think>\n\\boxed{(12-3)+7}","verifier":"countdown"}"#,
        r#"{"gold":"1/2","response":"so \\boxed{\\frac{1}{2}}"}"#,
        r#"{"gold":"42","response":"no idea"}"#,
        r#"{"gold":"19 from 3, 7, 12","response":"\\boxed{12+7}","verifier":"countdown"}"#,
        r#"{"gold":"yes","response":"\\boxed{yes}","verifier":"exact","id":5}"#,
    ];
    let file = write(&folder, "rows.jsonl", &rows.join("\n"));
    let output = trainer(&["grade", "--data", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        stdout(&output),
        "{\"correct\":true,\"answer\":\"(12-3)+7\"}\n\
         {\"correct\":true,\"answer\":\"\\\\frac{1}{2}\"}\n\
         {\"correct\":false,\"answer\":null}\n\
         {\"correct\":false,\"answer\":\"12+7\"}\n\
         {\"correct\":true,\"answer\":\"yes\"}\n"
    );
}

#[test]
fn a_fallback_looks_beyond_the_box() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder, "rows.jsonl", r#"{"gold":"42","response":"It is\n#### 42"}"#);
    assert_eq!(stdout(&trainer(&["grade", "--data", &file])), "{\"correct\":false,\"answer\":null}\n");
    let output = trainer(&["grade", "--data", &file, "--fallback"]);
    assert_eq!(stdout(&output), "{\"correct\":true,\"answer\":\"42\"}\n");
}

#[test]
fn a_bad_row_is_refused_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"gold":"1","response":"2"}"#;
    for (bad, expected) in [
        ("{\"gold\":\"1\"}", "missing field `response`"),
        ("{\"gold\":1,\"response\":\"\"}", "expected a string"),
        ("not json", "a row must be"),
        (r#"{"gold":"1","response":"","verifier":"maths"}"#, "unknown verifier `maths`"),
    ] {
        let file = write(&folder, "rows.jsonl", &format!("{good}\n{bad}\n{good}\n"));
        let message = refusal(&["grade", "--data", &file], 2);
        assert!(message.contains(&format!("{file}:2: ")) && message.contains(expected), "{message}");
    }
    let mut bytes = good.as_bytes().to_vec();
    bytes.extend(b"\n\xff\xfe\n");
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, bytes).unwrap();
    let message = refusal(&["grade", "--data", path.to_str().unwrap()], 2);
    assert!(message.contains("rows.jsonl:2: "), "{message}");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer"))
        // Far more than a pipe holds.
        .args(["schedule", "--set", "schedule.cycles=100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(program.stdout.take());
    let output = program.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_doctor_says_what_would_fail() {
    let output = trainer(&["doctor", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for expected in ["memory", "threads", "needs", "key-value cache", "a run with these settings can start"] {
        assert!(stdout(&output).contains(expected), "{expected}: {}", stdout(&output));
    }
    let output = trainer(&["doctor", "--device", "cpu", "--set", "data.train=no/such/file.jsonl"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: a run with these settings would fail: "), "{stderr}");
    assert!(stderr.contains("no/such/file.jsonl") && stderr.lines().count() == 1, "{stderr}");
}
