//! Where a model's files come from: the one compiled in, a folder in Hugging Face layout, or the Hub.

#![deny(clippy::indexing_slicing)]

use crate::embedded;
use crate::error::{Error, Result};
use crate::hub::Hub;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What every model folder has, beside its weights.
pub(crate) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// What a model folder may have.
pub(crate) const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"];
/// Weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Which of several files has which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A model by name, as `--model` and `model.path` take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `embedded`: the tiny policy in the program.
    Embedded,
    /// A folder with `config.json`, `tokenizer.json` and safetensors.
    Folder(PathBuf),
    /// `org/name[@revision]` on the Hub.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl FromStr for Source {
    type Err = Error;

    /// A path that exists, or that looks like a path, is a folder; `org/name` is a Hub id.
    fn from_str(text: &str) -> Result<Self> {
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let path = Path::new(text);
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '~', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let is_id = id.split('/').count() == 2 && id.split('/').all(plain);
        if path.is_dir() || (!is_id && !text.is_empty() && path.components().count() > 0 && !text.contains('@')) {
            return Ok(Self::Folder(path.into()));
        }
        // A revision becomes a path in the cache: what git allows as a name of a branch never leaves its folder.
        let plain_revision = revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
            && !revision.contains(['\\', ':', ' ', '?', '*', '['])
            && !revision.contains("..");
        if !is_id || !plain_revision {
            let message = "expected `embedded`, a folder, or a Hub id like org/name or org/name@revision";
            return Err(Error::Unsupported(format!("model {text:?}: {message}")));
        }
        Ok(Self::Hub { id: id.into(), revision: revision.into() })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Hub { id, revision } if revision == "main" => f.write_str(id),
            Self::Hub { id, revision } => write!(f, "{id}@{revision}"),
        }
    }
}

/// The small files of a model, as text, and where its weights are.
#[derive(Clone, Debug)]
pub struct Files {
    /// What messages call the model.
    pub origin: PathBuf,
    /// `config.json`.
    pub config: String,
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// `tokenizer_config.json`, where there is one.
    pub tokenizer_config: Option<String>,
    /// `chat_template.jinja`, where there is one; else the template is in `tokenizer_config`.
    pub chat_template: Option<String>,
    /// `generation_config.json`, where there is one.
    pub generation_config: Option<String>,
    /// The weights.
    pub weights: Weights,
}

/// Where weights are.
#[derive(Clone, Debug)]
pub enum Weights {
    /// One safetensors file in memory.
    Bytes(&'static [u8]),
    /// Safetensors files, the whole model between them.
    Paths(Vec<PathBuf>),
}

impl Files {
    /// Reads the small files; downloads what is missing when the source is on the Hub.
    ///
    /// # Errors
    /// When a file that a model must have is missing, unreadable, or cannot be downloaded.
    pub fn open(source: &Source) -> Result<Self> {
        match source {
            Source::Embedded => Ok(embedded::files()),
            Source::Folder(folder) => Self::from_folder(folder),
            Source::Hub { id, revision } => Self::from_folder(&Hub::from_env()?.download(id, revision)?),
        }
    }

    fn from_folder(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::invalid(folder, "there is no such model folder"));
        }
        Ok(Self {
            origin: folder.into(),
            config: required(folder, "config.json")?,
            tokenizer: required(folder, "tokenizer.json")?,
            tokenizer_config: optional(folder, "tokenizer_config.json")?,
            chat_template: optional(folder, "chat_template.jinja")?,
            generation_config: optional(folder, "generation_config.json")?,
            weights: Weights::Paths(weight_files(folder)?),
        })
    }

    /// The path of one of the files, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        self.origin.join(name)
    }
}

fn required(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).map_err(Error::io(path))
}

fn optional(folder: &Path, name: &str) -> Result<Option<String>> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let Some(index) = optional(folder, INDEX)? else {
        return Err(Error::invalid(folder, "neither model.safetensors nor model.safetensors.index.json is there"));
    };
    let shards = shard_names(&index).map_err(|e| Error::invalid(folder.join(INDEX), e))?;
    Ok(shards.into_iter().map(|name| folder.join(name)).collect())
}

/// The files that an index lists, each once.
pub(crate) fn shard_names(index: &str) -> std::result::Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_str(index).map_err(|e| e.to_string())?;
    let map = index.get("weight_map").and_then(|m| m.as_object()).ok_or("it has no weight_map")?;
    let names: std::collections::BTreeSet<_> = map.values().filter_map(|v| v.as_str()).map(String::from).collect();
    match names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(name) => Err(format!("shard {name:?} is not a plain file name")),
        None => Ok(names.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_folders_from_hub_ids() {
        let hub = |id: &str, revision: &str| Source::Hub { id: id.into(), revision: revision.into() };
        assert_eq!("embedded".parse::<Source>().unwrap(), Source::Embedded);
        assert_eq!("Qwen/Qwen2.5-0.5B".parse::<Source>().unwrap(), hub("Qwen/Qwen2.5-0.5B", "main"));
        assert_eq!("org/name@abc123".parse::<Source>().unwrap(), hub("org/name", "abc123"));
        assert_eq!("./runs/x".parse::<Source>().unwrap(), Source::Folder("./runs/x".into()));
        assert_eq!("/models/qwen".parse::<Source>().unwrap(), Source::Folder("/models/qwen".into()));
        assert_eq!("org/name@refs/pr/1".parse::<Source>().unwrap(), hub("org/name", "refs/pr/1"));
        for revision in ["", "../../x", "/etc", "a//b", "a/../b", "..", ".x", "C:\\x", "a b"] {
            assert!(format!("org/name@{revision}").parse::<Source>().is_err(), "{revision:?}");
        }
        assert!("".parse::<Source>().is_err());
    }

    #[test]
    fn an_index_cannot_point_outside_its_folder() {
        let names =
            shard_names(r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#);
        assert_eq!(names.unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        assert!(shard_names(r#"{"weight_map": {"a": "../x.safetensors"}}"#).is_err());
        assert!(shard_names("{}").is_err());
    }
}
