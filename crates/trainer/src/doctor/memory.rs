//! How much memory a run needs, estimated from the model's shape and the settings before anything is loaded.

use model::config::Config as Shape;

use crate::config::{Config, Lora};

/// Bytes of an f32.
const F32: u64 = 4;
/// Tokens whose logits exist at once in the head: one block of the chunked log-probs and its gradient.
const HEAD_TOKENS: u64 = 1024;

/// One thing that takes memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// How many bytes it takes.
    pub bytes: u64,
    /// How that was found.
    pub formula: String,
}

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The parts; the sum is what is needed at once, because rollouts and updates keep their buffers.
    pub items: Vec<Item>,
}

impl Need {
    /// All items together, in bytes.
    pub fn total(&self) -> u64 {
        self.items.iter().fold(0, |sum, item| sum.saturating_add(item.bytes))
    }
}

/// Estimates what training `shape` with `config` takes.
///
/// With `P` parameters, of which `T` are trained (all, or the adapters), `h` hidden, `f` feed-forward, `q` and `k` the
/// widths of queries and of keys, `n` blocks, `m` tokens of a micro-batch:
///
/// | part | bytes |
/// | --- | --- |
/// | weights | `4 P` |
/// | compute copy (bf16) | `2 P` |
/// | sampler's packed copy | `4 P` |
/// | reference copy, if the KL is measured | `4 P` |
/// | gradients | `4 T` |
/// | AdamW moments | `8 T` |
/// | activations | `4 m (n (6h + 3q + 3k + 3f) + 3h)`: every intermediate that the backward pass reads; with recomputation `4 m (n h + 6h + 3q + 3k + 3f + 3h)` |
/// | head | `8 · 1024 · vocabulary`: logits of one block of tokens and their gradient |
/// | key-value cache | `4 · rows · (prompt + l_max) · 2 n k`, at most `sampler.cache_memory` |
pub fn estimate(shape: &Shape, config: &Config) -> Need {
    let weights = shape.parameters() as u64;
    let trained = config.model.lora.as_ref().map_or(weights, |lora| adapters(shape, lora));
    let mut items = Vec::new();
    let mut add = |name, bytes, formula: String| items.push(Item { name, bytes, formula });

    add("weights", F32 * weights, format!("{} parameters x 4", thousands(weights)));
    if config.model.dtype == crate::config::Dtype::Bf16 {
        add("compute copy", 2 * weights, "parameters x 2 (bf16)".into());
    }
    add("sampler's copy", F32 * weights, "parameters x 4, packed for generation".into());
    if config.reference.track > 0.0 {
        add("reference", F32 * weights, "parameters x 4 (reference.track above 0)".into());
    }
    add("gradients", F32 * trained, format!("{} trained x 4", thousands(trained)));
    add("AdamW moments", 2 * F32 * trained, "trained x 8".into());
    let tokens = micro_batch(config);
    let by_default = shape.parameters() > model::recompute::BY_DEFAULT_ABOVE;
    let recompute = config.model.recompute.unwrap_or(by_default);
    add("activations", tokens.saturating_mul(F32 * activations(shape, recompute)), {
        let how = if recompute { "blocks recomputed" } else { "blocks kept" };
        format!("{} tokens of a micro-batch, {how}", thousands(tokens))
    });
    let head = 2 * F32 * HEAD_TOKENS.min(tokens) * shape.vocab_size as u64;
    add("head", head, format!("logits of {HEAD_TOKENS} tokens and their gradient"));
    let (bytes, formula) = cache(shape, config);
    add("key-value cache", bytes, formula);
    Need { items }
}

/// Tokens of a micro-batch: one sequence at least, however long.
fn micro_batch(config: &Config) -> u64 {
    config.model.micro_batch_tokens.max(longest_sequence(config)) as u64
}

/// Tokens of the longest prompt with the longest response, in training or in evaluation.
pub fn longest_sequence(config: &Config) -> usize {
    let budget = config.schedule.budget().map_or(config.schedule.l_max, |budget| budget.largest());
    config.data.max_prompt_tokens.saturating_add(budget.max(config.evaluate.max_tokens.unwrap_or(0)))
}

/// Numbers that the backward pass keeps for one token.
fn activations(shape: &Shape, recompute: bool) -> u64 {
    let (h, f, n) = (shape.hidden_size, shape.intermediate_size, shape.num_layers);
    let (q, k) = (shape.heads.query * shape.heads.dim, shape.heads.key_value * shape.heads.dim);
    let block = 6 * h + 3 * q + 3 * k + 3 * f;
    // Embedding, last block's output and last norm.
    let ends = 3 * h;
    (if recompute { n * h + block + ends } else { n * block + ends }) as u64
}

