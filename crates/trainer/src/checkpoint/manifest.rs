//! `state.json`: where a run stands, and the size and SHA-256 of every other file of its checkpoint, under a checksum of
//! its own. Nothing of a checkpoint is used before all of it is what was written.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{files, stays_inside};
use super::tensors::TensorFile;
use super::{OPTIMIZER_FILE, STATE_FILE, State};

/// Raised whenever a checkpoint of an older program can no longer be read.
const VERSION: u32 = 2;
const FORMAT: &str = "bellows-checkpoint";
/// More than any state takes: a file that is longer is not read.
const LONGEST: u64 = 16 << 20;

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

/// The content of `state.json`, its checksum apart.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    #[serde(flatten)]
    state: State,
    /// Each other file by its path in the folder, with `/`.
    files: BTreeMap<String, Entry>,
}

/// What a file has to be.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// Hexadecimal.
    sha256: String,
}

impl Entry {
    fn of(path: &Path) -> io::Result<Self> {
        let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER];
        loop {
            let part = match file.read(&mut buffer) {
                Ok(0) => return Ok(Self { bytes, sha256: hex(&hash.finalize()) }),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hash.update(part);
            bytes += part.len() as u64;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lists and hashes the files of a folder that becomes a checkpoint, and writes its `state.json`.
pub(super) fn write(folder: &Path, state: &State) -> Result<()> {
    write_listing(folder, state, &files(folder)?)
}

/// The same for these files.
pub(super) fn write_listing(folder: &Path, state: &State, names: &[String]) -> Result<()> {
    let path = folder.join(STATE_FILE);
    if names.iter().any(|name| name == STATE_FILE) {
        bail!("{}: the model's files may not include it", path.display());
    }
    let entry = |name: &String| {
        let path = folder.join(name);
        let entry = Entry::of(&path).with_context(|| format!("{}: can't be read again", path.display()))?;
        Ok((name.clone(), entry))
    };
    // One after the other: while a run goes on, its threads have better to do.
    let files = names.iter().map(entry).collect::<Result<_>>()?;
    let manifest = Manifest { format: FORMAT.to_owned(), version: VERSION, state: state.clone(), files };
    let text = serde_json::to_string_pretty(&manifest)?;
    let body = text.strip_suffix("\n}").context("a state is not a JSON object")?;
    fs::write(&path, sealed(body)).with_context(|| format!("{}: can't be written", path.display()))
}

/// The text with its own checksum as its last key: any other text is not what was written.
fn sealed(body: &str) -> String {
    format!("{body},\n  \"checksum\": \"{}\"\n}}\n", hex(&Sha256::digest(body)))
}

/// Whether a text is one that [`sealed`] made.
fn is_sealed(text: &str) -> bool {
    text.rsplit_once(",\n  \"checksum\": \"").is_some_and(|(body, _)| sealed(body) == text)
}

/// Reads where a run stood, checking `state.json` alone.
pub(super) fn read_state(checkpoint: &Path) -> Result<State> {
    Ok(open(checkpoint)?.state)
}

/// Reads where a run stood and checks every file of the checkpoint.
pub(super) fn read_whole(checkpoint: &Path) -> Result<State> {
    let manifest = open(checkpoint)?;
    let shown = checkpoint.join(STATE_FILE);
    let shown = shown.display();
    ensure!(manifest.files.contains_key(OPTIMIZER_FILE), "{shown}: lists no {OPTIMIZER_FILE}");
    if let Some(name) = manifest.files.keys().find(|name| !stays_inside(name)) {
        bail!("{shown}: lists {name:?}, which is not a file of its folder");
    }
    // Sizes first: they cost nothing.
    for (name, entry) in &manifest.files {
        let path = checkpoint.join(name);
        let found =
            fs::metadata(&path).with_context(|| format!("{}: missing from the checkpoint", path.display()))?.len();
        ensure!(found == entry.bytes, "{}: torn: {found} bytes, {STATE_FILE} says {}", path.display(), entry.bytes);
    }
    manifest.files.par_iter().try_for_each(|(name, entry)| check(&checkpoint.join(name), entry))?;
    Ok(manifest.state)
}

fn check(path: &Path, entry: &Entry) -> Result<()> {
    let found = Entry::of(path).with_context(|| format!("{}: can't be read", path.display()))?;
    let shown = path.display();
    ensure!(found == *entry, "{shown}: damaged: its SHA-256 is {}, {STATE_FILE} says {}", found.sha256, entry.sha256);
    if path.extension().is_some_and(|kind| kind == "safetensors") {
        TensorFile::open(path)?;
    }
    Ok(())
}

fn open(checkpoint: &Path) -> Result<Manifest> {
    let path = checkpoint.join(STATE_FILE);
    let shown = path.display();
    let unreadable = || format!("{shown}: can't be read, so its folder is no checkpoint");
    let size = fs::metadata(&path).with_context(unreadable)?.len();
    ensure!(size <= LONGEST, "{shown}: {size} bytes are no state of a checkpoint");
    let text = String::from_utf8(fs::read(&path).with_context(unreadable)?)
        .map_err(|_| anyhow::anyhow!("{shown}: damaged: not UTF-8"))?;
    let header: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{shown}: torn or not JSON"))?;
    ensure!(
        header.get("format").is_some_and(|format| format == FORMAT),
        "{shown}: not the state of a checkpoint (its `format` is not \"{FORMAT}\")"
    );
    match header.get("version") {
        Some(version) if version == VERSION => {}
        other => {
            let found = other.unwrap_or(&serde_json::Value::Null);
            bail!("{shown}: checkpoint version {found}, this program reads {VERSION}");
        }
    }
    ensure!(is_sealed(&text), "{shown}: damaged: its checksum is not that of its text");
    serde_json::from_value(header).with_context(|| shown.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_sealed_text_counts() {
        let text = sealed("{\n  \"step\": 1");
        assert!(is_sealed(&text) && serde_json::from_str::<serde_json::Value>(&text).is_ok());
        for bit in 0..8 * text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(String::from_utf8(bytes).map_or(true, |text| !is_sealed(&text)), "bit {bit}");
        }
        assert!(!is_sealed(&text[..text.len() - 1]) && !is_sealed(""));
    }
}
