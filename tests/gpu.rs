//! What a user runs on a machine with a GPU, run here on the CPU: the self-test, the device's choice, and the check script.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::program::{refusal, stdout, trainer, write};

/// A policy of another shape than the embedded one, without weights.
const SHAPE: &str = r#"{"model_type": "qwen2", "vocab_size": 97, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn the_self_test_passes_on_the_cpu_and_prints_a_row_a_comparison() {
    let output = trainer(&["selftest", "--device", "cpu"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["attention", "log_prob", "adamw", "gradient norm", "training step", "generation", "random Qwen3"] {
        assert!(text.lines().any(|line| line.contains(part) && line.contains(" ok ")), "{part}: {text}");
    }
    let last = text.lines().last().unwrap();
    let rows = text.lines().filter(|line| line.contains(" ok ")).count();
    assert!(last.starts_with(&format!("{rows} comparisons on cpu (")) && last.contains(", 0 missed, "), "{last}");
}

#[test]
fn a_device_that_is_not_there_is_one_line() {
    // A program built for CUDA says what the driver says.
    let line = refusal(&["selftest", "--device", "cuda"], 2);
    assert!(line.starts_with("error: run.device = \"cuda\": ") && line.contains("--device cpu"), "{line}");
}

#[test]
fn bench_takes_random_weights_of_a_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "config.json", SHAPE);
    for (model, kind) in [(path.clone(), "rollout"), (folder.path().to_str().unwrap().to_string(), "train")] {
        let model = format!("random:{model}");
        let sizes = ["--batch", "3", "--prompt-tokens", "5", "--new-tokens", "7", "--warm-up-tokens", "2"];
        let rest = ["--repeats", "1", "--device", "cpu"];
        let output = trainer(&[&["bench", kind, "--model", &model], &sizes[..], &rest[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let figures: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!((figures["model"].as_str(), figures["device"].as_str()), (Some(model.as_str()), Some("cpu")));
        assert_eq!(figures["tokens"], if kind == "rollout" { 21 } else { 36 });
        assert!(figures["peak_device_memory_bytes"].is_null());
    }
    let refused = refusal(&["bench", "train", "--model", "random:no/such/config.json", "--device", "cpu"], 2);
    assert!(refused.contains("no/such/config.json"), "{refused}");
    let other = write(&folder, "other.json", "{}");
    assert!(
        refusal(&["bench", "train", "--model", &format!("random:{other}"), "--device", "cpu"], 2)
            .contains("other.json")
    );
}

/// The script with this program, without peers; `None` where what it needs is missing.
fn check(arguments: &[&str], out: &Path) -> Option<Output> {
    let there =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !["bash", "python3", "timeout"].iter().all(|program| there(program)) {
        eprintln!("skipped: bash, python3 or timeout is missing");
        return None;
    }
    let fixed = ["--trainer", env!("CARGO_BIN_EXE_trainer"), "--device", "cpu", "--tiny", "--no-peers", "--out"];
    let command = Command::new("bash").arg(root("scripts/gpu_check.sh")).args(fixed).arg(out).args(arguments).output();
    Some(command.unwrap())
}

#[test]
fn the_check_script_writes_a_table_of_each_part() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["train-2x32", "rollout", "embedded", "gsm8k"] {
        let Some(output) = check(&["--part", part], folder.path()) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{part}: {stderr}");
    }
    let table = fs::read_to_string(folder.path().join("table.md")).unwrap();
    let row =
        |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {table}"));
    for work in ["train-2x32", "rollout"] {
        assert!(!row(&format!("| {work} | bellows |")).contains("no result"), "{table}");
    }
    // What was left out is in the table, with the reason.
    assert!(row("| rollout | transformers generate |").contains("--no-peers"), "{table}");
    assert!(row("- gsm8k: status skipped").contains("--model and --data"), "{table}");
    assert!(row("- embedded: 2 steps in ").contains("tokens/s"), "{table}");
    let raw = fs::read_to_string(folder.path().join("raw.txt")).unwrap();
    assert!(raw.contains("tokens_per_second"), "{raw}");
    let results = fs::read_to_string(folder.path().join("results.jsonl")).unwrap();
    assert!(results.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{results}");
}

#[test]
fn the_check_script_fails_where_the_self_test_does_not_pass_and_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    // A later --trainer wins: a program that has a version and computes nothing. (Not a script that is written here: a test beside
    // this one may hold it open while it starts a program, and then it cannot be executed.)
    let Some(output) = check(&["--part", "selftest", "--trainer", "true"], folder.path()) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let table = fs::read_to_string(folder.path().join("table.md")).unwrap();
    assert!(table.contains("selftest: no result"), "{table}");
    let unusable = ["--trainer", "no-such-program", "--trainer", "false"];
    for arguments in [&["--part", "nothing"][..], &["--nothing"], &unusable[..2], &unusable[2..]] {
        let Some(output) = check(arguments, folder.path()) else { return };
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{arguments:?}");
    }
}
