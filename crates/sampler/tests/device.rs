//! The engine of a device samples what the CPU's samples: with groups that fork, prompts in parts, rows that are sent away.

use candle_core::{DType, Device};
use model::{Config, Qwen2, init};
use sampler::{Compute, Control, Engine, Form, Limits, Local, Request, Rollout, Sampling, pick};
use std::path::Path;

fn policy(positions: usize) -> Qwen2 {
    let text = format!(
        r#"{{"model_type": "qwen2", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": {positions}}}"#
    );
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    init::random(config, 0.15, 11, DType::F32, &Device::Cpu).unwrap()
}

fn engine(model: &Qwen2, limits: Limits, form: Option<Form>) -> Local {
    let mut engine = match form {
        Some(form) => Local::in_form(limits, form),
        None => Local::new(limits, Compute::F32),
    };
    engine.load_weights(model).unwrap();
    engine
}

fn generate(engine: &mut Local, requests: &[Request]) -> Vec<Rollout> {
    engine.generate(requests, &Sampling::at(1.0, &[3]), &mut |_| Control::Continue).unwrap()
}

fn assert_same(got: &[Rollout], want: &[Rollout]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!((&got.tokens, got.finish), (&want.tokens, want.finish), "response {i}");
        for (a, b) in got.log_probs.iter().zip(&want.log_probs) {
            assert!((a - b).abs() < 1e-5, "response {i}: {a} is not {b}");
        }
    }
}

#[test]
fn the_same_responses_in_any_batch_with_forks_and_with_rows_sent_away() {
    let model = policy(96);
    let prompts: Vec<Vec<u32>> = (0..5).map(|p| (0..3 + p * 6).map(|i| (i * 7 + p) % 40).collect()).collect();
    // Groups of four, of budgets from 1 to 24.
    let requests: Vec<Request> = (0..20)
        .map(|i| Request {
            prompt: &prompts[i / 4],
            stream: pick::stream(&[5, i as u64]),
            max_new_tokens: 1 + (i * 5) % 24,
        })
        .collect();
    let limits = |max_rows, cache_bytes| Limits { max_rows, cache_bytes };
    let want = generate(&mut engine(&model, limits(32, None), None), &requests);
    assert!(want.iter().any(Rollout::truncated) && want.iter().any(|r| !r.truncated()));
    let block = 16 * 2 * 2 * 2 * 8 * 4;
    for (rows, blocks) in [(32, None), (3, None), (1, None), (32, Some(5))] {
        let mut engine = engine(&model, limits(rows, blocks.map(|blocks| blocks * block)), Some(Form::Composed));
        assert_eq!(engine.form(), Some(Form::Composed));
        assert_same(&generate(&mut engine, &requests), &want);
        assert!(blocks.is_none() || engine.work().preemptions > 0, "{:?}", engine.work());
        assert!(rows < 32 || engine.work().shared_tokens > 0, "{:?}", engine.work());
        // The cache is given back and taken again, and a smaller one is cut from it.
        engine.rest();
        assert_same(&generate(&mut engine, &requests[..8]), &want[..8]);
        assert_same(&generate(&mut engine, &requests[4..5]), &want[4..5]);
        assert_same(&generate(&mut engine, &requests), &want);
    }
}

#[test]
fn a_long_prompt_is_fed_in_parts() {
    let model = policy(4000);
    let prompts: Vec<Vec<u32>> = [5, 2500].into_iter().map(|n| (0..n).map(|i| (i * 7 + n) % 40).collect()).collect();
    let requests: Vec<Request> =
        prompts.iter().map(|prompt| Request { prompt, stream: prompt.len() as u64, max_new_tokens: 4 }).collect();
    let limits = Limits { max_rows: 2, cache_bytes: None };
    let want = generate(&mut engine(&model, limits, None), &requests);
    let mut composed = engine(&model, limits, Some(Form::Composed));
    assert_same(&generate(&mut composed, &requests), &want);
    assert!(composed.work().steps >= 5, "{:?}", composed.work());
}

#[test]
fn weights_are_those_of_the_trainer_and_the_form_is_told_once() {
    let model = policy(96);
    let prompt = [1, 2, 3];
    let requests = [Request { prompt: &prompt, stream: 1, max_new_tokens: 12 }];
    let mut composed = engine(&model, Limits { max_rows: 2, cache_bytes: None }, Some(Form::Composed));
    assert!(composed.news().is_some_and(|news| news.contains("plain tensor operations")) && composed.news().is_none());
    let before = generate(&mut composed, &requests);
    let (_, var) = &model.variables()[0];
    var.set(&var.affine(-2.0, 0.1).unwrap()).unwrap();
    composed.load_weights(&model).unwrap();
    let after = generate(&mut composed, &requests);
    assert_ne!(before[0].tokens, after[0].tokens);
    assert_eq!((before[0].weight_version, after[0].weight_version), (1, 2));
    let mut cpu = engine(&model, Limits { max_rows: 2, cache_bytes: None }, None);
    assert!(cpu.news().is_none() && cpu.form().is_none());
    assert_same(&after, &generate(&mut cpu, &requests));
}
