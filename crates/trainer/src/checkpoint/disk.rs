//! What checkpoints need of the file system: names that stay in their folder, listings, flushes, renames, and small files
//! that appear whole or not at all.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result};

/// Whether a path from a file names something below the folder that it is joined to: parts joined by `/`, none of them
/// empty, `.` or `..`, and nothing that is a drive or a root anywhere.
pub(super) fn stays_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    name.split('/').all(plain)
}

/// Names in a folder, sorted; none if it doesn't exist.
pub(super) fn entries(folder: &Path) -> Result<Vec<String>> {
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.with_context(|| format!("{}: can't be listed", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.with_context(|| folder.display().to_string())?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Paths of all files under a folder, relative to it and with `/`, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in entries(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            let inner = files(&path)?;
            found.extend(inner.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

/// A second name for a file's content; a copy where the file system or its limit on links doesn't allow one.
pub(super) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(|_| ()).with_context(|| format!("{}: can't be copied to {}", from.display(), to.display()))
}

/// Flushes everything under a folder to the disk.
pub(super) fn flush(folder: &Path) -> Result<()> {
    for name in entries(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            flush(&path)?;
        } else {
            let flushed = File::options().append(true).open(&path).and_then(|file| file.sync_all());
            flushed.with_context(|| format!("{}: can't be flushed", path.display()))?;
        }
    }
    flush_folder(folder)
}

/// Makes the names in a folder last. Only Unix lets a program open a folder to do so; elsewhere the system does it.
pub(super) fn flush_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("{}: can't be flushed", folder.display()))?;
    }
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("{}: can't be renamed to {}", from.display(), to.display()))
}

pub(super) fn remove_all(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("{}: can't be deleted", path.display()))
}

/// Writes a small file by way of a second one that takes its name, so that an interruption or a full disk leaves either
/// the old content or the new.
///
/// # Errors
/// If it cannot be written; names the file.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("{}: cannot write", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_a_file_stays_in_its_folder() {
        for name in ["model.safetensors", "chat/template.jinja", "a..b"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../up", "a/../../up", "a//b", ".", "a/.", "..\\up", "C:\\x", "c:/x", "a/\0"] {
            assert!(!stays_inside(name), "{name}");
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        write_whole(&path, b"old").unwrap();
        // The way to the new content is blocked.
        fs::create_dir(folder.path().join("config.toml.tmp")).unwrap();
        let message = format!("{:#}", write_whole(&path, b"new").unwrap_err());
        assert!(message.contains("config.toml: cannot write"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
