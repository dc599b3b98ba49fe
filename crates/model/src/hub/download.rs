//! One file's bytes: resumed where an earlier try or an earlier process left off, checked, and only then given its name.

use super::answer::Found;
use super::cache::RepoCache;
use super::checksum;
use super::client::{Client, Failure, read_some};
use super::progress::Bar;
use crate::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes between two looks at the connection and the bar.
const BUFFER: usize = 1 << 18;

/// A file to be brought.
pub(super) struct Wanted<'a> {
    pub url: &'a str,
    pub found: &'a Found,
    /// What the bar calls it.
    pub label: &'a str,
    pub show: bool,
}

/// Brings a file's content into the cache's blobs, unless it is there, and returns its path.
pub(super) fn fetch(client: &Client, repo: &RepoCache, wanted: &Wanted) -> Result<PathBuf, Failure> {
    let blob = repo.blob(&wanted.found.etag);
    if blob.is_file() {
        return Ok(blob);
    }
    let folder = blob.parent().unwrap_or(&blob);
    fs::create_dir_all(folder).map_err(Error::io(folder)).map_err(Failure::Local)?;
    let _lock = repo.lock(&blob).map_err(Failure::Local)?;
    if blob.is_file() {
        return Ok(blob); // Another process brought it meanwhile.
    }
    let part = part_of(&blob);
    let mut resumed = part.length()? > 0;
    loop {
        resumed |= receive(client, wanted, &part)?;
        match part.check(wanted.found) {
            Ok(()) => break,
            Err(failure @ Failure::Corrupt(_)) => {
                part.remove()?;
                // Perhaps what was there before belonged to something else: once more, from the first byte.
                if !std::mem::take(&mut resumed) {
                    return Err(failure);
                }
            }
            Err(other) => return Err(other),
        }
    }
    part.finish(&blob)?;
    Ok(blob)
}

/// Whether part of a file, or all of it, is in the cache.
pub(super) fn has_begun(repo: &RepoCache, found: &Found) -> bool {
    let blob = repo.blob(&found.etag);
    blob.is_file() || part_of(&blob).length().is_ok_and(|length| length > 0)
}

/// Receives until the part is as long as the file. Returns whether more than one answer is in it.
fn receive(client: &Client, wanted: &Wanted, part: &Part) -> Result<bool, Failure> {
    let (mut tries, mut answers) = (0, 0);
    let mut bar = Bar::new(wanted.label, wanted.found.size, wanted.show);
    loop {
        let before = part.length()?;
        if wanted.found.size.is_some_and(|size| before >= size) {
            // What is too long is found out by the check.
            return Ok(answers > 1);
        }
        answers += 1;
        let failure = match receive_once(client, wanted, part, &mut bar) {
            Ok(()) => return Ok(answers > 1),
            // Nothing is left after what we have: the part is whole, or another file's.
            Err(Failure::Status { code: 416, .. }) if before > 0 => return Ok(true),
            Err(failure) => failure,
        };
        tries = if part.length()? > before { 1 } else { tries + 1 };
        if !failure.may_pass() || tries >= client.patience().tries {
            return Err(failure);
        }
        std::thread::sleep(client.patience().pause * 2u32.pow((tries - 1).min(5)));
    }
}

fn receive_once(client: &Client, wanted: &Wanted, part: &Part, bar: &mut Bar) -> Result<(), Failure> {
    let mut opened = client.open(wanted.url, part.length()?)?;
    let total = wanted.found.size.or(opened.total);
    let mut file = part.open(opened.start)?;
    let mut have = opened.start;
    bar.at(have, total);
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match read_some(&mut opened.body, &mut buffer) {
            Ok(n) => n,
            Err(error) => return Err(client.io_failure(&error)),
        };
        if n == 0 {
            break;
        }
        file.write_all(buffer.get(..n).unwrap_or_default()).map_err(Error::io(&part.path)).map_err(Failure::Local)?;
        have += n as u64;
        bar.at(have, total);
        if let Some(total) = total.filter(|&total| have > total) {
            return Err(Failure::Corrupt(format!("it is longer than the {total} bytes that the Hub says")));
        }
    }
    match total {
        Some(total) if have < total => Err(Failure::Broken(format!("the connection ended at {have} of {total} bytes"))),
        _ => Ok(()),
    }
}

/// A file that is not whole yet.
struct Part {
    path: PathBuf,
}

fn part_of(blob: &Path) -> Part {
    Part { path: blob.with_file_name(format!("{}.part", file_name(blob))) }
}

impl Part {
    fn local<T>(&self, result: std::io::Result<T>) -> Result<T, Failure> {
        result.map_err(Error::io(&self.path)).map_err(Failure::Local)
    }

    fn length(&self) -> Result<u64, Failure> {
        match fs::metadata(&self.path) {
            Ok(data) => Ok(data.len()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => self.local(Err(e)),
        }
    }

    /// Opens it to be written from `start` on, which is its length, or zero to begin again.
    fn open(&self, start: u64) -> Result<File, Failure> {
        let mut options = OpenOptions::new();
        options.create(true);
        if start == 0 {
            options.write(true).truncate(true);
        } else {
            options.append(true);
        }
        self.local(options.open(&self.path))
    }

    fn check(&self, found: &Found) -> Result<(), Failure> {
        let length = self.length()?;
        if let Some(size) = found.size.filter(|&size| size != length) {
            return Err(Failure::Corrupt(format!("it has {length} bytes, the Hub says {size}")));
        }
        let hash = self.local(checksum::check(&self.path, &found.etag))?;
        hash.map_err(|hash| Failure::Corrupt(format!("its checksum is {hash}, the Hub says {}", found.etag)))
    }

    fn remove(&self) -> Result<(), Failure> {
        self.local(fs::remove_file(&self.path))
    }

    /// Gives it its name, after its bytes are safely on disk: a power cut cannot leave an empty blob.
    fn finish(&self, blob: &Path) -> Result<(), Failure> {
        self.local(File::open(&self.path).and_then(|file| file.sync_all()))?;
        self.local(fs::rename(&self.path, blob))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
