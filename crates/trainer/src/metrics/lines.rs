//! A JSONL file that rows are appended to: whole rows or none, none lost while the disk is full, none of a future that is
//! given up.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::checkpoint::write_whole;

/// Figures that a row may lack: one that is not tracked, and the errors of a single problem.
const MAY_BE_NULL: [&str; 3] = ["kl", "pass_at_1_se", "response_tokens_se"];

/// A JSONL file open for appending.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes of the rows that are written.
    written: u64,
    /// Rows that wait for room, and why.
    pending: String,
    trouble: Option<String>,
    /// Whether half of a row may be behind the rows that are written.
    torn: bool,
}

impl Lines {
    /// Opens `path` at its end, making it if need be.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let written = file.metadata()?.len();
            Ok::<_, io::Error>((file, written))
        };
        let (file, written) = open().with_context(|| format!("{}: cannot write", path.display()))?;
        Ok(Self { path, file, written, pending: String::new(), trouble: None, torn: false })
    }

    /// Writes `row` as one line, in one call, and returns it as an object. Where there is no room for it, it waits.
    pub(super) fn append(&mut self, row: &impl Serialize, step: usize) -> Result<Map<String, Value>> {
        let Value::Object(object) = serde_json::to_value(row)? else { bail!("a row is not a JSON object") };
        // serde_json turns NaN and infinity into null, which is a mistake but for the figures that may be absent.
        let may_lack = |key: &str| MAY_BE_NULL.contains(&key);
        if let Some((key, _)) = object.iter().find(|(key, value)| value.is_null() && !may_lack(key)) {
            bail!("{}: step {step}: {key} is infinite or not a number", self.path.display());
        }
        self.pending.push_str(&(serde_json::to_string(&object)? + "\n"));
        self.write_pending();
        Ok(object)
    }

    fn write_pending(&mut self) {
        match self.write() {
            Ok(()) => {
                self.written += self.pending.len() as u64;
                self.pending.clear();
                self.trouble = None;
            }
            Err(error) => {
                // Half of a row would spoil the next one. Where even this fails, nothing follows it before it succeeds, and
                // readers leave a last row that does not end out.
                self.torn = self.file.set_len(self.written).is_err();
                self.trouble = Some(format!("{}: cannot write: {error}", self.path.display()));
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.written)?;
            self.torn = false;
        }
        self.file.write_all(self.pending.as_bytes())?;
        self.file.flush()
    }

    /// Why rows wait, if any do.
    pub(super) fn waiting(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Writes the rows that wait, and makes all of them last.
    pub(super) fn sync(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.write_pending();
        }
        if let Some(trouble) = &self.trouble {
            bail!("{trouble}");
        }
        self.file.sync_all().with_context(|| format!("{}: cannot write", self.path.display()))
    }
}

/// Rewrites the JSONL file at `path` without the rows whose `step` is above `step` (all rows if there is none), by way of
/// a second file that takes its name. Kept lines keep their bytes. Returns the steps of the rows that are kept.
pub(super) fn keep_up_to(path: &Path, step: Option<usize>) -> Result<BTreeSet<usize>> {
    #[derive(Deserialize)]
    struct Step {
        step: usize,
    }
    let text = match step {
        Some(_) => read(path)?,
        // A run that stopped before its files were made begins with none.
        None if !path.exists() => return Ok(BTreeSet::new()),
        None => read(path)?,
    };
    let (mut kept, mut steps) = (String::with_capacity(text.len()), BTreeSet::new());
    for (number, line) in whole(&text) {
        let row: Step = parse(path, number, line)?;
        if step.is_some_and(|step| row.step <= step) {
            kept.push_str(line);
            kept.push('\n');
            steps.insert(row.step);
        }
    }
    // A full disk has no room for a second copy, and needs none if nothing changes.
    if kept != text {
        write_whole(path, kept.as_bytes())?;
    }
    Ok(steps)
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, number: usize, line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("{}: line {number} is not a row", path.display()))
}

/// The lines that end, with their numbers from 1; blank ones are passed over.
pub(super) fn whole(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n')
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, line.strip_suffix('\n')?)))
        .filter(|(_, line)| !line.trim().is_empty())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_has_no_room_waits_and_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        // Every write to this device fails for want of room.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut lines =
            Lines { path: path.clone(), file: full, written: 0, pending: String::new(), trouble: None, torn: false };
        lines.append(&serde_json::json!({"step": 1}), 1).unwrap();
        assert!(lines.waiting().unwrap().contains("rows.jsonl: cannot write: "), "{:?}", lines.waiting());
        assert!(lines.sync().is_err());
        // Half of the row is there, and could not be cut off.
        assert!(lines.torn);
        fs::write(&path, "{\"st").unwrap();
        // Room again.
        lines.file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        lines.append(&serde_json::json!({"step": 2}), 2).unwrap();
        lines.sync().unwrap();
        assert_eq!(lines.waiting(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }
}
