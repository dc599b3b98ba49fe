//! What can be wrong with a data set, in one line that says where and what to do.

#![deny(clippy::indexing_slicing)]

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why problems cannot be loaded.
#[derive(Debug, Error)]
pub enum DataError {
    /// The setting or flag names no data set.
    #[error(
        "data `{0}`: use `countdown`, a .jsonl file or a .parquet file{hint}",
        hint = .1.map(|hint| format!("; {hint}")).unwrap_or_default()
    )]
    UnknownSource(String, Option<&'static str>),
    /// Held-out problems were asked for as training data.
    #[error("data `countdown:held-out` is never trained on: use `countdown` or `countdown:train`")]
    TrainOnHeldOut,
    /// A verifier that cannot read the task's answers.
    #[error("verifier `{0}` cannot judge Countdown: use `countdown` or `auto`")]
    CountdownVerifier(reward::VerifierKind),
    /// The file cannot be opened or read.
    #[error("data file {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A row that is no problem.
    #[error("{}:{row}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line of a JSONL file or the row of a Parquet file, from 1.
        row: usize,
        /// What is wrong and what is expected.
        what: String,
    },
    /// Several rows that are no problems.
    #[error("{}:{row}: {what} (and {more} more bad rows, the next in line {next})", path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// The first of them, counted as in [`DataError::Row`].
        row: usize,
        /// What is wrong with it.
        what: String,
        /// How many others there are.
        more: usize,
        /// The first of the others.
        next: usize,
    },
    /// A file whose bad rows are skipped and that has no other.
    #[error("{0}; no row is left")]
    NoneLeft(String),
    /// A file without a single problem.
    #[error("data file {}: holds no problems", .0.display())]
    Empty(PathBuf),
    /// A file none of whose golds the verifier can judge by.
    #[error("{0}; so is every other row: is `reward.verifier` the one for these data?")]
    AllUngradable(String),
    /// A Parquet file that this build or the reader cannot handle.
    #[error("data file {}: {what}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A data set on the Hub, which has to be downloaded first.
    #[error(
        "data `{0}`: data sets are not downloaded from the Hub; download its .jsonl or .parquet file and give its path"
    )]
    Hub(String),
}
