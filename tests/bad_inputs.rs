//! A table of bad inputs (`tests/data/bad_inputs.toml`): the exit status and the message of each, no panic, and nothing
//! written over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::hub::server::{Fault, Server};
use crate::kill::contents;

#[derive(Deserialize)]
struct Table {
    case: Vec<Case>,
}

/// The keys are explained at the top of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    args: Vec<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    bytes: BTreeMap<String, Vec<u8>>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    damage: Vec<Damage>,
    hub: Option<Hub>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    status: i32,
    says: Vec<String>,
    #[serde(default = "one")]
    lines: usize,
    #[serde(default)]
    adds: BTreeSet<PathBuf>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Damage {
    file: String,
    replace: Option<(String, String)>,
    key: Option<(String, Value)>,
    truncate: Option<usize>,
    flip: Option<usize>,
    text: Option<String>,
    bytes: Option<Vec<u8>>,
    header: Option<String>,
    #[serde(default)]
    delete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hub {
    status: Option<u16>,
    #[serde(default)]
    kind: String,
    raw: Option<String>,
    file: Option<String>,
    fault: Option<String>,
}

/// What cases start from: a model folder and a run of two steps.
struct Fixtures {
    folder: tempfile::TempDir,
}

impl Fixtures {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        crate::hub::random_policy(&folder.path().join("policy"));
        let mut run = Command::new(env!("CARGO_BIN_EXE_trainer"));
        run.args(["--cycles", "1", "--seed", "3", "--out", "run"]).current_dir(folder.path());
        for set in ["schedule.cycle_steps=2", "schedule.l_max=48", "schedule.l_min=32", "evaluate.problems=2"]
            .into_iter()
            .chain(["sampler.prompts_per_step=2", "sampler.group_size=2", "checkpoint.every=1"])
        {
            run.args(["--set", set]);
        }
        let output = run.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    fn copy(&self, name: &str, to: &Path) {
        for (path, bytes) in contents(&self.folder.path().join(name)) {
            let to = to.join(path.strip_prefix(self.folder.path()).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
        }
    }
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

impl Damage {
    fn apply(&self, folder: &Path) {
        let path = folder.join(&self.file);
        let mut bytes = fs::read(&path).unwrap_or_default();
        if self.delete {
            return fs::remove_file(&path).unwrap();
        }
        if let Some((old, new)) = &self.replace {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(old), "{}: there is no {old}", self.file);
            bytes = text.replace(old, new).into_bytes();
        }
        if let Some((key, value)) = &self.key {
            let mut object: Value = serde_json::from_slice(&bytes).unwrap();
            object[key] = value.clone();
            bytes = object.to_string().into_bytes();
        }
        if let Some(text) = &self.text {
            bytes = text.clone().into_bytes();
        }
        if let Some(other) = &self.bytes {
            bytes = other.clone();
        }
        if let Some(header) = &self.header {
            bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).collect();
        }
        bytes.truncate(self.truncate.unwrap_or(usize::MAX));
        if let Some(bit) = self.flip {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(path, bytes).unwrap();
    }
}

impl Hub {
    /// Starts the server; its address, and what keeps it.
    fn start(&self, policy: &Path) -> (String, Option<Server>) {
        if let Some(reply) = self.raw.clone() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(reply.as_bytes());
                }
            });
            return (address, None);
        }
        let server = crate::hub::serve(policy);
        if let Some(status) = self.status {
            server.state().refusal = Some((status, self.kind.clone().leak()));
        }
        if let (Some(file), Some(fault)) = (&self.file, &self.fault) {
            let fault = match fault.as_str() {
                "wrong" => Fault::Wrong,
                "longer" => Fault::Longer(9),
                other => panic!("there is no fault {other}"),
            };
            server.fail(file, &[fault; 8]);
        }
        (server.endpoint.clone(), Some(server))
    }
}

/// What is wrong with what the program makes of a case.
fn judge(case: &Case, fixtures: &Fixtures) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    case.needs.iter().for_each(|name| fixtures.copy(name, at));
    case.files.iter().for_each(|(name, text)| put(&at.join(name), text.as_bytes()));
    case.bytes.iter().for_each(|(name, bytes)| put(&at.join(name), bytes));
    case.damage.iter().for_each(|damage| damage.apply(at));
    let before = contents(at);
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HF_")) {
        command.env_remove(name);
    }
    let hub = case.hub.as_ref().map(|hub| hub.start(&fixtures.folder.path().join("policy")));
    if let Some((address, _)) = &hub {
        command.env("HF_ENDPOINT", address);
    }
    command.env("HF_HOME", cache.path()).envs(&case.env).current_dir(at);
    let output = command.args(&case.args).output().unwrap();
    let said = String::from_utf8(output.stderr).map_err(|_| "stderr is not UTF-8")?;
    let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {said}")) };
    check(output.status.code() == Some(case.status), &format!("ended with {}", output.status))?;
    check(!said.contains("panicked"), "it panicked")?;
    check(said.lines().last().is_some_and(|line| line.starts_with("error: ")), "the last line is no error")?;
    check(case.lines == 0 || said.lines().count() == case.lines, &format!("not {} lines", case.lines))?;
    for expected in &case.says {
        check(said.contains(expected.as_str()), &format!("does not say {expected:?}"))?;
    }
    check(!said.contains("verysecret"), "tells the token")?;
    let after = contents(at);
    let may_change = |path: &&PathBuf| case.adds.contains(path.strip_prefix(at).unwrap());
    for (path, bytes) in before.iter().filter(|(path, _)| !may_change(path)) {
        check(after.get(path) == Some(bytes), &format!("{} was changed", path.display()))?;
    }
    let added = after.keys().filter(|path| !before.contains_key(*path)).map(|path| path.strip_prefix(at).unwrap());
    let unwanted: Vec<&Path> = added.filter(|path| !case.adds.contains(*path)).collect();
    check(unwanted.is_empty(), &format!("{unwanted:?} were added"))
}

#[test]
fn every_bad_input_is_refused_as_it_should_be() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/bad_inputs.toml");
    let table: Table = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(table.case.len() >= 80, "only {} cases", table.case.len());
    let names: BTreeSet<&str> = table.case.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), table.case.len(), "two cases have one name");
    let fixtures = Fixtures::new();
    let failures: Vec<String> = (table.case.par_iter())
        .filter_map(|case| judge(case, &fixtures).err().map(|why| format!("{}: {why}", case.name)))
        .collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), table.case.len(), failures.join("\n"));
}
