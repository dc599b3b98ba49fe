//! A model's `config.json`, checked: what this decoder cannot compute is refused here, not found out later.

#![deny(clippy::indexing_slicing)]

use crate::error::{Error, Result};
use crate::ops::Heads;
use crate::scaling::{Angles, Rope};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The shape of a Qwen2 or Qwen3 decoder.
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
    /// Attention heads. Queries are `heads.query * heads.dim` wide, which need not be `hidden_size`.
    pub heads: Heads,
    /// Whether the projections to queries, keys and values have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether the projection out of attention has one.
    pub o_bias: bool,
    /// Whether each head of queries and keys is normalised before it is rotated (Qwen3).
    pub qk_norm: bool,
    /// Longest sequence, prompt included.
    pub max_positions: usize,
    /// Base and scaling of the rotary angles.
    pub rope: Rope,
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
    head_dim: Option<usize>,
    attention_bias: Option<bool>,
    max_position_embeddings: usize,
    layer_types: Option<Vec<String>>,
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
        let invalid = |e: serde_json::Error| Error::invalid(path, e);
        let value: Value = serde_json::from_str(text).map_err(invalid)?;
        let file = File::deserialize(&value).map_err(invalid)?;
        let unsupported = |what: String| Error::Unsupported(format!("{}: {what}", path.display()));
        let family = file.family().map_err(unsupported)?;
        file.refuse_other_computations().map_err(unsupported)?;
        let heads = file.heads(family).map_err(|what| Error::invalid(path, what))?;
        let sizes = [
            file.vocab_size,
            file.hidden_size,
            file.intermediate_size,
            file.num_hidden_layers,
            file.max_position_embeddings,
        ];
        if sizes.contains(&0) {
            return Err(Error::invalid(path, "a size is zero"));
        }
        file.refuse_absurd_sizes(&heads).map_err(|what| Error::invalid(path, what))?;
        let rope = Rope::parse(&value, heads.dim, file.max_position_embeddings).map_err(unsupported)?;
        // Qwen2 has the biases whatever its file says; Qwen3 has those of all four projections, or none.
        let attention_bias = family == Family::Qwen3 && file.attention_bias.unwrap_or(false);
        Ok(Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_layers: file.num_hidden_layers,
            heads,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: attention_bias,
            qk_norm: family == Family::Qwen3,
            max_positions: file.max_position_embeddings,
            rope,
            rms_norm_eps: file.rms_norm_eps.unwrap_or(1e-6),
            tied_head: file.tie_word_embeddings,
        })
    }

    /// The same file for other programs: without the keys of ours, which they would pass over. Only the rounding of the
    /// rotary angles is one ([`crate::scaling::Angles`]).
    ///
    /// # Errors
    /// When the text is no JSON object.
    pub fn for_others(text: &str, path: &Path) -> Result<String> {
        let mut file: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Error::invalid(path, e))?;
        file.remove(Angles::KEY);
        Ok(format!("{:#}\n", Value::Object(file)))
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = self.widths();
        let if_there = |there: bool, count: usize| if there { count } else { 0 };
        let biases = if_there(self.qkv_bias, q + 2 * kv) + if_there(self.o_bias, h);
        let norms = 2 * h + if_there(self.qk_norm, 2 * self.heads.dim);
        let layer = h * (q + 2 * kv) + q * h + 3 * h * i + biases + norms;
        let embeddings = self.vocab_size * h * if self.tied_head { 1 } else { 2 };
        embeddings + self.num_layers * layer + h
    }

    /// Widths of all queries and of all keys (or values) of a token.
    pub fn widths(&self) -> (usize, usize) {
        (self.heads.query * self.heads.dim, self.heads.key_value * self.heads.dim)
    }

    /// Numbers that one token adds to the key-value cache.
    pub fn cache_per_token(&self) -> usize {
        2 * self.num_layers * self.heads.key_value * self.heads.dim
    }
}

/// The architectures that this decoder computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Qwen2,
    Qwen3,
}

