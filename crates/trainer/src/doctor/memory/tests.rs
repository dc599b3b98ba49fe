//! The estimate against its formulas, and plans against memory.

use std::path::Path;

use super::*;
use crate::config::{Lora, Model};

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
    config.model.micro_batch_tokens = Some(1000);
    (config.data.max_prompt_tokens, config.schedule.l_max, config.schedule.l_min) = (100, 400, 200);
    (config.sampler.prompts_per_step, config.sampler.group_size, config.sampler.max_rows) = (3, 4, 100);
    (config.evaluate.problems, config.evaluate.samples) = (5, 2);
    config
}

fn bytes(need: &Need, name: &str) -> u64 {
    need.bytes(name)
}

#[test]
fn each_part_is_its_formula() {
    let need = estimate(&shape(), &config(), DeviceChoice::Cpu);
    assert_eq!(bytes(&need, "weights"), 4 * 1112);
    assert_eq!(bytes(&need, "sampler's copy"), 4 * 1112);
    assert_eq!(bytes(&need, "reference"), 0);
    assert_eq!(bytes(&need, "gradients"), 4 * 1112);
    assert_eq!(bytes(&need, "AdamW"), 8 * 1112);
    // A block keeps 32 + 24 + 12 + 36 = 104 numbers a token; on its way back it is 48 + 32 + 16 + 60 = 156.
    assert_eq!(bytes(&need, "activations"), 4 * 1000 * (2 * 104 + 156));
    assert_eq!(bytes(&need, "head"), 4 * (2048 * 10 + 2 * 10 * 8 + 3072 * 8));
    // 12 rows of 500 tokens, each token 2 · 2 · 4 numbers.
    assert_eq!(need.bytes("key-value cache"), 4 * 12 * 500 * 16);
    assert_eq!(need.total(), need.items.iter().map(|item| item.bytes).sum::<u64>());
}

#[test]
fn an_evaluation_may_need_more_rows_than_a_step() {
    let mut config = config();
    config.evaluate.samples = 8;
    assert_eq!(rows(&config), 40);
    config.sampler.max_rows = 32;
    assert_eq!(rows(&config), 32);
}

#[test]
fn settings_change_what_is_needed() {
    let mut config = config();
    config.model.recompute = Some(true);
    config.reference.track = 0.5;
    config.sampler.cache_memory = Some("1KiB".into());
    assert_eq!(bytes(&estimate(&shape(), &config, DeviceChoice::Cpu), "reference"), 4 * 1112);
    config.model.dtype = Dtype::Bf16;
    assert_eq!(bytes(&estimate(&shape(), &config, DeviceChoice::Cpu), "AdamW"), 12 * 1112);
    config.model.lora = Some(Lora { rank: 2, alpha: 4.0, targets: vec!["q_proj".into(), "down_proj".into()] });
    let need = estimate(&shape(), &config, DeviceChoice::Cpu);
    // The adapted projections have 8 outputs each.
    assert_eq!(need.bytes("activations"), 4 * 1000 * (3 * 8 + 156 + 2 * 16));
    assert_eq!(need.bytes("weights"), 2 * 1112);
    assert_eq!(need.bytes("reference"), 0);
    assert_eq!(need.bytes("key-value cache"), 1024);
    // 2 blocks · rank 2 · (8 + 8 + 8 + 12) = 144 numbers.
    assert_eq!(need.bytes("gradients"), 4 * 144);
    assert_eq!(need.bytes("AdamW"), 8 * 144);
}

