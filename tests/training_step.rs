//! One training step against a plain PyTorch implementation of the same formulas (`scripts/training_step.py`).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use serde_json::{Map, Value};

use crate::program::{refusal, stdout, trainer, write};

/// Of a figure, its own size; of a tensor, its largest magnitude.
const TOLERANCE: f64 = 1e-5;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/training_step")
}

/// The arguments of a step on the recorded rollouts, its settings apart.
fn arguments(data: &Path, rollouts: &Path, out: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut arguments = vec!["score".into(), "--model".into(), text(&data.join("policy"))];
    for (flag, path) in [("--reference", &*data.join("reference")), ("--data", rollouts), ("--update", out)] {
        arguments.extend([flag.to_owned(), text(path)]);
    }
    arguments
}

fn step(case: &Value, out: &Path) -> Map<String, Value> {
    let mut arguments = arguments(&data(), &data().join("rollouts.jsonl"), out);
    for (key, value) in case["settings"].as_object().unwrap() {
        arguments.extend(["--set".to_owned(), format!("{key}={}", value.to_string().trim_matches('"'))]);
    }
    let output = trainer(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}: {}", case["name"], String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn values(tensors: &HashMap<String, Tensor>, name: &str) -> Vec<f64> {
    let tensor = tensors.get(name).unwrap_or_else(|| panic!("there is no tensor {name}"));
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference over the largest magnitude of what is expected.
fn deviation(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let scale = largest(&mut expected.iter().map(|value| value.abs()));
    let difference = largest(&mut found.iter().zip(expected).map(|(f, e)| (f - e).abs()));
    if difference == 0.0 { 0.0 } else { difference / scale }
}

#[test]
fn a_training_step_equals_pytorchs_for_every_option() {
    let load = |path: &Path| safetensors::load(path, &Device::Cpu).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&fs::read_to_string(data().join("cases.json")).unwrap()).unwrap();
    let (before, expected) =
        (load(&data().join("policy/model.safetensors")), load(&data().join("expected.safetensors")));
    let folder = tempfile::tempdir().unwrap();
    let mut worst = [(0.0, String::new()), (0.0, String::new()), (0.0, String::new()), (0.0, String::new())];
    let mut note = |kind: usize, deviation: f64, what: String| {
        if deviation > worst[kind].0 {
            worst[kind] = (deviation, what);
        }
    };
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let out = folder.path().join(name);
        let figures = step(case, &out);
        for (key, value) in case["figures"].as_object().unwrap() {
            match value.as_f64() {
                // Counts and absent figures are exact.
                None => assert_eq!(&figures[key], value, "{name}: {key}"),
                Some(_) if !value.is_f64() => assert_eq!(&figures[key], value, "{name}: {key}"),
                Some(value) => {
                    note(0, deviation(&[figures[key].as_f64().unwrap()], &[value]), format!("{name}: {key}"));
                }
            }
        }
        let (after, moments) = (load(&out.join("model.safetensors")), load(&out.join("optimizer.safetensors")));
        assert_eq!(after.len(), before.len());
        for key in before.keys() {
            let old = values(&before, key);
            let moved = |new: Vec<f64>| new.iter().zip(&old).map(|(new, old)| new - old).collect::<Vec<_>>();
            let (found, wanted) = (values(&after, key), values(&expected, &format!("{name}/{key}")));
            note(1, deviation(&found, &wanted), format!("{name}: {key}"));
            let moment = format!("{key}.first_moment");
            let (first, wanted_first) = (values(&moments, &moment), values(&expected, &format!("{name}/{moment}")));
            note(2, deviation(&first, &wanted_first), format!("{name}: {moment}"));
            note(3, deviation(&moved(found), &moved(wanted)), format!("{name}: change of {key}"));
        }
    }
    for ((deviation, what), kind) in worst.iter().zip(["figures", "weights", "first moments", "changes"]) {
        println!("{kind}: {deviation:.1e} ({what})");
    }
    // A change is a small part of its weight: f32 keeps fewer of its digits.
    for ((deviation, what), tolerance) in worst.iter().zip([TOLERANCE, TOLERANCE, TOLERANCE, 1e-3]) {
        assert!(*deviation <= tolerance, "{what} is off by {deviation:e}");
    }
}

#[test]
fn a_rollout_that_cannot_be_trained_on_is_refused_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"group":1,"prompt_ids":[2],"response_ids":[4],"logprobs":[-1.0],"reward":1}"#;
    for (bad, expected) in [
        (r#"{"prompt_ids":[2],"response_ids":[4],"logprobs":[-1.0],"reward":1}"#, "there is no `group`"),
        (r#"{"group":1,"prompt_ids":[2],"response_ids":[4],"logprobs":[-1.0]}"#, "`reward` must be a number"),
        (r#"{"group":1,"prompt_ids":[2],"response_ids":[4],"logprobs":[],"reward":1}"#, "of the 1 response tokens"),
        (r#"{"group":1,"prompt_ids":[2],"response_ids":[],"logprobs":[],"reward":1}"#, "response_ids is empty"),
        (r#"{"group":1,"prompt_ids":[3],"response_ids":[4],"logprobs":[-1.0],"reward":1}"#, "different prompts"),
        (r#"{"group":1,"prompt_ids":[2],"response_ids":[4],"logprobs":[-1],"reward":1,"kept":1}"#, "`kept` must be"),
    ] {
        let file = write(&folder, "rows.jsonl", &format!("{good}\n{bad}\n"));
        let out = folder.path().join("out");
        let arguments = arguments(&data(), Path::new(&file), &out);
        let message = refusal(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), 2);
        assert!(message.contains(&format!("{file}:2: ")) && message.contains(expected), "{bad}: {message}");
        assert!(!out.exists(), "{bad}: something was written");
    }
    let message = refusal(&["score", "--model", "embedded", "--data", "x", "--set", "loss.clip_low=0.1"], 2);
    assert!(message.contains("give --update"), "{message}");
}
