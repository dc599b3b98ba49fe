//! What can go wrong with a model, named after the file or the setting that is at fault.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, but does not hold what it should.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A model whose architecture or option this program does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The Hub could not be reached, or refused.
    #[error("{0}")]
    Hub(String),
    /// A chat template that cannot be rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn invalid(path: impl Into<PathBuf>, message: impl ToString) -> Self {
        Self::Invalid { path: path.into(), message: message.to_string() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}
