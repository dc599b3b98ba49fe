//! The lock of a run folder: one program at a time writes there. The system releases it when the program ends, however
//! it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::commands::{UsageError, note};

/// The file of a run folder that is locked; holds the process id of the last program that was.
const FILE: &str = "run.lock";

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks a run folder, which has to exist.
    ///
    /// # Errors
    /// [`UsageError`] when another program has it; otherwise when the file cannot be written.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let options = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = options.with_context(|| format!("{}: cannot write", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                // Who has it is for the message of the next one; a full disk does without.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim().parse::<u32>().map_or(String::new(), |id| format!(" (process {id})"));
                let folder = folder.display();
                let advice = "wait for it to end or stop it, or choose another --out";
                return Err(
                    UsageError::new(format!("{folder}: another program{holder} is at work here; {advice}")).into()
                );
            }
            Err(TryLockError::Error(error)) => {
                // Some network file systems have no locks; a run there is still worth having.
                note(&format!("{}: cannot be locked ({error}); run no second program on this folder", path.display()));
            }
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_program_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let error = Lock::take(folder.path()).unwrap_err();
        assert!(error.is::<UsageError>());
        let message = error.to_string();
        assert!(message.contains(&format!("(process {})", std::process::id())), "{message}");
        drop(first);
        Lock::take(folder.path()).unwrap();
    }
}
