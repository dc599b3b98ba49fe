//! Where problems come from, as named by `data.train`, `data.eval` and `--data`.

#![deny(clippy::indexing_slicing)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::countdown::Split;
use super::error::DataError;

/// A data set by name; parse it from a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The embedded task: `countdown`, `countdown:train` or `countdown:held-out`; without a split it is the training
    /// split in training and the held-out one in evaluation.
    Countdown(Option<Split>),
    /// A `.jsonl` file, one JSON object a line.
    Jsonl(PathBuf),
    /// A `.parquet` file.
    Parquet(PathBuf),
    /// A data set on the Hugging Face Hub, `org/name[:split]`.
    Hub {
        /// `org/name`.
        repo: String,
        /// The split after the colon, if any.
        split: Option<String>,
    },
}

impl FromStr for Source {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let unknown = |hint| DataError::UnknownSource(name.to_owned(), hint);
        match Path::new(name).extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => return Ok(Self::Jsonl(name.into())),
            Some("parquet") => return Ok(Self::Parquet(name.into())),
            Some("json") => return Err(unknown(Some("a .json file has to become .jsonl, one object a line"))),
            _ => {}
        }
        let (base, split) = match name.split_once(':') {
            Some((base, split)) => (base, Some(split)),
            None => (name, None),
        };
        if base == "countdown" {
            return match split {
                None => Ok(Self::Countdown(None)),
                Some("train") => Ok(Self::Countdown(Some(Split::Train))),
                Some("held-out") => Ok(Self::Countdown(Some(Split::HeldOut))),
                Some(_) => Err(unknown(Some("the splits of `countdown` are `train` and `held-out`"))),
            };
        }
        let legal = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match base.split_once('/') {
            Some((org, repo)) if legal(org) && legal(repo) && split.is_none_or(legal) => {
                Ok(Self::Hub { repo: base.to_owned(), split: split.map(str::to_owned) })
            }
            _ => Err(unknown(None)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Countdown(None) => f.write_str("countdown"),
            Self::Countdown(Some(Split::Train)) => f.write_str("countdown:train"),
            Self::Countdown(Some(Split::HeldOut)) => f.write_str("countdown:held-out"),
            Self::Jsonl(path) | Self::Parquet(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, split: None } => f.write_str(repo),
            Self::Hub { repo, split: Some(split) } => write!(f, "{repo}:{split}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        let hub = |split: Option<&str>| Source::Hub { repo: "openai/gsm8k".into(), split: split.map(str::to_owned) };
        let cases = [
            ("countdown", Source::Countdown(None)),
            ("countdown:train", Source::Countdown(Some(Split::Train))),
            ("countdown:held-out", Source::Countdown(Some(Split::HeldOut))),
            ("some/where/a.jsonl", Source::Jsonl("some/where/a.jsonl".into())),
            ("C:/a.parquet", Source::Parquet("C:/a.parquet".into())),
            ("openai/gsm8k", hub(None)),
            ("openai/gsm8k:test", hub(Some("test"))),
        ];
        for (name, expected) in cases {
            let source: Source = name.parse().unwrap();
            assert_eq!(source, expected);
            assert_eq!(source.to_string(), name);
        }
    }

    #[test]
    fn other_names_are_refused_with_the_forms_that_exist() {
        for name in ["", "gsm8k", "a/b/c", "./x", "/", "countdown:test", "countdown:", "org/name:", "a.json", "ö/x"] {
            let error = name.parse::<Source>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("data `{name}`: use `countdown`, a .jsonl")), "{error}");
        }
        let error = "countdown:test".parse::<Source>().unwrap_err().to_string();
        assert!(error.ends_with("the splits of `countdown` are `train` and `held-out`"), "{error}");
    }
}
