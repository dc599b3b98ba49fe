//! A run that is killed again and again ends as one that was left alone: the same weights, moments, rows and samples.
//!
//! A few kills a test; `BELLOWS_KILLS=40 cargo test -p trainer --test tests kill` makes it 40 each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Two cycles with everything that leaves a trace: checkpoints at every step, names, evaluations between them.
const SMALL: &[&str] = &[
    "schedule.cycles=2",
    "schedule.cycle_steps=4",
    "schedule.l_max=128",
    "schedule.l_min=96",
    "sampler.prompts_per_step=6",
    "sampler.group_size=4",
    "evaluate.problems=8",
    "evaluate.every=3",
    "checkpoint.every=1",
    "checkpoint.keep=2",
];

/// What a row of `metrics.jsonl` may have different from run to run.
const TIMES: &[&str] = &["seconds", "rollout_tokens_per_second", "train_tokens_per_second"];

/// The run as arguments of the program.
pub fn settings() -> Vec<&'static str> {
    let sets = SMALL.iter().flat_map(|set| ["--set", set]);
    ["--seed", "5"].into_iter().chain(sets).collect()
}

/// Starts or resumes a run that writes its checkpoints while it goes on, where memory allows.
fn start(out: &Path, threads: usize) -> Child {
    start_with(out, threads, "none")
}

/// `background`: `checkpoint.background`.
fn start_with(out: &Path, threads: usize, background: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    let sets = [format!("run.threads={threads}"), format!("checkpoint.background={background}")];
    command.args(settings()).args(["--resume", "auto"]).args(sets.iter().flat_map(|set| ["--set", set]));
    command.arg("--out").arg(out);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// Waits for the end of a run; its status and what it said.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn rows(run: &Path, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join(file)).unwrap();
    let rows = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}: {line}"));
        TIMES.iter().for_each(|key| drop(row.as_object_mut().unwrap().remove(*key)));
        row
    });
    rows.collect()
}

/// Every file below a folder.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Everything that two runs of the same settings have in common is the same: rows, checkpoints, samples.
pub fn assert_same(expected: &Path, found: &Path) {
    for file in ["metrics.jsonl", "eval.jsonl"] {
        assert_eq!(rows(expected, file), rows(found, file), "{file}");
    }
    for folder in ["checkpoints", "rollouts"] {
        let of = |run: &Path| {
            let all = contents(&run.join(folder)).into_iter();
            all.map(|(path, bytes)| (path.strip_prefix(run).unwrap().to_owned(), bytes)).collect::<BTreeMap<_, _>>()
        };
        let (expected, found) = (of(expected), of(found));
        assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (path, bytes) in &expected {
            assert!(found[path] == *bytes, "{} differs", path.display());
        }
    }
}

/// Whether a checkpoint is being written at this moment.
fn is_saving(run: &Path) -> bool {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
}

/// Random numbers of a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn kills() -> u64 {
    std::env::var("BELLOWS_KILLS").map_or(4, |text| text.parse().expect("BELLOWS_KILLS is a number"))
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Kills a run at random moments, every second time inside a save, at most `most` times, and lets it end. Whether it goes
/// on while it saves changes too. Returns the kills, and how many of them were inside a save.
fn harass(out: &Path, threads: usize, name: &str, whole: Duration, most: u64, random: &mut Random) -> (u64, u64) {
    let (mut killed, mut in_saves) = (0, 0);
    let longest = whole.as_micros() as u64 / 4;
    while killed < most {
        let mut child = start_with(out, threads, if random.below(2) == 0 { "true" } else { "false" });
        let in_a_save = killed % 2 == 1;
        let patience = Duration::from_micros(random.below(longest));
        let begun = Instant::now();
        // A random moment, and then, every second time, the next save.
        while child.try_wait().unwrap().is_none() && (begun.elapsed() < patience || (in_a_save && !is_saving(out))) {
            sleep(Duration::from_micros(200));
        }
        if child.try_wait().unwrap().is_some() {
            let (status, said) = end(child);
            assert_eq!(status, Some(0), "{said}");
            break;
        }
        in_saves += u64::from(is_saving(out));
        signal(&child, name);
        let (status, said) = end(child);
        match status {
            // Before the program listens, SIGTERM ends it like any other.
            None => assert!(name == "KILL" || said.is_empty(), "{said}"),
            Some(130) => assert!(name == "TERM" && said.contains("--resume"), "{said}"),
            // It was over its last step when the signal came.
            _ => assert!(status == Some(0), "{status:?}: {said}"),
        }
        assert!(!said.contains("panicked"), "{said}");
        killed += 1;
    }
    (killed, in_saves)
}

fn killed_runs_end_like_whole_ones(name: &str, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    let (status, said) = end(start(&whole, 2));
    assert_eq!(status, Some(0), "{said}");
    let taken = begun.elapsed();
    let mut random = Random(seed);
    for threads in [1, 2] {
        let (mut killed, mut in_saves, mut runs) = (0, 0, 0);
        while killed < kills() {
            let out = folder.path().join(format!("{threads}-{runs}"));
            let done = harass(&out, threads, name, taken, kills() - killed, &mut random);
            let (status, said) = end(start(&out, threads));
            assert_eq!(status, Some(0), "{said}");
            assert_same(&whole, &out);
            fs::remove_dir_all(&out).unwrap();
            (killed, in_saves, runs) = (killed + done.0, in_saves + done.1, runs + 1);
        }
        println!("SIG{name}, {threads} threads: {killed} kills of {runs} runs, {in_saves} inside a save");
        // How many is a matter of the machine's speed; half of the kills wait for one.
        assert!(killed < 20 || in_saves >= killed / 8, "only {in_saves} of {killed} kills were inside a save");
    }
}

#[test]
fn a_run_killed_by_sigkill_ends_like_one_left_alone() {
    killed_runs_end_like_whole_ones("KILL", 11);
}

#[test]
fn a_run_stopped_by_sigterm_ends_like_one_left_alone() {
    killed_runs_end_like_whole_ones("TERM", 12);
}

/// The second signal leaves at once, and what was there before is there still.
#[test]
fn a_second_signal_leaves_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut child = start(&out, 1);
    while !out.join("checkpoints/step-000002/state.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        sleep(Duration::from_millis(1));
    }
    signal(&child, "INT");
    signal(&child, "INT");
    let begun = Instant::now();
    let (status, said) = end(child);
    assert_eq!(status, Some(130), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{said}");
    let (status, said) = end(start(&out, 1));
    assert_eq!(status, Some(0), "{said}");
}

/// A run folder is one program's.
#[test]
fn a_second_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut first = start(&out, 1);
    while !out.join("run.lock").exists() {
        assert!(first.try_wait().unwrap().is_none(), "it ended too early");
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_millis(20));
    let id = first.id();
    signal(&first, "STOP");
    let (status, said) = end(start(&out, 1));
    signal(&first, "CONT");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains(&format!("(process {id})")), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
    let (status, said) = end(start(&out, 1));
    assert_eq!(status, Some(0), "{said}");
}

/// As under `nohup`, and as in the background of a script, where Ctrl-C is ignored.
#[test]
fn a_signal_that_was_ignored_at_the_start_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP INT; exec "$0" "$@""#, env!("CARGO_BIN_EXE_trainer")]).args(settings());
    let child = command.arg("--out").arg(&out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while rows_written(&out) == 0 {
        sleep(Duration::from_millis(5));
    }
    ["HUP", "INT"].iter().for_each(|name| signal(&child, name));
    let (status, said) = end(child);
    assert_eq!((status, rows_written(&out)), (Some(0), 8), "{said}");
}

fn rows_written(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}
