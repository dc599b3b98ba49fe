//! Models by their Hub id: what the program does with the Hub's environment, against a Hub on loopback.

#[path = "../crates/model/tests/hub/server.rs"]
#[allow(dead_code, reason = "the tests of `model` let it fail in more ways")]
pub mod server;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device};
use model::{Config, embedded, init, weights};
use server::{Fault, Server};
use tempfile::TempDir;

use crate::program::{stdout, trainer, write};

/// Writes a random policy of the embedded shape to a folder.
pub fn random_policy(folder: &Path) {
    let files = embedded::files();
    let config = Config::parse(&files.config, Path::new("config.json")).unwrap();
    let model = init::random(config, 0.1, 5, DType::F32, &Device::Cpu).unwrap();
    weights::save_folder(&model, &files, folder, DType::F32).unwrap();
}

/// A Hub that has the files of a folder.
pub fn serve(folder: &Path) -> Server {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let bodies: Vec<(String, Vec<u8>)> =
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect();
    let bodies: Vec<(&str, &[u8])> = bodies.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    Server::start(&bodies)
}

/// A random policy, in a folder and on a Hub.
fn served(folder: &TempDir) -> (String, Server) {
    let path = folder.path().join("policy");
    random_policy(&path);
    (path.to_str().unwrap().to_owned(), serve(&path))
}

/// Runs the program with a Hub's environment and nothing else of the Hub's.
fn with(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HF_")) {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).args(arguments).output().expect("the program starts")
}

fn message(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_hub_model_scores_like_its_folder_and_then_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = served(&folder);
    let cache = folder.path().join("cache");
    let home = cache.to_str().unwrap();
    let rows = write(&folder, "rows.jsonl", r#"{"prompt_ids":[2,8,9],"response_ids":[10,11,12,13]}"#);
    let score = |model: &'static str| ["score", "--model", model, "--data", &rows].map(str::to_owned);
    let run = |environment: &[(&str, &str)], model| {
        with(environment, &score(model).iter().map(String::as_str).collect::<Vec<_>>())
    };
    let wanted = stdout(&trainer(&["score", "--model", &path, "--data", &rows]));

    server.fail("model.safetensors", &[Fault::Drop(100_000)]);
    let online = [("HF_HOME", home), ("HF_ENDPOINT", &server.endpoint)];
    let output = run(&online, "org/tiny");
    assert!(output.status.success(), "{}", message(&output));
    assert_eq!(stdout(&output), wanted);
    assert!(cache.join("hub/models--org--tiny/refs/main").is_file());

    let offline = [("HF_HOME", home), ("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_OFFLINE", "1")];
    assert_eq!(stdout(&run(&offline, "org/tiny@main")), wanted);
    let output = run(&offline, "org/tiny@v2");
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("HF_HUB_OFFLINE"), "{}", message(&output));
}

#[test]
fn refusals_are_one_line_and_keep_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let (_, server) = served(&folder);
    let home = folder.path().join("cache");
    let mut environment = vec![("HF_HOME", home.to_str().unwrap()), ("HF_ENDPOINT", server.endpoint.as_str())];
    let arguments = ["generate", "--model", "org/tiny", "--prompt", "x", "--max-tokens", "4"];
    let refused = |environment: &[(&str, &str)], expected: &str| {
        let output = with(environment, &arguments);
        let message = message(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains("org/tiny") && message.contains(expected), "{message}");
        assert!(!message.contains("verysecret"), "{message}");
    };
    server.state().token = Some("hf_verysecret".into());
    refused(&environment, "set HF_TOKEN");
    environment.push(("HF_TOKEN", "hf_verysecret"));
    server.fail("model.safetensors", &[Fault::Wrong]);
    refused(&environment, "checksum");
    let output = with(&environment, &arguments);
    assert!(output.status.success() && !message(&output).contains("verysecret"), "{}", message(&output));
    environment.push(("HF_HUB_ETAG_TIMEOUT", "soon"));
    refused(&environment[..2], "set HF_TOKEN");
    let output = with(&environment, &arguments);
    assert!(message(&output).contains("HF_HUB_ETAG_TIMEOUT = \"soon\""), "{}", message(&output));
}

#[test]
fn the_doctor_looks_no_further_than_the_environment_allows() {
    let folder = tempfile::tempdir().unwrap();
    let (_, server) = served(&folder);
    let home = folder.path().join("cache");
    let online = [("HF_HOME", home.to_str().unwrap()), ("HF_ENDPOINT", server.endpoint.as_str())];
    let offline = [online[0], online[1], ("HF_HUB_OFFLINE", "1")];
    let doctor = |environment: &[(&str, &str)]| {
        let output = with(environment, &["doctor", "--set", "model.path=org/tiny", "--set", "model.dtype=f32"]);
        stdout(&output) + &message(&output)
    };
    let text = doctor(&offline);
    assert!(text.contains("HF_HUB_OFFLINE is set"), "{text}");
    assert!(server.requests().is_empty(), "a request was made offline");
    let text = doctor(&online);
    assert!(text.contains("on the Hub, not downloaded yet"), "{text}");
    assert!(server.requests().iter().all(|request| request.path.ends_with("config.json")));
    let text = doctor(&offline);
    assert!(text.contains("its weights are not in the Hub's cache"), "{text}");
    with(&online, &["generate", "--model", "org/tiny", "--prompt", "x", "--max-tokens", "4"]);
    let text = doctor(&offline);
    assert!(text.contains("in the Hub's cache") && !text.contains("HF_HUB_OFFLINE"), "{text}");
}
