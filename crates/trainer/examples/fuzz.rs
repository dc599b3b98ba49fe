//! Gives mutated files and replies to everything that reads them: `cargo run --release -p trainer --example fuzz --
//! MINUTES [TARGET...] [--seed N]`, with the targets `config`, `data`, `manifest`, `header`, `model` and `hub`; all when
//! none is named, for so many minutes each.
//!
//! A finding is a panic, settings that do not survive being written, a file outside of its folder, or ten seconds for one
//! input. Exits 1 on the first and says where the input is.

#[path = "../../reward/examples/mutate/mod.rs"]
mod mutate;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::hub::{Hub, Patience};
use mutate::{Random, mutate};
use sha2::{Digest, Sha256};
use trainer::config::{COUNTDOWN, Config, Overrides, SIRI_1_5B};
use trainer::data::{self, BadRows, Reading, Source, Use};
use trainer::{checkpoint, doctor};

/// More than any input should take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

type Finding = Result<(), String>;

/// What reads an input, and may choose how.
type Reader = Box<dyn FnMut(&[u8], &mut Random) -> Finding>;

/// Something that reads what others wrote.
struct Target {
    name: &'static str,
    /// Inputs that are right, or nearly.
    seeds: Vec<String>,
    /// What inputs are made of.
    pieces: &'static [&'static str],
    /// Reads an input; the error is a finding.
    read: Reader,
}

