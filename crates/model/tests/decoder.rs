//! The fast decoder against the differentiable forward: the same log-probabilities, whatever the batch looks like.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use model::config::Config;
use model::decode::{Decoder, Span};
use model::ops::HeadScores;
use model::qwen2::{PackedBatch, Qwen2};
use model::{Result, recompute};
use std::path::Path;

fn tiny(heads: usize, key_value: usize, tied: bool) -> Qwen2 {
    with_options(heads, key_value, tied, r#""model_type": "qwen2""#)
}

fn with_options(heads: usize, key_value: usize, tied: bool, options: &str) -> Qwen2 {
    let text = format!(
        r#"{{"vocab_size": 50, "hidden_size": {}, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": {heads}, "num_key_value_heads": {key_value},
        "max_position_embeddings": 128, "tie_word_embeddings": {tied}, {options}}}"#,
        heads * 16
    );
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    model::init::random(config, 0.2, 7, DType::F32, &Device::Cpu).unwrap()
}

/// Every kind of block and of rotation: Qwen2 and Qwen3, heads wider and narrower than the residual stream, biases,
/// shared and own heads, tied and untied.
fn every_kind() -> Vec<Qwen2> {
    let yarn = r#""model_type": "qwen3", "head_dim": 24, "attention_bias": true, "rope_scaling":
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#;
    let llama3 = r#""model_type": "qwen2", "rope_parameters": {"rope_type": "llama3", "rope_theta": 1000000.0, "factor": 8,
        "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32}"#;
    vec![
        tiny(4, 2, true),
        tiny(7, 1, false),
        tiny(2, 2, true),
        with_options(4, 2, true, r#""model_type": "qwen3", "head_dim": 32"#),
        with_options(3, 3, false, r#""model_type": "qwen3", "head_dim": 8"#),
        with_options(6, 1, false, yarn),
        with_options(4, 1, true, llama3),
        with_options(4, 4, true, r#""model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 2.0}"#),
    ]
}

fn log_prob(logits: &[f32], token: u32) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| ((z - top) as f64).exp()).sum();
    logits[token as usize] - top - sum.ln() as f32
}

#[test]
fn decoder_and_training_forward_agree() {
    for model in every_kind() {
        let decoder = Decoder::pack(&model).unwrap();
        let sequences: Vec<Vec<u32>> =
            (1..5usize).map(|s| (0..20 * s as u32).map(|i| (i * 13 + s as u32 * 5) % 50).collect()).collect();
        let prompt = 4;
        let batch = PackedBatch::new(sequences.iter().map(|s| (s.as_slice(), prompt)));
        let want = model.scores(&batch, 1.0).unwrap().log_probs.to_vec1::<f32>().unwrap();

        let mut got: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let mut cache = decoder.cache(sequences.len(), 128);
        for t in prompt..80 {
            let live: Vec<usize> = (0..sequences.len()).filter(|&s| t < sequences[s].len()).collect();
            let spans = cache.slots_mut().iter_mut().zip(&sequences).filter(|(_, s)| t < s.len());
            let spans = spans
                .map(|(slot, s)| Span { tokens: if t == prompt { &s[..prompt] } else { &s[t - 1..t] }.into(), slot });
            let next = decoder.step(spans.collect(), |row, logits| log_prob(logits, sequences[live[row]][t])).unwrap();
            for (&s, value) in live.iter().zip(next) {
                got[s].push(value);
            }
        }
        let got = got.concat();
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn every_variable_gets_a_gradient() {
    for model in every_kind() {
        let tokens: Vec<u32> = (0..40).collect();
        let scores = model.scores(&PackedBatch::new([(tokens.as_slice(), 1)]), 1.0).unwrap();
        let grads = scores.log_probs.sum_all().unwrap().backward().unwrap();
        for (name, var) in model.variables() {
            let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} got no gradient"));
            let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0, "{name} has a zero gradient");
        }
    }
}

#[test]
fn limits_are_errors_that_say_so() {
    let decoder = Decoder::pack(&tiny(2, 1, true)).unwrap();
    let mut cache = decoder.cache(1, 16);
    let mut step = |tokens: &[u32]| {
        let spans = vec![Span { tokens: tokens.into(), slot: &mut cache.slots_mut()[0] }];
        decoder.step(spans, |_, _| ()).map_err(|e| e.to_string())
    };
    assert!(step(&[50]).unwrap_err().contains("token 50"));
    assert!(step(&[1; 17]).unwrap_err().contains("17 tokens"));
    assert!(step(&[]).unwrap_err().contains("at least one"));
    assert!(step(&[1; 16]).is_ok());
}

#[test]
fn recomputing_by_block_gives_the_same_gradients() {
    for model in every_kind() {
        let tokens: Vec<u32> = (0..40).collect();
        let batch = PackedBatch::new([(tokens.as_slice(), 1), (&tokens[..9], 3)]);
        let loss = |scores: &HeadScores| -> Result<(Tensor, ())> {
            Ok(((&scores.log_probs + (&scores.entropy * 0.1)?)?.sum_all()?, ()))
        };
        let whole = loss(&model.scores(&batch, 0.8).unwrap()).unwrap().0.backward().unwrap();
        let mut sums: Vec<Option<Tensor>> = vec![None; model.variables().len()];
        let mut sink = |store: &GradStore| -> Result<()> {
            for (sum, (_, var)) in sums.iter_mut().zip(model.variables()) {
                if let Some(g) = store.get(var.as_tensor()) {
                    *sum = Some(sum.as_ref().map_or(Ok(g.clone()), |s| s + g)?);
                }
            }
            Ok(())
        };
        recompute::backward(&model, &batch, 0.8, loss, &mut sink).unwrap();
        for ((name, var), sum) in model.variables().iter().zip(&sums) {
            let sum = sum.as_ref().unwrap_or_else(|| panic!("{name} got no gradient"));
            let want = whole.get(var.as_tensor()).unwrap();
            let gap = (sum - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let scale = want.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(gap.to_scalar::<f32>().unwrap() <= 1e-5 * scale.max(1e-3), "{name}");
        }
    }
}