/// Numbers in the adapters: `rank · (in + out)` for each adapted projection of each block.
fn adapters(shape: &Shape, lora: &Lora) -> u64 {
    let (h, f) = (shape.hidden_size, shape.intermediate_size);
    let (q, k) = (shape.heads.query * shape.heads.dim, shape.heads.key_value * shape.heads.dim);
    let ends = |target: &str| match target {
        "q_proj" | "o_proj" => h + q,
        "k_proj" | "v_proj" => h + k,
        // `gate_proj`, `up_proj`, `down_proj`; the settings know no others.
        _ => h + f,
    };
    let block: usize = lora.targets.iter().map(|target| lora.rank * ends(target)).sum();
    (shape.num_layers * block) as u64
}

fn cache(shape: &Shape, config: &Config) -> (u64, String) {
    let sampler = &config.sampler;
    let rows = sampler.max_rows.min(sampler.prompts_per_step.saturating_mul(sampler.group_size)) as u64;
    let length = longest_sequence(config) as u64;
    let wanted = rows.saturating_mul(length).saturating_mul(F32 * shape.cache_per_token() as u64);
    match sampler.cache_bytes() {
        Some(limit) if limit < wanted => (limit, format!("sampler.cache_memory; {} would fill it all", show(wanted))),
        _ => (wanted, format!("{rows} rows of {} tokens", thousands(length))),
    }
}

/// Bytes as a person reads them: `3.2 GiB`.
pub fn show(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (1..units.len()).take_while(|&power| bytes >= 1 << (10 * power)).count();
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    if power == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[power]) }
}

/// A count with its thousands apart: `1,777,088,000`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// 2 blocks, h 8, f 12, q 8, k 4, vocabulary 10, tied: 80 + 2 · 512 + 8 = 1112 parameters.
    fn shape() -> Shape {
        let text = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        Shape::parse(text, Path::new("config.json")).unwrap()
    }

    fn config() -> Config {
        let mut config = Config::countdown();
        config.reference.track = 0.0;
        config.model.recompute = None;
        config.model.micro_batch_tokens = 1000;
        (config.data.max_prompt_tokens, config.schedule.l_max, config.schedule.l_min) = (100, 400, 200);
        (config.sampler.prompts_per_step, config.sampler.group_size, config.sampler.max_rows) = (3, 4, 100);
        config
    }

    fn bytes(need: &Need, name: &str) -> u64 {
        need.items.iter().find(|item| item.name == name).map_or(0, |item| item.bytes)
    }

    #[test]
    fn each_part_is_its_formula() {
        let need = estimate(&shape(), &config());
        assert_eq!(bytes(&need, "weights"), 4 * 1112);
        assert_eq!(bytes(&need, "compute copy"), 0);
        assert_eq!(bytes(&need, "reference"), 0);
        assert_eq!(bytes(&need, "gradients"), 4 * 1112);
        assert_eq!(bytes(&need, "AdamW moments"), 8 * 1112);
        // A block keeps 48 + 24 + 12 + 36 = 120 numbers a token; the ends 24.
        assert_eq!(bytes(&need, "activations"), 4 * 1000 * (2 * 120 + 24));
        assert_eq!(bytes(&need, "head"), 8 * 1000 * 10);
        // 12 rows of 500 tokens, each token 2 · 2 · 4 numbers.
        assert_eq!(bytes(&need, "key-value cache"), 4 * 12 * 500 * 16);
        assert_eq!(need.total(), need.items.iter().map(|item| item.bytes).sum::<u64>());
    }

    #[test]
    fn settings_change_what_is_needed() {
        let mut config = config();
        config.model.recompute = Some(true);
        config.reference.track = 0.5;
        config.sampler.cache_memory = Some("1KiB".into());
        config.model.lora = Some(Lora { rank: 2, alpha: 4.0, targets: vec!["q_proj".into(), "down_proj".into()] });
        let need = estimate(&shape(), &config);
        assert_eq!(bytes(&need, "activations"), 4 * 1000 * (2 * 8 + 120 + 24));
        assert_eq!(bytes(&need, "reference"), 4 * 1112);
        assert_eq!(bytes(&need, "key-value cache"), 1024);
        // 2 blocks · rank 2 · (8 + 8 + 8 + 12) = 144 numbers.
        assert_eq!(bytes(&need, "gradients"), 4 * 144);
    }

    #[test]
    fn a_long_sequence_is_a_micro_batch_of_its_own() {
        let mut config = config();
        config.model.micro_batch_tokens = 10;
        assert_eq!(micro_batch(&config), 500);
        config.evaluate.max_tokens = Some(1000);
        assert_eq!(longest_sequence(&config), 1100);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!((show(5), show(1536), show(3 << 30)), ("5 B".into(), "1.5 KiB".into(), "3.0 GiB".into()));
        assert_eq!((thousands(7), thousands(1777088000)), ("7".into(), "1,777,088,000".into()));
    }
}
