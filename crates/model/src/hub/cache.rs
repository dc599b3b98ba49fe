//! The Hub's cache on disk, in the layout that the Hub's own programs share.
//!
//! ```text
//! CACHE/models--org--name/blobs/ETAG                a file's content, once; ETAG.part while it is downloaded
//!                         refs/REVISION             the commit that a branch or tag was last seen at
//!                         snapshots/COMMIT/FILE     a link to its blob
//!                         .no_exist/COMMIT/FILE     an empty mark: the commit has no such file
//! CACHE/.locks/models--org--name/ETAG.lock          held while a blob is downloaded
//! ```

use crate::error::{Error, Result};
use crate::files::{self, shard_names};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What is on disk of one repository.
#[derive(Clone, Debug)]
pub struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The place of the model `org/name` in a cache.
    pub fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// The commit of a revision as far as the cache knows: a commit is its own, of a branch or tag the last one seen.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_plain(commit))
    }

    /// Remembers the commit of a branch or tag.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        write_whole(&path, commit.as_bytes())
    }

    /// A file of a commit.
    pub fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(name)).filter(|path| path.is_file())
    }

    /// The folder of a commit, if it holds everything that a model must have.
    pub fn whole(&self, commit: &str) -> Option<PathBuf> {
        let has = |name: &str| self.file(commit, name).is_some();
        let weights = match self.file(commit, files::INDEX) {
            Some(index) => shard_names(&fs::read_to_string(index).ok()?).ok()?.iter().all(|name| has(name)),
            None => has(files::SINGLE),
        };
        (files::REQUIRED.iter().all(|name| has(name)) && weights).then(|| self.snapshot(commit))
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Whether the Hub has said that a commit has no such file.
    pub(super) fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.root.join(".no_exist").join(commit).join(name).is_file()
    }

    pub(super) fn set_absent(&self, commit: &str, name: &str) -> Result<()> {
        write_whole(&self.root.join(".no_exist").join(commit).join(name), b"")
    }

    /// Where the content with this etag belongs.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        // An etag is any quoted text; only a plain one can be a file name.
        let name = if is_plain(etag) { etag.to_string() } else { hex(&Sha256::digest(etag.as_bytes())) };
        self.root.join("blobs").join(name)
    }

    /// Waits until no other process downloads the same blob; the lock ends with the file it returns.
    pub(super) fn lock(&self, blob: &Path) -> Result<File> {
        let name = blob.file_name().unwrap_or_default().to_string_lossy();
        fs::create_dir_all(&self.locks).map_err(Error::io(&self.locks))?;
        let path = self.locks.join(format!("{name}.lock"));
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// Makes a blob a file of a commit, and returns its path there.
    pub(super) fn link(&self, commit: &str, name: &str, blob: &Path) -> Result<PathBuf> {
        let folder = self.snapshot(commit);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        // A link to a blob that somebody has deleted is in the way.
        if path.is_symlink() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        let target = Path::new("..").join("..").join("blobs").join(blob.file_name().unwrap_or_default());
        match symlink(&target, &path) {
            Err(_) if path.is_file() => {} // Another process was faster.
            // A file system without links: the file itself moves there, as the Hub's own client does.
            Err(_) => fs::rename(blob, &path).map_err(Error::io(&path))?,
            Ok(()) => {}
        }
        Ok(path)
    }
}

/// Writes a small file that appears whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let part = folder.join(format!(".{name}.{unique}"));
    fs::write(&part, bytes).map_err(Error::io(&part))?;
    fs::rename(&part, path).map_err(Error::io(path))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    // Windows lets only some users make links.
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Whether a revision is a whole commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether text from the network may be a file name.
pub(super) fn is_plain(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(plain)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