#[test]
fn a_gpu_computes_in_the_type_of_the_weights_and_hands_memory_on() {
    let mut config = config();
    config.model.dtype = Dtype::Bf16;
    config.model.recompute = Some(true);
    let need = estimate(&shape(), &config, DeviceChoice::Cuda);
    assert_eq!(bytes(&need, "weights"), 2 * 1112);
    assert_eq!(bytes(&need, "AdamW"), 12 * 1112);
    assert_eq!(bytes(&need, "gradients"), 4 * 1112);
    assert_eq!(bytes(&need, "activations"), 2 * 1000 * (3 * 8 + 156));
    // A block has (1112 - 80 - 8) / 2 = 512 parameters; 1112 / 2 counts a little more.
    assert_eq!(bytes(&need, "on their way"), 2 * 556);
    assert_eq!(bytes(&need, "key-value cache"), 2 * 12 * 500 * 16);
    assert_eq!(bytes(&need, "a step"), 2 * (2048 + 12) * (32 + 16 + 8 + 36));
    assert_eq!(bytes(&need, "sampler's copy") + bytes(&need, "program") + bytes(&need, "widening"), 0);
    let resident = (768 << 20) + 2 * 1112 + 4 * 1112 + 12 * 1112;
    assert_eq!(bytes(&need, "head"), (4 + 2) * 1000 * 10);
    let updates = 2 * 1000 * 180 + 6 * 10_000 + 2 * 556;
    let rollouts = 2 * 12 * 500 * 16 + 4 * 12 * 10 + 2 * 2060 * 92;
    assert_eq!(need.total(), resident + u64::max(updates, rollouts));
    // The CPU keeps both.
    let need = estimate(&shape(), &config, DeviceChoice::Cpu);
    assert_eq!(need.total(), need.items.iter().map(|item| item.bytes).sum::<u64>());
}

#[test]
fn the_papers_run_fits_into_80_gb_and_that_with_adapters_into_a_mac_of_16() {
    let shape = Shape::parse(crate::doctor::policy::QWEN_1_5B, Path::new("config.json")).unwrap();
    let planned = |file: &str, device, available| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(file);
        let config = Config::resolve(Some(&path), &[], &Default::default()).unwrap();
        let there = Memory { total: available, available };
        let config = planned(&shape, &config, device, Some(there));
        let need = estimate(&shape, &config, device);
        assert_eq!(crate::doctor::shortage(&need, there, &config), None, "{file}: {need:?}");
        assert_eq!(crate::doctor::too_long(&shape, &config), None);
        (config.model.micro_batch_tokens.unwrap(), need.total())
    };
    // 80 GB less what the driver has; one response of the largest budget with its prompt is a micro-batch.
    let (tokens, bytes) = planned("siri-1.5b.toml", DeviceChoice::Cuda, 79 << 30);
    assert!(tokens >= 17_408 && (50 << 30..70 << 30).contains(&bytes), "{tokens} tokens, {}", show(bytes));
    // Two thirds of 16 GiB is what the system recommends to use there.
    let (tokens, bytes) = planned("siri-1.5b-lora-mac.toml", DeviceChoice::Metal, (16 << 30) / 3 * 2);
    assert!(tokens >= 2_560 && (6 << 30..10 << 30).contains(&bytes), "{tokens} tokens, {}", show(bytes));
}

#[test]
fn a_long_sequence_is_a_micro_batch_of_its_own() {
    let mut config = config();
    config.model.micro_batch_tokens = Some(10);
    assert_eq!(micro_batch(&config), 500);
    config.evaluate.max_tokens = Some(1000);
    assert_eq!(longest_sequence(&config), 1100);
}

#[test]
fn a_plan_fits_and_never_splits_a_sequence() {
    let mut config = config();
    config.model.micro_batch_tokens = None;
    let at = |tokens| {
        let config =
            Config { model: Model { micro_batch_tokens: Some(tokens), ..config.model.clone() }, ..config.clone() };
        estimate(&shape(), &config, DeviceChoice::Cpu).total()
    };
    assert_eq!(plan(&shape(), &config, DeviceChoice::Cpu, 0), 500);
    assert_eq!(plan(&shape(), &config, DeviceChoice::Cpu, u64::MAX), 16000);
    assert_eq!(plan(&shape(), &config, DeviceChoice::Cpu, at(2000) / 4 * 5 + 5), 2000);
    assert_eq!(plan(&shape(), &config, DeviceChoice::Cpu, at(2000) / 4 * 5 - 5), 1000);
}

#[test]
fn numbers_are_readable() {
    assert_eq!((show(5), show(1536), show(3 << 30)), ("5 B".into(), "1.5 KiB".into(), "3.0 GiB".into()));
    assert_eq!((thousands(7), thousands(1777088000)), ("7".into(), "1,777,088,000".into()));
}
