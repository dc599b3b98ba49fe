//! Models from the Hugging Face Hub, through its usual cache and environment: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`,
//! `HF_HUB_OFFLINE`.

use crate::error::{Error, Result};
use crate::files::shard_names;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::path::{Path, PathBuf};

const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"];
const INDEX: &str = "model.safetensors.index.json";

/// Whether the environment forbids the network.
pub fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// The address of the Hub.
pub fn endpoint() -> String {
    std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into())
}

fn repo(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.into(), RepoType::Model, revision.into())
}

/// The folder of a model whose `config.json` is in the cache already.
pub fn cached(id: &str, revision: &str) -> Option<PathBuf> {
    Cache::from_env().repo(repo(id, revision)).get("config.json").and_then(|p| p.parent().map(Path::to_path_buf))
}

/// Only the `config.json` of a model: enough to know what it needs, before its weights are downloaded.
///
/// # Errors
/// When it is neither in the cache nor reachable.
pub fn config(id: &str, revision: &str) -> Result<(PathBuf, String)> {
    let path = Fetcher::new(id, revision)?.required("config.json")?;
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    Ok((path, text))
}

/// Brings a model's files into the cache, with a progress bar each, and returns their folder.
///
/// # Errors
/// When a file that a model must have cannot be had: names the model, the file, and what to do.
pub fn download(id: &str, revision: &str) -> Result<PathBuf> {
    let fetch = Fetcher::new(id, revision)?;
    let mut folder = PathBuf::new();
    for name in REQUIRED {
        folder = fetch.required(name)?.parent().map(Path::to_path_buf).unwrap_or_default();
    }
    for name in OPTIONAL {
        fetch.optional(name)?;
    }
    if let Some(index) = fetch.optional(INDEX)? {
        let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
        for shard in shard_names(&text).map_err(|e| Error::invalid(&index, e))? {
            fetch.required(&shard)?;
        }
    } else {
        fetch.required("model.safetensors")?;
    }
    Ok(folder)
}

/// One model on the Hub, or in the cache when the network is forbidden.
struct Fetcher {
    name: String,
    cache: CacheRepo,
    api: Option<ApiRepo>,
}

impl Fetcher {
    fn new(id: &str, revision: &str) -> Result<Self> {
        let cache = Cache::from_env();
        let name = format!("{id}@{revision}");
        let api = if offline() { None } else { Some(api(&name)?.repo(repo(id, revision))) };
        Ok(Self { name, cache: cache.repo(repo(id, revision)), api })
    }

    fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.cache.get(file) {
            return Ok(Some(path));
        }
        match self.api.as_ref().map(|api| api.get(file)) {
            None => Ok(None),
            Some(Ok(path)) => Ok(Some(path)),
            Some(Err(e)) if status(&e) == Some(404) => Ok(None),
            Some(Err(e)) => Err(self.explain(file, &e)),
        }
    }

    fn required(&self, file: &str) -> Result<PathBuf> {
        self.optional(file)?.ok_or_else(|| {
            let name = &self.name;
            Error::Hub(if self.api.is_some() {
                format!("{name} has no {file} on {}; check the id and the revision", endpoint())
            } else {
                format!("{name}: {file} is not in the cache and HF_HUB_OFFLINE is set; unset it, or give a folder")
            })
        })
    }

    fn explain(&self, file: &str, error: &ApiError) -> Error {
        let (name, at) = (&self.name, endpoint());
        let advice = match status(error) {
            Some(401 | 403) => "the Hub refused access: set HF_TOKEN to a token that may read it",
            Some(_) => "the Hub answered with an error; try again later",
            None => "the Hub cannot be reached; connect, set HF_ENDPOINT to a mirror, or give a folder with the model",
        };
        Error::Hub(format!("{name}: {file} from {at}: {advice} ({error})"))
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => match &**e {
            ureq::Error::StatusCode(code) => Some(*code),
            _ => None,
        },
        _ => None,
    }
}

fn api(name: &str) -> Result<Api> {
    let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
    let mut builder = ApiBuilder::from_env().with_progress(true);
    if token.is_some() {
        builder = builder.with_token(token);
    }
    builder.build().map_err(|e| Error::Hub(format!("{name}: the Hub's client cannot start: {e}")))
}
