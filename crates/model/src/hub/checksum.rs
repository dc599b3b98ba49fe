//! Whether a downloaded file is what the Hub's etag says.

use super::cache::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::path::Path;

/// The content's hash that an etag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// 64 hex digits: SHA-256, of files that git-lfs keeps (the weights).
    Sha256,
    /// 40 hex digits: the hash of git's blob object, of the other files; mirrors give plain SHA-1.
    Sha1,
    /// Something of the server's own, which says nothing about the content.
    Other,
}

fn kind(etag: &str) -> Kind {
    let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
    match etag.len() {
        64 if hex => Kind::Sha256,
        40 if hex => Kind::Sha1,
        _ => Kind::Other,
    }
}

/// Hashes a file; the error is its hash where that is not the etag's. An etag that is no hash is not an error.
///
/// # Errors
/// The outer one when the file cannot be read.
pub(super) fn check(path: &Path, etag: &str) -> io::Result<Result<(), String>> {
    let etag = etag.to_ascii_lowercase();
    let found = match kind(&etag) {
        Kind::Other => return Ok(Ok(())),
        Kind::Sha256 => vec![digest(path, Sha256::new())?],
        Kind::Sha1 => {
            let size = std::fs::metadata(path)?.len();
            vec![digest(path, Sha1::new_with_prefix(format!("blob {size}\0")))?, digest(path, Sha1::new())?]
        }
    };
    Ok(if found.contains(&etag) { Ok(()) } else { Err(found.into_iter().next().unwrap_or_default()) })
}

fn digest<D: Digest>(path: &Path, mut state: D) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&state.finalize())),
            n => state.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of `hello\n` that `sha256sum`, `sha1sum` and `git hash-object` print.
    #[test]
    fn knows_the_three_hashes_and_refuses_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        for right in [sha256, &sha256.to_uppercase(), git, "f572d396fae9206628714fb2ce00f72e94f2258f", "\"v1\"", "1-2"]
        {
            assert_eq!(check(&path, right).unwrap(), Ok(()), "{right}");
        }
        assert_eq!(check(&path, &sha256.replace('5', "6")).unwrap(), Err(sha256.into()));
        assert_eq!(check(&path, &git.replace('c', "d")).unwrap(), Err(git.into()));
    }
}
