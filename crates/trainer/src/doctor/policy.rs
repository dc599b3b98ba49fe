//! Where a policy is and what shape it has, without its weights.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use model::config::Config as Shape;

use crate::config::EMBEDDED;

/// How long the Hub has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shape of DeepSeek-R1-Distill-Qwen-1.5B and of what was trained from it, so that the need of the paper's run is
/// known without a network.
const QWEN_1_5B: &str = r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536,
    "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "max_position_embeddings": 131072, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": false}"#;

/// Models of that shape.
const KNOWN: [&str; 2] = ["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "agentica-org/DeepScaleR-1.5B-Preview"];

/// What is known of a policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Where it is, for a person.
    pub place: String,
    /// Its shape; `None` if only its download would tell.
    pub shape: Option<Shape>,
    /// What would fail on loading it, and what to do.
    pub failure: Option<String>,
}

/// Looks for the policy `path`: compiled in, in a folder, in the Hub's cache, or on the Hub, of which only
/// `config.json` is read (under a kilobyte).
pub fn find(path: &str) -> Policy {
    if path == EMBEDDED {
        let text = include_str!("../../../model/embedded/config.json");
        return of_text("compiled in", text, Path::new("embedded/config.json"));
    }
    let folder = Path::new(path);
    if folder.is_dir() {
        return in_folder(folder);
    }
    match hub_id(path) {
        Some(repo) => on_hub(repo),
        None => Policy {
            place: "not found".into(),
            shape: None,
            failure: Some(format!(
                "model.path = \"{path}\": no such folder, and not a Hub id; give `embedded`, a folder, or org/name[@revision]"
            )),
        },
    }
}

fn in_folder(folder: &Path) -> Policy {
    let file = folder.join("config.json");
    let mut policy = match std::fs::read_to_string(&file) {
        Ok(text) => of_text("a folder", &text, &file),
        Err(error) => {
            let failure = format!("{}: {error}; the folder has to be in Hugging Face layout", file.display());
            Policy { place: "a folder".into(), shape: None, failure: Some(failure) }
        }
    };
    let has = |name: &str| folder.join(name).is_file();
    if policy.failure.is_none() && !has("model.safetensors") && !has("model.safetensors.index.json") {
        policy.failure = Some(format!("{}: no model.safetensors in this folder", folder.display()));
    } else if policy.failure.is_none() && !has("tokenizer.json") {
        policy.failure = Some(format!("{}: no tokenizer.json in this folder", folder.display()));
    }
    policy
}

fn of_text(place: &str, text: &str, path: &Path) -> Policy {
    match Shape::parse(text, path) {
        Ok(shape) => Policy { place: place.into(), shape: Some(shape), failure: None },
        Err(error) => Policy { place: place.into(), shape: None, failure: Some(error.to_string()) },
    }
}

/// `org/name[@revision]` as a repository.
fn hub_id(path: &str) -> Option<Repo> {
    let (id, revision) = path.split_once('@').unwrap_or((path, "main"));
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (organisation, name) = id.split_once('/')?;
    (is_name(organisation) && is_name(name) && !revision.is_empty())
        .then(|| Repo::with_revision(id.into(), RepoType::Model, revision.into()))
}

fn on_hub(repo: Repo) -> Policy {
    let id = repo.url();
    let cached = Cache::from_env().repo(repo.clone());
    let text = |path: &Path| std::fs::read_to_string(path).ok();
    if let Some(file) = cached.get("config.json")
        && let Some(json) = text(&file)
        && (cached.get("model.safetensors").is_some() || cached.get("model.safetensors.index.json").is_some())
    {
        return of_text("in the Hub's cache", &json, &file);
    }
    let known = KNOWN.contains(&id.as_str()).then(|| Shape::parse(QWEN_1_5B, Path::new("config.json")).ok()).flatten();
    match config_from_hub(repo) {
        Ok(json) => {
            let name = format!("{id}/config.json");
            Policy { place: "on the Hub, not downloaded yet".into(), ..of_text("", &json, Path::new(&name)) }
        }
        Err(reason) => Policy {
            place: "not in the Hub's cache".into(),
            shape: known,
            failure: Some(format!(
                "model.path = \"{id}\": {reason}; download it where there is a network and give its folder"
            )),
        },
    }
}

/// `config.json` of a repository, or why it cannot be had. Never takes much longer than [`PATIENCE`] twice.
fn config_from_hub(repo: Repo) -> Result<String, String> {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into());
    // A request through a dead network can hang for minutes; a connection tells sooner. Behind a proxy only the request
    // itself can tell.
    let proxied =
        ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].iter().any(|name| std::env::var(name).is_ok());
    if !proxied {
        connect(&endpoint).map_err(|reason| format!("the Hub cannot be reached ({endpoint}: {reason})"))?;
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let file = ApiBuilder::from_env()
            .with_progress(false)
            .build()
            .and_then(|api| api.repo(repo).get("config.json"))
            .map_err(|error| error.to_string())
            .and_then(|path| std::fs::read_to_string(path).map_err(|error| error.to_string()));
        // Nobody listens any more if this took too long.
        let _ = sender.send(file);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(answer) => answer.map_err(|reason| format!("the Hub does not give it ({reason})")),
        Err(_) => Err(format!("the Hub does not answer within {} seconds ({endpoint})", PATIENCE.as_secs())),
    }
}

fn connect(endpoint: &str) -> Result<(), String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let host = rest.split('/').next().unwrap_or(rest);
    let port = if scheme == "http" { 80 } else { 443 };
    let address = if host.contains(':') { host.to_string() } else { format!("{host}:{port}") };
    let (sender, receiver) = mpsc::channel();
    // Resolving a name has no time limit of its own.
    std::thread::spawn(move || {
        let found = address.to_socket_addrs().map_err(|error| error.to_string()).and_then(|mut found| {
            let first = found.next().ok_or("no address")?;
            TcpStream::connect_timeout(&first, PATIENCE).map(drop).map_err(|error| error.to_string())
        });
        let _ = sender.send(found);
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err("no answer".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_policy_is_found_with_its_shape() {
        let policy = find(EMBEDDED);
        assert!(policy.failure.is_none(), "{policy:?}");
        assert!(policy.shape.unwrap().parameters() > 100_000);
    }

    #[test]
    fn the_papers_model_has_its_published_size() {
        let shape = Shape::parse(QWEN_1_5B, Path::new("config.json")).unwrap();
        // 1.78 billion, as its card says.
        assert_eq!(shape.parameters(), 1_777_088_000);
    }

    #[test]
    fn a_folder_without_a_model_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let failure = find(path).failure.unwrap();
        assert!(failure.contains("config.json"), "{failure}");
        std::fs::write(folder.path().join("config.json"), QWEN_1_5B).unwrap();
        let failure = find(path).failure.unwrap();
        assert!(failure.contains("no model.safetensors"), "{failure}");
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        assert!(hub_id("org/name").is_some());
        assert_eq!(hub_id("org/name@v1.0").unwrap().revision(), "v1.0");
        for path in ["name", "a/b/c", "../name", "org/", "/abs", "org/na me", "org/name@"] {
            assert!(hub_id(path).is_none(), "{path}");
        }
    }
}