/// A text, and sometimes a few bytes that no text has.
fn input(target: &Target, random: &mut Random) -> Vec<u8> {
    let text = mutate(&target.seeds[random.below(target.seeds.len())], &target.seeds, target.pieces, random);
    let mut bytes = text.into_bytes();
    for _ in 0..random.below(4) * random.below(3) {
        if !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    bytes
}

fn texts(seeds: &[&str]) -> Vec<String> {
    seeds.iter().map(|seed| (*seed).to_owned()).collect()
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn config(folder: PathBuf) -> Target {
    let read = move |bytes: &[u8], random: &mut Random| {
        let path = folder.join("config.toml");
        put(&path, bytes);
        let text = String::from_utf8_lossy(bytes);
        let sets: Vec<String> = text.lines().take(random.below(3)).map(|line| line.replace(' ', "")).collect();
        for (file, sets) in [(Some(path.as_path()), &[][..]), (None, &sets[..])] {
            let Ok(config) = Config::resolve(file, sets, &Overrides::default()) else { continue };
            put(&path, config.to_toml().as_bytes());
            match Config::resolve(Some(&path), &[], &Overrides::default()) {
                Ok(again) if again == config => {}
                Ok(_) => return Err("settings that are others once they are written".into()),
                Err(error) => return Err(format!("settings that are refused once they are written: {error}")),
            }
            let _ = doctor::disk::Need::of(&shape(), &config);
        }
        Ok(())
    };
    let pieces = &[
        "[schedule]\n",
        "[model]\n",
        "=",
        "\"",
        "none",
        "nan",
        "-1",
        "1e400",
        "18446744073709551615",
        "[[0, 1]]",
        "{",
        "}",
        "embedded",
        "lora = { rank = 1, alpha = 1, targets = [] }\n",
        "\n",
        "#",
        "'''",
        "[",
        "]",
        ".",
        "0x",
        "1979-05-27",
    ];
    Target { name: "config", seeds: texts(&[COUNTDOWN, SIRI_1_5B]), pieces, read: Box::new(read) }
}

fn shape() -> model::Config {
    let files = model::embedded::files();
    model::Config::parse(&files.config, Path::new("config.json")).unwrap_or_else(|error| panic!("{error}"))
}

fn rows(folder: PathBuf) -> Target {
    let read = move |bytes: &[u8], random: &mut Random| {
        let path = folder.join("rows.jsonl");
        put(&path, bytes);
        let bad_rows = if random.below(2) == 0 { BadRows::Skip } else { BadRows::Refuse };
        let reading = Reading { bad_rows, ..Reading::default() };
        match data::load(&Source::Jsonl(path), Use::Train, &reading) {
            Ok(loaded) if loaded.problems.is_empty() => Err("data without a problem".into()),
            Err(error) if error.to_string().contains('\n') => Err(format!("an error of several lines: {error}")),
            _ => Ok(()),
        }
    };
    let seeds = texts(&[
        "{\"problem\":\"1+1?\",\"answer\":\"2\"}\n{\"question\":\"?\",\"gold\":42}\n",
        "{\"prompt\":\"Make 16 from 3, 7, 12.\",\"answer\":\"16 from 3, 7, 12\",\"verifier\":\"countdown\"}\n\n",
        "{\"problem\":\"?\",\"answer\":\"40+2 = <<40+2=42>>42\\n#### 42\",\"verifier\":\"exact\"}\r\n",
    ]);
    let pieces =
        &["{", "}", "[", "]", "\"", ":", ",", "\\u0000", "\\ud800", "null", "1e999", "\n", "\u{feff}", "####", "\\"];
    Target { name: "data", seeds, pieces, read: Box::new(read) }
}

/// `state.json` under its checksum, so that what is behind it is reached.
fn sealed(text: &[u8]) -> Vec<u8> {
    let body = text.strip_suffix(b"\n}").unwrap_or(text);
    let sum: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    [body, format!(",\n  \"checksum\": \"{sum}\"\n}}\n").as_bytes()].concat()
}

fn manifest(folder: PathBuf) -> Target {
    let checkpoint = folder.join("run/checkpoints/step-000001");
    fs::create_dir_all(&checkpoint).unwrap_or_else(|error| panic!("{error}"));
    put(&checkpoint.join("optimizer.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ");
    let read = move |bytes: &[u8], random: &mut Random| {
        let state = if random.below(2) == 0 { sealed(bytes) } else { bytes.to_vec() };
        put(&checkpoint.join(checkpoint::STATE_FILE), &state);
        let _ = checkpoint::read(&checkpoint);
        let _ = checkpoint::newest_whole(&folder.join("run"));
        Ok(())
    };
    let hash: String = Sha256::digest(b"\x08\0\0\0\0\0\0\0{}      ").iter().map(|byte| format!("{byte:02x}")).collect();
    let seed = format!(
        "{{\n  \"format\": \"bellows-checkpoint\",\n  \"version\": 2,\n  \"step\": 1,\n  \"cycle\": 1,\n  \"tokens_total\": 9,\n  \
         \"seed\": 3,\n  \"settings\": {{\n    \"run.seed\": \"3\"\n  }},\n  \"extra\": {{}},\n  \"files\": {{\n    \
         \"optimizer.safetensors\": {{\n      \"bytes\": 16,\n      \"sha256\": \"{hash}\"\n    }}\n  }}\n}}"
    );
    let pieces = &[
        "{",
        "}",
        "[",
        "\"",
        "\"../../x\": {\"bytes\": 1, \"sha256\": \"\"},",
        "-1",
        "1e99",
        "null",
        ",",
        "\n}",
        "/",
        "\\",
    ];
    Target { name: "manifest", seeds: vec![seed], pieces, read: Box::new(read) }
}

fn header(folder: PathBuf) -> Target {
    let files = model::embedded::files();
    for (name, text) in [("config.json", &files.config), ("tokenizer.json", &files.tokenizer)] {
        put(&folder.join(name), text.as_bytes());
    }
    let read = move |bytes: &[u8], random: &mut Random| {
        let length = match random.below(8) {
            0 => random.next(),
            1 => (bytes.len() + random.below(9)) as u64,
            _ => bytes.len() as u64,
        };
        let data = vec![1; random.below(64)];
        let path = folder.join("model.safetensors");
        put(&path, &[&length.to_le_bytes(), bytes, &data].concat());
        let _ = checkpoint::tensors::verify(&path, &[("w".into(), vec![2, 3])]);
        let opened = model::Files::open(&model::Source::Folder(folder.clone()));
        let opened = opened.map_err(|error| error.to_string())?;
        let _ = model::weights::load(&opened, candle_core::DType::F32, &candle_core::Device::Cpu);
        Ok(())
    };
    let seeds = texts(&[
        r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#,
        r#"{"model.norm.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
    ]);
    let pieces = &[
        "18446744073709551615",
        "4611686018427387904",
        "-1",
        "0",
        "[",
        "]",
        "{",
        "}",
        "\"F8_E4M3\"",
        "\"U8\"",
        ",",
        ":",
    ];
    Target { name: "header", seeds, pieces, read: Box::new(read) }
}

fn small_files() -> Target {
    let files = model::embedded::files();
    let seeds = [
        Some(files.config.clone()),
        files.tokenizer_config.clone(),
        files.generation_config.clone(),
        files.chat_template.clone(),
    ];
    let read = move |bytes: &[u8], random: &mut Random| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut files = model::embedded::files();
        match random.below(4) {
            0 => {
                let _ = model::Config::parse(&text, Path::new("config.json"));
                files.config = text;
            }
            1 => files.tokenizer_config = Some(text),
            2 => files.generation_config = Some(text),
            _ => files.chat_template = Some(text),
        }
        if let Ok(text) = model::Text::new(&files) {
            let _ = text.prompt("Make 16 from 3, 7, 12.");
        }
        Ok(())
    };
    let pieces = &[
        "{",
        "}",
        "[",
        "]",
        "\"",
        "null",
        "-1",
        "1e99",
        "18446744073709551615",
        "{%",
        "%}",
        "{{",
        "}}",
        "for a in range(9999)",
        "endfor",
        "messages",
        "|",
        "{% for a in messages %}",
        "{% endfor %}",
        "'",
        "eos_token",
        "*9999",
    ];
    Target { name: "model", seeds: seeds.into_iter().flatten().collect(), pieces, read: Box::new(read) }
}

fn replies(folder: PathBuf) -> Target {
    let reply = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
    let endpoint = listener.local_addr().map(|address| format!("http://{address}")).unwrap_or_default();
    let served = reply.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let bytes =
                served.lock().map(|bytes: std::sync::MutexGuard<'_, Vec<u8>>| bytes.clone()).unwrap_or_default();
            let _ = stream.write_all(&bytes);
        }
    });
    let limit = Duration::from_millis(50);
    let patience =
        Patience { connect: limit, answer: limit, silence: limit, tries: 2, pause: Duration::from_millis(1) };
    let read = move |bytes: &[u8], random: &mut Random| {
        let cache = folder.join("inside/cache");
        let _ = fs::remove_dir_all(&cache);
        if let Ok(mut reply) = reply.lock() {
            *reply = bytes.to_vec();
        }
        let (endpoint, patience) = (endpoint.clone(), patience.clone());
        let hub = Hub { endpoint, cache, token: None, offline: false, progress: false, patience };
        let revision = if random.below(2) == 0 { "main" } else { "refs/pr/1" };
        if let Err(error) = hub.download("org/tiny", revision)
            && error.to_string().contains('\n')
        {
            return Err(format!("an error of several lines: {error}"));
        }
        let listed = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
        match (listed(&folder), listed(&folder.join("inside"))) {
            (0 | 1, 0 | 1) => Ok(()),
            _ => Err("a file outside of the cache".into()),
        }
    };
    let (commit, etag) = ("a".repeat(40), "ce013625030ba8dba906f756967f9e9ca394464a");
    let seeds = vec![
        format!("HTTP/1.1 200 OK\r\nX-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\nContent-Length: 6\r\n\r\nhello\n"),
        format!(
            "HTTP/1.1 200 OK\r\nX-Repo-Commit: {commit}\r\nETag: \"v1\"\r\nContent-Length: 17\r\n\r\n{{\"weight_map\": {{}}}}"
        ),
        format!(
            "HTTP/1.1 302 Found\r\nLocation: /b\r\nX-Repo-Commit: {commit}\r\nX-Linked-Etag: \"e\"\r\nX-Linked-Size: 3\r\nContent-Length: 0\r\n\r\n"
        ),
        "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/1\r\nX-Repo-Commit: {commit}\r\nETag: W/\"x\"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        ),
    ];
    let pieces = &[
        "\r\n",
        "HTTP/1.1 ",
        "200 ",
        "302 ",
        "416 ",
        "Location: ",
        "//evil/",
        "http://127.0.0.1:1/",
        "../",
        "/",
        "ETag: ",
        "\"",
        "X-Repo-Commit: ",
        "Content-Length: 99999999999999999999",
        "Content-Range: bytes 9-1/*",
        "Transfer-Encoding: chunked\r\n",
        "ffffffffffffffff\r\n",
        "\0",
        "{\"weight_map\": {\"a\": \"../../x\"}}",
    ];
    Target { name: "hub", seeds, pieces, read: Box::new(read) }
}

