//! The tiny policy that is compiled into the program: a Qwen2 of 0.8M parameters that over-thinks Countdown.
//!
//! `trainer sft --config configs/countdown-sft.toml` makes its weights; `scripts/embedded_tokenizer.py` the other files.

use crate::files::{Files, Weights};

/// The files of the embedded policy.
pub fn files() -> Files {
    Files {
        origin: "embedded".into(),
        config: include_str!("../embedded/config.json").into(),
        tokenizer: include_str!("../embedded/tokenizer.json").into(),
        tokenizer_config: Some(include_str!("../embedded/tokenizer_config.json").into()),
        chat_template: Some(include_str!("../embedded/chat_template.jinja").into()),
        generation_config: Some(include_str!("../embedded/generation_config.json").into()),
        weights: Weights::Bytes(include_bytes!("../embedded/model.safetensors")),
    }
}
