//! The models that are run as a whole: the embedded policy, and small random ones of both architectures.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use model::{Config, Qwen2, embedded, init, weights};

/// The seed of random weights.
const SEED: u64 = 5;
/// Their standard deviation: enough for distributions that are far from flat.
const STD: f64 = 0.15;

/// Seven query heads for one of keys, odd widths, a tied head.
const QWEN2: &str = r#"{"model_type": "qwen2", "vocab_size": 503, "hidden_size": 112, "intermediate_size": 201,
    "num_hidden_layers": 2, "num_attention_heads": 7, "num_key_value_heads": 1, "max_position_embeddings": 256,
    "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
/// Normed heads of 128 that are wider than the residual stream, and a head of its own.
const QWEN3: &str = r#"{"model_type": "qwen3", "vocab_size": 1031, "hidden_size": 96, "intermediate_size": 160,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
    "max_position_embeddings": 256, "rope_theta": 1000000.0, "tie_word_embeddings": false}"#;

/// A model that can be made on any device.
pub(super) struct Subject {
    /// What the table calls it.
    pub name: &'static str,
    /// `config.json`; of the embedded policy, none.
    config: Option<&'static str>,
}

/// All of them.
pub(super) fn subjects() -> [Subject; 3] {
    [
        Subject { name: "embedded policy", config: None },
        Subject { name: "random Qwen2", config: Some(QWEN2) },
        Subject { name: "random Qwen3", config: Some(QWEN3) },
    ]
}

impl Subject {
    /// The same weights, rounded to `dtype`, wherever it is made.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Qwen2> {
        match self.config {
            None => Ok(weights::load(&embedded::files(), dtype, device)?),
            Some(config) => {
                Ok(init::random(Config::parse(config, Path::new("config.json"))?, STD, SEED, dtype, device)?)
            }
        }
    }
}

/// `lengths[i]` token ids for each row, the same everywhere.
pub(super) fn rows(lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, t: usize| {
        let stream = sampler::pick::stream(&[SEED, row as u64]);
        (sampler::pick::uniform(stream, t) * vocab as f64) as u32
    };
    lengths.iter().enumerate().map(|(row, &length)| (0..length).map(|t| id(row, t)).collect()).collect()
}
