//! A model's `config.json`, checked: what this decoder cannot compute is refused here, not found out later.

use crate::error::{Error, Result};
use crate::ops::Heads;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The shape of a Qwen2 decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tokens of the vocabulary (rows of the embedding).
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Longest sequence, prompt included.
    pub max_positions: usize,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// `eps` of the norms.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    pub tied_head: bool,
}

/// The keys of the file that matter here; the others describe things that do not change the computation.
#[derive(Deserialize)]
struct File {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

impl Config {
    /// Reads `config.json` text; `path` is for messages.
    ///
    /// # Errors
    /// When a key is missing or the model asks for something this decoder does not have.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = serde_json::from_str(text).map_err(|e| Error::invalid(path, e))?;
        let refuse = |what: String| Err(Error::Unsupported(format!("{}: {what}", path.display())));
        match file.model_type.as_deref() {
            Some("qwen2") => {}
            other => {
                let found = other.unwrap_or("none");
                return refuse(format!(
                    "model_type is {found}; this version runs qwen2 (Qwen2, Qwen2.5 and its distills)"
                ));
            }
        }
        if file.use_sliding_window {
            return refuse("use_sliding_window is true; only full attention is supported".into());
        }
        if file.hidden_act.as_deref().is_some_and(|act| act != "silu") {
            return refuse(format!("hidden_act is {:?}; only silu is supported", file.hidden_act));
        }
        let theta = rope_theta(&file).map_err(|what| Error::Unsupported(format!("{}: {what}", path.display())))?;
        let heads = file.num_attention_heads;
        let kv = file.num_key_value_heads.unwrap_or(heads);
        if heads == 0 || kv == 0 || !heads.is_multiple_of(kv) || !file.hidden_size.is_multiple_of(2 * heads) {
            let hidden = file.hidden_size;
            return Err(Error::invalid(path, format!("{heads} heads, {kv} key-value heads do not divide {hidden}")));
        }
        let sizes = [file.vocab_size, file.intermediate_size, file.num_hidden_layers, file.max_position_embeddings];
        if sizes.contains(&0) {
            return Err(Error::invalid(path, "a size is zero"));
        }
        Ok(Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_layers: file.num_hidden_layers,
            heads: Heads { query: heads, key_value: kv, dim: file.hidden_size / heads },
            max_positions: file.max_position_embeddings,
            rope_theta: theta,
            rms_norm_eps: file.rms_norm_eps.unwrap_or(1e-6),
            tied_head: file.tie_word_embeddings,
        })
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads.query * self.heads.dim, self.heads.key_value * self.heads.dim);
        let layer = h * (q + 2 * kv) + q + 2 * kv + q * h + 3 * h * i + 2 * h;
        let embeddings = self.vocab_size * h * if self.tied_head { 1 } else { 2 };
        embeddings + self.num_layers * layer + h
    }

    /// Numbers that one token adds to the key-value cache.
    pub fn cache_per_token(&self) -> usize {
        2 * self.num_layers * self.heads.key_value * self.heads.dim
    }
}

/// The base, wherever the file's age puts it; any scaling of positions is refused.
fn rope_theta(file: &File) -> std::result::Result<f64, String> {
    let kind = |value: &Value| {
        let kind = value.get("rope_type").or_else(|| value.get("type"));
        kind.and_then(Value::as_str).unwrap_or("default").to_string()
    };
    for (key, value) in [("rope_scaling", &file.rope_scaling), ("rope_parameters", &file.rope_parameters)] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_null())
            && kind(value) != "default"
        {
            return Err(format!("{key} of kind {} is not supported", kind(value)));
        }
    }
    let nested = file.rope_parameters.as_ref().and_then(|v| v.get("rope_theta")).and_then(Value::as_f64);
    Ok(file.rope_theta.or(nested).unwrap_or(10_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "tie_word_embeddings": true, "rope_theta": 1000000.0}"#;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("config.json"))
    }

    #[test]
    fn reads_sizes_and_counts_parameters() {
        let config = parse(TINY).unwrap();
        assert_eq!(config.heads, Heads { query: 2, key_value: 1, dim: 4 });
        // 80 + 2 * (8*16 + 16 + 64 + 288 + 16) + 8
        assert_eq!(config.parameters(), 80 + 2 * 512 + 8);
        assert_eq!(config.cache_per_token(), 16);
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (from, to, word) in [
            ("\"qwen2\"", "\"llama\"", "llama"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"use_sliding_window\": true", "sliding"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"rope_scaling\": {\"rope_type\": \"yarn\"}", "yarn"),
            ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3", "heads"),
        ] {
            let message = parse(&TINY.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
