//! What can be wrong with settings, said in one line: where the value came from, the key, the value, what to do.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of `configs/`, compiled in.
    BuiltIn(&'static str),
    /// A file given by `--config`.
    File(PathBuf),
    /// `--set section.key=value`.
    Set,
    /// A flag that stands for a key, such as `--cycles`.
    Flag(&'static str),
}

impl Origin {
    /// How late in the layers this stands: the larger, the closer to what the user last typed.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::BuiltIn(_) => 0,
            Self::File(_) => 1,
            Self::Set => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(name) => write!(f, "{name} (built in)"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Set => write!(f, "--set"),
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// Settings that were refused. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read this configuration file: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// A `--set` that is not `section.key=value`.
    #[error("--set {text}: {problem}; write --set section.key=value, such as --set schedule.cycles=3")]
    BadSet {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that no section has.
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// Where it was written.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// The nearest known key, or all of the section's.
        hint: String,
    },
    /// Several of these, in the order of the settings.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<ConfigError>),
    /// A value of the wrong type or out of range.
    #[error("{origin}: {key} = {value}: {problem}")]
    Value {
        /// Where it was written.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// The value as TOML.
        value: String,
        /// What it has to be.
        problem: String,
    },
}

impl ConfigError {
    /// One error of many; `Ok` of none.
    pub(super) fn all(errors: Vec<Self>) -> Result<(), Self> {
        if errors.is_empty() { Ok(()) } else { Err(Self::Several(errors).or_only()) }
    }

    /// Of several, where there is one, that one.
    pub(super) fn or_only(self) -> Self {
        match self {
            Self::Several(mut errors) if errors.len() == 1 => errors.remove(0),
            other => other,
        }
    }
}