impl File {
    fn family(&self) -> std::result::Result<Family, String> {
        match self.model_type.as_deref() {
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            other => {
                let found = other.unwrap_or("none");
                let known = "this version runs qwen2 (Qwen2, Qwen2.5 and its distills) and qwen3 (dense)";
                Err(format!("model_type is {found}; {known}"))
            }
        }
    }

    /// Options that would change the computation and are not there.
    fn refuse_other_computations(&self) -> std::result::Result<(), String> {
        let sliding = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention");
        if self.use_sliding_window || sliding.is_some() {
            let key = sliding.map_or("use_sliding_window is true".into(), |kind| format!("layer_types has {kind}"));
            return Err(format!("{key}; only full attention is supported"));
        }
        match self.hidden_act.as_deref() {
            None | Some("silu") => Ok(()),
            Some(act) => Err(format!("hidden_act is {act}; only silu is supported")),
        }
    }

    /// Sizes beyond those of any model, whose products would leave 64 bits.
    fn refuse_absurd_sizes(&self, heads: &Heads) -> std::result::Result<(), String> {
        let width = heads.query.saturating_mul(heads.dim);
        let limits = [
            ("vocab_size", self.vocab_size, 1 << 26),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 32),
            ("the width of all attention heads", width, 1 << 22),
        ];
        match limits.iter().find(|(_, size, limit)| size > limit) {
            Some((name, size, limit)) => Err(format!("{name} is {size}; no model here is beyond {limit}")),
            None => Ok(()),
        }
    }

    fn heads(&self, family: Family) -> std::result::Result<Heads, String> {
        let (query, hidden) = (self.num_attention_heads, self.hidden_size);
        let key_value = self.num_key_value_heads.unwrap_or(query);
        if query == 0 || key_value == 0 || !query.is_multiple_of(key_value) {
            return Err(format!("{query} attention heads cannot share {key_value} key-value heads"));
        }
        let dim = match (self.head_dim, family) {
            (Some(dim), _) => dim,
            // What transformers takes where the file is silent.
            (None, Family::Qwen3) => 128,
            (None, Family::Qwen2) if hidden.is_multiple_of(query) => hidden / query,
            (None, Family::Qwen2) => return Err(format!("{query} attention heads do not divide {hidden}")),
        };
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(format!("a head of width {dim} has no pairs to rotate"));
        }
        Ok(Heads { query, key_value, dim })
    }
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
    fn reads_a_qwen3_with_heads_wider_than_the_stream() {
        let text = TINY.replace("qwen2", "qwen3").replace("\"hidden_size\": 8", "\"hidden_size\": 8, \"head_dim\": 6");
        let config = parse(&text).unwrap();
        assert_eq!(config.heads, Heads { query: 2, key_value: 1, dim: 6 });
        assert_eq!((config.qk_norm, config.qkv_bias, config.o_bias), (true, false, false));
        // q 12, kv 6: 8*24 + 12*8 + 288 + 16 + 12 a block.
        assert_eq!(config.parameters(), 80 + 2 * (192 + 96 + 288 + 16 + 12) + 8);
        let biased = parse(&text.replace("\"head_dim\"", "\"attention_bias\": true, \"head_dim\"")).unwrap();
        assert_eq!(biased.parameters(), config.parameters() + 2 * (24 + 8));
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (from, to, word) in [
            ("\"qwen2\"", "\"llama\"", "llama"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"use_sliding_window\": true", "sliding"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"rope_scaling\": {\"rope_type\": \"dynamic\"}", "dynamic"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"layer_types\": [\"sliding_attention\"]", "sliding_attention"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"head_dim\": 3", "width 3"),
            ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3", "heads"),
            ("\"hidden_size\": 8", "\"hidden_size\": 4000000000000000000", "hidden_size is 4000000000000000000"),
            ("\"hidden_size\": 8", "\"hidden_size\": 8, \"head_dim\": 9223372036854775808", "attention heads is"),
        ] {
            let message = parse(&TINY.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("config.json"), "{message}");
        }
    }
}