/// Reads inputs for so long; how many, and the slowest.
fn fuzz(target: &mut Target, minutes: f64, seed: u64, kept: &Path) -> Result<(u64, Duration), String> {
    let mut random = Random(seed);
    let (start, mut count, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed().as_secs_f64() < 60.0 * minutes {
        let bytes = input(target, &mut random);
        count += 1;
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes, &mut random)));
        let taken = begun.elapsed();
        slowest = slowest.max(taken);
        let finding = match result {
            Err(_) => "a panic".to_owned(),
            Ok(Err(finding)) => finding,
            Ok(Ok(())) if taken > PATIENCE => format!("{taken:?} for one input"),
            Ok(Ok(())) => continue,
        };
        let path = kept.join(format!("{}.input", target.name));
        put(&path, &bytes);
        return Err(format!("{}: {finding} after {count} inputs from seed {seed}: {}", target.name, path.display()));
    }
    Ok((count, slowest))
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut seed = 1;
    if let Some(at) = arguments.iter().position(|argument| argument == "--seed") {
        seed = arguments.get(at + 1).and_then(|number| number.parse().ok()).unwrap_or(seed);
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
    let Some(minutes) = arguments.first().and_then(|number| number.parse::<f64>().ok()) else {
        eprintln!("say for how many minutes");
        return ExitCode::FAILURE;
    };
    let kept = std::env::temp_dir().join(format!("bellows-fuzz-{}", std::process::id()));
    let folder = |name: &str| {
        let path = kept.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    };
    let mut targets = [
        config(folder("config")),
        rows(folder("data")),
        manifest(folder("manifest")),
        header(folder("header")),
        small_files(),
        replies(folder("hub")),
    ];
    let wanted = &arguments[1..];
    if let Some(unknown) = wanted.iter().find(|name| targets.iter().all(|target| target.name != **name)) {
        eprintln!("there is no target {unknown}: config, data, manifest, header, model or hub");
        return ExitCode::FAILURE;
    }
    for target in targets.iter_mut().filter(|target| wanted.is_empty() || wanted.iter().any(|name| name == target.name))
    {
        match fuzz(target, minutes, seed, &kept) {
            Ok((count, slowest)) => {
                println!(
                    "{}: {count} inputs in {minutes} minutes from seed {seed}, no finding; the slowest took {slowest:?}",
                    target.name
                );
            }
            Err(finding) => {
                println!("{finding}");
                return ExitCode::FAILURE;
            }
        }
    }
    let _ = fs::remove_dir_all(&kept);
    ExitCode::SUCCESS
}
