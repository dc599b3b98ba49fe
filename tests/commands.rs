//! The commands that run a policy: eval, generate, score, bench.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use model::{Config, Text, embedded, init, weights};
use sampler::{Control, Engine, Limits, Local, Request, Sampling};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{refusal, stdout, trainer, write};

/// Two problems of Countdown.
const PROBLEMS: &str = concat!(
    r#"{"problem":"Make 18 from 4, 8, 9.","answer":"18 from 4, 8, 9","verifier":"countdown"}"#,
    "\n",
    r#"{"problem":"Make 11 from 5, 6, 10.","answer":"11 from 5, 6, 10","verifier":"countdown"}"#,
    "\n"
);

/// A policy of the embedded shape whose random weights say everything, so that agreement on it means something.
pub fn random_policy(folder: &TempDir) -> String {
    let files = embedded::files();
    let config = Config::parse(&files.config, Path::new("config.json")).unwrap();
    let model = init::random(config, 0.1, 11, DType::F32, &Device::Cpu).unwrap();
    let path = folder.path().join("policy");
    weights::save_folder(&model, &files, &path, DType::F32).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a command printed that has to succeed.
pub fn output(arguments: &[&str]) -> String {
    let output = trainer(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

pub fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn scores_are_the_samplers_own_log_probs() {
    let folder = tempfile::tempdir().unwrap();
    let path = random_policy(&folder);
    let files = model::Files::open(&path.parse().unwrap()).unwrap();
    let text = Text::new(&files).unwrap();
    let prompts: Vec<Vec<u32>> = (1..=12).map(|n| text.prompt(&format!("Make {n} from 3, 7, 12.")).unwrap()).collect();
    let mut engine = Local::new(Limits { max_rows: 5, cache_bytes: None }, sampler::Compute::F32);
    engine.load_weights(&weights::load(&files, DType::F32, &Device::Cpu).unwrap()).unwrap();
    let requests: Vec<Request> =
        prompts.iter().zip(0..).map(|(prompt, stream)| Request { prompt, stream, max_new_tokens: 60 }).collect();
    let rollouts =
        engine.generate(&requests, &Sampling::at(1.0, text.stop_tokens()), &mut |_| Control::Continue).unwrap();
    let mut lines: Vec<Value> = (prompts.iter().zip(&rollouts).enumerate())
        .map(|(i, (p, r))| json!({"id": i, "prompt_ids": p, "response_ids": r.tokens, "logprobs": "old"}))
        .collect();
    lines.insert(4, json!({"response_ids": [], "prompt_ids": [5], "note": {"kept": [1, null, "é"]}}));
    let data: Vec<String> = lines.iter().map(Value::to_string).collect();
    let file = write(&folder, "rows.jsonl", &format!("{}\n", data.join("\n\n")));

    let mut scored = rows(&output(&["score", "--model", &path, "--data", &file]));
    assert_eq!(scored.len(), 13);
    let empty = json!({"response_ids": [], "prompt_ids": [5], "note": {"kept": [1, null, "é"]}, "logprobs": []});
    assert_eq!(scored.remove(4), empty);
    for (i, (row, rollout)) in scored.iter().zip(&rollouts).enumerate() {
        assert_eq!((&row["id"], &row["response_ids"]), (&json!(i), &json!(rollout.tokens)));
        let log_probs: Vec<f64> = serde_json::from_value(row["logprobs"].clone()).unwrap();
        assert_eq!(log_probs.len(), rollout.tokens.len());
        for (scored, sampled) in log_probs.iter().zip(&rollout.log_probs) {
            assert!((scored - f64::from(*sampled)).abs() < 1e-4, "row {i}: {scored} is not {sampled}");
        }
    }
    let spread = rollouts.iter().flat_map(|r| &r.log_probs).fold((0.0f32, f32::MIN), |s, &l| (s.0.min(l), s.1.max(l)));
    assert!(spread.1 - spread.0 > 1.0, "a flat policy would agree with anything: {spread:?}");
}

#[test]
fn a_row_that_cannot_be_scored_is_refused_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"prompt_ids":[2,3],"response_ids":[4]}"#;
    let long = format!(r#"{{"prompt_ids":[2],"response_ids":{:?}}}"#, vec![3; 1024]);
    for (bad, expected) in [
        (r#"{"prompt_ids":[],"response_ids":[4]}"#, "prompt_ids is empty"),
        (r#"{"prompt_ids":[2],"response_ids":[4,112]}"#, "response_ids[1] = 112: beyond the model's vocabulary of 112"),
        (r#"{"prompt_ids":[1.5],"response_ids":[4]}"#, "prompt_ids[0] = 1.5: a token id must be a whole number"),
        (r#"{"prompt_ids":[-1],"response_ids":[4]}"#, "prompt_ids[0] = -1: "),
        (r#"{"prompt_ids":["2"],"response_ids":[4]}"#, "prompt_ids[0] = \"2\": "),
        (r#"{"prompt_ids":[99999999999],"response_ids":[4]}"#, "beyond the model's vocabulary"),
        (r#"{"prompt_ids":2,"response_ids":[4]}"#, "`prompt_ids` must be a list"),
        (r#"{"prompt_ids":[2]}"#, "there is no `response_ids`"),
        ("[1]", "a row must be"),
        ("{", "a row must be"),
        (&long, "have 1025 tokens, the model's limit is 1024"),
    ] {
        let file = write(&folder, "rows.jsonl", &format!("{good}\n{bad}\n{good}\n"));
        let message = refusal(&["score", "--model", "embedded", "--data", &file], 2);
        assert!(message.contains(&format!("{file}:2: ")) && message.contains(expected), "{bad}: {message}");
    }
}

#[test]
fn evaluation_prints_its_figures_and_keeps_its_responses() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (random_policy(&folder), folder.path().join("responses.jsonl"));
    let mut arguments = vec!["eval", "--model", &path, "--data", "countdown", "--problems", "6", "--samples", "3"];
    arguments.extend(["--max-tokens", "24", "--temperature", "0.7", "--top-p", "0.9", "--seed", "5", "--out"]);
    arguments.push(out.to_str().unwrap());
    let figures: Value = serde_json::from_str(&output(&arguments)).unwrap();
    let asked = json!({"model": path, "data": "countdown", "problems": 6, "samples": 3, "temperature": 0.7,
        "top_p": 0.9, "max_tokens": 24, "seed": 5, "fallback": "standard"});
    for (key, value) in asked.as_object().unwrap() {
        assert_eq!(&figures[key], value, "{key}");
    }
    let responses = rows(&fs::read_to_string(&out).unwrap());
    assert_eq!(responses.len(), 18);
    let mean = |of: &dyn Fn(&Value) -> f64| responses.iter().map(of).sum::<f64>() / 18.0;
    let close = |key: &str, value: f64| {
        let found = figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures}"));
        assert!((found - value).abs() < 1e-9, "{key} = {found}, not {value}");
    };
    let accuracy = mean(&|row| f64::from(u8::from(row["correct"] == true)));
    close("pass_at_1", accuracy);
    close("avg_at_k", accuracy);
    close("response_tokens", mean(&|row| row["tokens"].as_f64().unwrap()));
    close("truncated", mean(&|row| f64::from(u8::from(row["finish"] == "length"))));
    for key in ["pass_at_1_se", "avg_at_k_se", "pass_at_k", "pass_at_k_se", "response_tokens_se", "seconds"] {
        assert!(figures[key].is_number(), "{key}: {figures}");
    }
    assert!(figures["maj_at_k"].is_null(), "Countdown has many right answers");
    assert!(responses.iter().all(|row| row["problem"].is_number() && row["reason"].is_string()));

    let before = fs::read(&out).unwrap();
    output(&arguments);
    assert_eq!(fs::read(&out).unwrap(), before, "the same seed samples the same responses");
}

#[test]
fn generation_is_the_seeds_and_streams_what_it_would_write() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (random_policy(&folder), write(&folder, "problems.jsonl", PROBLEMS));
    let generate = |prompt: &str, seed: &str| {
        output(&["generate", "--model", &path, "--prompt", prompt, "--max-tokens", "80", "--seed", seed])
    };
    let first = generate("Make 18 from 4, 8, 9.", "4");
    assert!(first.len() > 1 && first.ends_with('\n'), "{first:?}");
    assert_eq!(generate("Make 18 from 4, 8, 9.", "4"), first);
    assert_ne!(generate("Make 18 from 4, 8, 9.", "5"), first);

    let text = output(&["generate", "--model", &path, "--data", &data, "--max-tokens", "80", "--seed", "4"]);
    let written = rows(&text);
    assert_eq!(written.len(), 2);
    assert_eq!(written[0]["prompt"], "Make 18 from 4, 8, 9.");
    assert_eq!(written[1]["prompt"], "Make 11 from 5, 6, 10.");
    assert_eq!(written[0]["response"], first[..first.len() - 1]);
    assert!(written.iter().all(|row| row["finish"] == "stop" || row["finish"] == "length"), "{text}");
    // A text that ends a response stays in it, as do the tokens before it.
    let whole = written[0]["response"].as_str().unwrap();
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let stop = ["generate", "--model", &path, "--data", &data, "--max-tokens", "80", "--seed", "4", "--stop", &middle];
    let stopped = rows(&output(&stop));
    let cut = stopped[0]["response"].as_str().unwrap();
    assert!(whole.starts_with(cut) && whole.find(&middle).is_some_and(|at| cut[at..].starts_with(&middle)), "{cut:?}");
    assert!(cut.len() < whole.len() && stopped[0]["finish"] == "stop", "{cut:?}");
    let responses = write(&folder, "responses.jsonl", &text);
    assert_eq!(rows(&output(&["grade", "--data", &responses])).len(), 2);
}

/// As `eval` has it: what is boxed in a thought that has not ended is no answer.
#[test]
fn generated_rows_are_graded_by_where_their_prompts_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (random_policy(&folder), write(&folder, "problems.jsonl", PROBLEMS));
    let mut generated = rows(&output(&["generate", "--model", &path, "--data", &data, "--max-tokens", "4"]));
    let out = folder.path().join("responses.jsonl").to_str().unwrap().to_owned();
    output(&["eval", "--model", &path, "--data", &data, "--max-tokens", "4", "--out", &out]);
    generated.extend(rows(&fs::read_to_string(&out).unwrap()));
    assert_eq!(generated.len(), 4);
    for row in &mut generated {
        // The embedded policy's template ends with it.
        assert_eq!(row["prompt_opens_thought"], true, "{row}");
        let grade = |row: &Value| {
            let file = write(&folder, "rows.jsonl", &row.to_string());
            rows(&output(&["grade", "--data", &file])).remove(0)["correct"].clone()
        };
        row["gold"] = "16 from 3, 7, 12".into();
        row["response"] = r"so \boxed{(12-3)+7}".into();
        assert_eq!(grade(row), false);
        row["response"] = r"so</think>\boxed{(12-3)+7}".into();
        assert_eq!(grade(row), true);
        row["response"] = r"so \boxed{(12-3)+7}".into();
        row.as_object_mut().unwrap().remove("prompt_opens_thought");
        assert_eq!(grade(row), true, "a row that does not say is taken to begin outside");
    }
}

#[test]
fn a_warm_start_can_be_repeated_from_the_settings_beside_its_policy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second) = (at("first"), at("new/second"));
    // An empty folder may be there.
    fs::create_dir(&first).unwrap();
    let mut arguments = vec!["sft", "--seed", "3", "--device", "cpu", "--out", &first];
    for set in ["train.tokens=2000", "train.batch_tokens=1000", "train.warmup_steps=1", "evaluate.problems=2"] {
        arguments.extend(["--set", set]);
    }
    output(&arguments);
    let settings = format!("{first}/sft.toml");
    output(&["sft", "--config", &settings, "--out", &second]);
    let weights = |folder: &str| fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert!(weights(&first) == weights(&second), "the settings are not those of the policy");
    let message = refusal(&["sft", "--config", &settings], 2);
    assert!(message.contains(&format!("{first}: the folder is not empty")), "{message}");
}

#[test]
fn a_bench_says_how_fast_and_how_large() {
    for (kind, tokens) in [("rollout", 10), ("train", 18)] {
        let mut arguments = vec!["bench", kind, "--model", "embedded", "--device", "cpu"];
        arguments.extend(["--batch", "2", "--prompt-tokens", "4", "--new-tokens", "5"]);
        let figures: Value = serde_json::from_str(&output(&arguments)).unwrap();
        assert_eq!((&figures["bench"], &figures["tokens"]), (&json!(kind), &json!(tokens)), "{figures}");
        let number = |key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures}"));
        assert!(number("seconds_min") <= number("seconds") && number("seconds") <= number("seconds_max"));
        assert!((number("tokens_per_second") * number("seconds") - number("tokens")).abs() < 1e-6);
        assert!(number("repeats") >= 3.0);
        // The policy's weights alone are 3 MB.
        assert!(!cfg!(target_os = "linux") || number("peak_memory_bytes") > 3e6);
    }
}

/// The figures of a bench of 12 responses of 1 to 40 tokens, whose median is 6.
fn long_tail(kind: &str, more: &[&str]) -> Value {
    let mut arguments =
        vec!["bench", kind, "--model", "embedded", "--device", "cpu", "--batch", "12", "--repeats", "0"];
    arguments.extend(["--prompt-tokens", "20", "--new-tokens", "40", "--lengths", "lognormal:6:1"]);
    arguments.extend(more);
    serde_json::from_str(&output(&arguments)).unwrap()
}

#[test]
fn a_bench_of_a_long_tail_shows_what_each_feature_saves() {
    let number = |figures: &Value, key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{key}: {figures}"));
    let rollout = |more: &[&str]| long_tail("rollout", &[&["--rows", "4", "--group", "4"], more].concat());
    let (all, unshared, halting) = (rollout(&[]), rollout(&["--no-sharing"]), rollout(&["--static-batch"]));
    for key in ["tokens", "batch", "rows", "group"] {
        assert!(all[key] == unshared[key] && all[key] == halting[key], "{key}: {all}");
    }
    assert!(number(&unshared, "fed_tokens") > number(&all, "fed_tokens") + 20.0 * 5.0, "{all} {unshared}");
    assert!(number(&halting, "steps") > number(&all, "steps"), "{all} {halting}");
    for [less, more] in [
        ["admitted_median", "first_token_median"],
        ["first_token_median", "latency_median"],
        ["latency_median", "latency_p95"],
        ["latency_p95", "seconds"],
    ] {
        assert!(number(&all, less) <= number(&all, more), "{less} is above {more}: {all}");
    }

    // No more than there are responses, or than a small model is faster with on a thread.
    let alone = |more: &[&str]| number(&long_tail("rollout", more), "rows");
    assert_eq!(alone(&["--rows", "64", "--static-batch"]), 12.0);

    let (packed, padded) = (long_tail("train", &[]), long_tail("train", &["--padded"]));
    assert_eq!(packed["tokens"], padded["tokens"]);
    assert_eq!((number(&packed, "padding"), number(&padded, "padding") > 0.2), (0.0, true), "{padded}");
    let gap = number(&packed, "loss_first") - number(&padded, "loss_first");
    assert!(gap.abs() < 1e-5, "what is behind a response has changed its loss by {gap}");
}

#[test]
fn what_cannot_be_run_ends_in_one_line_and_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir_all(run.join("checkpoints/step-000040")).unwrap();
    let (run, empty) = (run.to_str().unwrap(), folder.path().to_str().unwrap());
    let cases: &[(&[&str], &str)] = &[
        (&["eval", "--model", "no/such/model/x", "--data", "countdown"], "no/such/model/x: there is no such"),
        (&["eval", "--model", "org/name@", "--data", "countdown"], "org/name@"),
        (&["eval", "--model", "embedded", "--data", "countdwon"], "`countdwon`"),
        (&["eval", "--model", "embedded", "--data", "no/such.jsonl"], "no/such.jsonl"),
        (&["eval", "--model", "embedded", "--data", "countdown:train"], "--problems"),
        (&["eval", "--model", "embedded", "--data", "countdown", "--problems", "1", "--out", empty], empty),
        (&["eval", "--model", "embedded", "--data", "countdown", "--max-tokens", "5000"], "limit of 1024"),
        (&["generate", "--model", run, "--prompt", "x"], "checkpoints/step-000040"),
        (&["generate", "--model", empty, "--prompt", "x"], "config.json"),
        (&["generate", "--model", "embedded", "--prompt", "x", "--max-tokens", "1024"], "--max-tokens 1024"),
        (&["score", "--model", "embedded", "--data", "no/such.jsonl"], "no/such.jsonl"),
        (&["bench", "train", "--model", "embedded", "--lora-rank", "0"], "--lora-rank"),
        (&["bench", "rollout", "--model", "embedded", "--new-tokens", "1024"], "--new-tokens 1024"),
        (&["bench", "rollout", "--model", "embedded", "--lengths", "lognormal:5"], "--lengths lognormal:5: must be"),
        (&["generate", "--model", "embedded", "--prompt", "x", "--stop", ""], "stop string \"\": it is empty"),
        (&["export", run, "out"], "checkpoints/step-000040"),
        (&["export", "no/such/checkpoint", "out"], "no/such/checkpoint"),
    ];
    for (arguments, expected) in cases {
        let message = refusal(arguments, 2);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}
