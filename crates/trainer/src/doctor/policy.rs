//! Where a policy is and what shape it has, without its weights.

#![deny(clippy::indexing_slicing)]

use std::path::Path;
use std::time::Duration;

use model::config::Config as Shape;
use model::hub::Hub;
use model::{Source, lora};

use crate::config::EMBEDDED;

/// How long the Hub has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shape of DeepSeek-R1-Distill-Qwen-1.5B and of what was trained from it, so that the need of the paper's run is
/// known without a network.
pub(super) const QWEN_1_5B: &str = r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536,
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
    match path.parse() {
        Ok(Source::Hub { id, revision }) => on_hub(path, &id, &revision),
        Ok(Source::Folder(folder)) if folder.is_dir() => in_folder(&folder),
        _ => Policy {
            place: "not found".into(),
            shape: None,
            failure: Some(format!(
                "model.path = \"{path}\": no such folder, and not a Hub id; give `embedded`, a folder, or org/name[@revision]"
            )),
        },
    }
}

fn in_folder(folder: &Path) -> Policy {
    if lora::is_adapter(folder) {
        return of_adapters(folder);
    }
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

/// The base model of a folder of adapters.
fn of_adapters(folder: &Path) -> Policy {
    match lora::read_config(folder) {
        Ok((settings, base)) if !lora::is_adapter(Path::new(&base)) => {
            let found = find(&base);
            let place = format!("adapters of rank {} of {base}: {}", settings.rank, found.place);
            let failure = found.failure.map(|failure| format!("{}: its base model: {failure}", folder.display()));
            Policy { place, failure, ..found }
        }
        Ok((_, base)) => Policy {
            place: "adapters".into(),
            shape: None,
            failure: Some(format!("{}: its base {base} is a folder of adapters too", folder.display())),
        },
        Err(error) => Policy { place: "adapters".into(), shape: None, failure: Some(error.to_string()) },
    }
}

fn of_text(place: &str, text: &str, path: &Path) -> Policy {
    match Shape::parse(text, path) {
        Ok(shape) => Policy { place: place.into(), shape: Some(shape), failure: None },
        Err(error) => Policy { place: place.into(), shape: None, failure: Some(error.to_string()) },
    }
}

fn on_hub(path: &str, id: &str, revision: &str) -> Policy {
    let known = KNOWN.contains(&id).then(|| Shape::parse(QWEN_1_5B, Path::new("config.json")).ok()).flatten();
    let failed = |error: model::Error| Policy {
        place: "not in the Hub's cache".into(),
        shape: known,
        failure: Some(format!("model.path = \"{path}\": {error}")),
    };
    let mut hub = match Hub::from_env() {
        Ok(hub) => hub,
        Err(error) => return failed(error),
    };
    if let Some(folder) = hub.cached(id, revision) {
        return Policy { place: "in the Hub's cache".into(), ..in_folder(&folder) };
    }
    // A check that somebody waits for: one try, no bar.
    hub.progress = false;
    hub.patience.tries = 1;
    for limit in [&mut hub.patience.connect, &mut hub.patience.answer, &mut hub.patience.silence] {
        *limit = (*limit).min(PATIENCE);
    }
    match hub.config(id, revision) {
        Ok((file, text)) if hub.offline => Policy {
            failure: Some(format!(
                "model.path = \"{path}\": its weights are not in the Hub's cache, and HF_HUB_OFFLINE is set; unset it \
                 where there is a network, or give a folder with the model"
            )),
            ..of_text("partly in the Hub's cache", &text, &file)
        },
        Ok((_, text)) => of_text("on the Hub, not downloaded yet", &text, Path::new(&format!("{id}/config.json"))),
        Err(error) => failed(error),
    }
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
    fn what_is_neither_a_folder_nor_an_id_is_refused() {
        for path in ["name", "a/b/c", "../name", "/abs", "org/name@"] {
            let failure = find(path).failure.unwrap();
            assert!(failure.contains("no such folder, and not a Hub id"), "{failure}");
        }
    }
}
