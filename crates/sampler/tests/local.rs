//! A rollout depends on its own stream, prompt and weights alone: not on its neighbours, the batch size, the threads.

use candle_core::{DType, Device};
use model::{Config, PackedBatch, Qwen2, init};
use sampler::{Control, Engine, Error, Finish, Limits, Local, Request, Rollout, Sampling, pick};
use std::path::Path;

fn policy() -> Qwen2 {
    let text = r#"{"model_type": "qwen2", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}"#;
    let config = Config::parse(text, Path::new("config.json")).unwrap();
    init::random(config, 0.15, 11, DType::F32, &Device::Cpu).unwrap()
}

fn engine(model: &Qwen2, max_rows: usize, cache_bytes: Option<u64>) -> Local {
    let mut engine = Local::new(Limits { max_rows, cache_bytes });
    engine.load_weights(model).unwrap();
    engine
}

fn prompts() -> Vec<Vec<u32>> {
    (0..7).map(|p| (0..2 + p * 3).map(|i| (i * 7 + p) % 40).collect()).collect()
}

/// Many responses of very different lengths: 143 a prompt, budgets from 1 to 24.
fn requests(prompts: &[Vec<u32>]) -> Vec<Request<'_>> {
    let rows = (0..143).flat_map(|sample| prompts.iter().enumerate().map(move |(p, prompt)| (p, prompt, sample)));
    rows.map(|(p, prompt, sample)| Request {
        prompt,
        stream: pick::stream(&[5, p as u64, sample]),
        max_new_tokens: 1 + (sample as usize * 5 + p) % 24,
    })
    .collect()
}

fn generate(engine: &mut Local, requests: &[Request]) -> Vec<Rollout> {
    engine.generate(requests, &Sampling::at(1.0, &[3]), &mut |_| Control::Continue).unwrap()
}

#[test]
fn a_thousand_rollouts_are_the_same_bits_in_any_batch_and_at_any_number_of_threads() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    assert_eq!(requests.len(), 1001);
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let want = pool(1).install(|| generate(&mut engine(&model, 64, None), &requests));
    for (threads, rows) in [(2, 64), (2, 7), (1, 1001), (3, 200)] {
        let got = pool(threads).install(|| generate(&mut engine(&model, rows, None), &requests));
        assert!(got == want, "{rows} rows on {threads} threads sample something else");
    }
    let mut backwards = requests.clone();
    backwards.reverse();
    let mut got = generate(&mut engine(&model, 50, None), &backwards);
    got.reverse();
    assert!(got == want, "the order of the queue changes what is sampled");
    assert!(want.iter().any(|r| r.finish == Finish::Stop) && want.iter().any(Rollout::truncated));
}

#[test]
fn log_probs_are_those_that_training_computes() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    let rollouts = generate(&mut engine(&model, 32, None), &requests);
    let sequences: Vec<(Vec<u32>, usize)> = requests
        .iter()
        .zip(&rollouts)
        .map(|(request, rollout)| ([request.prompt, &rollout.tokens].concat(), request.prompt.len()))
        .collect();
    let batch = PackedBatch::new(sequences.iter().map(|(tokens, prompt)| (tokens.as_slice(), *prompt)));
    let trained = model.scores(&batch, 1.0).unwrap().log_probs.to_vec1::<f32>().unwrap();
    let sampled: Vec<f32> = rollouts.iter().flat_map(|r| r.log_probs.iter().copied()).collect();
    assert_eq!(trained.len(), sampled.len());
    let gap = trained.iter().zip(&sampled).fold(0.0f32, |gap, (t, s)| gap.max((t - s).abs()));
    assert!(gap < 1e-4, "sampler and trainer differ by {gap}");
}

#[test]
fn a_response_ends_at_its_budget_or_behind_a_stop_token() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    for (request, rollout) in requests.iter().zip(generate(&mut engine(&model, 64, None), &requests)) {
        let stopped = rollout.tokens.last() == Some(&3);
        assert_eq!(rollout.finish == Finish::Stop, stopped);
        assert!(stopped || rollout.tokens.len() == request.max_new_tokens);
        assert!(!rollout.tokens[..rollout.tokens.len() - 1].contains(&3));
        assert_eq!(rollout.log_probs.len(), rollout.tokens.len());
    }
}

#[test]
fn limits_and_bad_requests_are_errors_before_anything_runs() {
    let model = policy();
    let prompt = [1, 2, 3];
    let request = |max_new_tokens| Request { prompt: &prompt, stream: 1, max_new_tokens };
    let message = |engine: &mut Local, request: Request| {
        let sampling = Sampling::at(1.0, &[]);
        engine.generate(&[request], &sampling, &mut |_| Control::Continue).unwrap_err().to_string()
    };
    assert!(message(&mut engine(&model, 4, None), request(94)).contains("limit of 96"));
    assert!(message(&mut engine(&model, 4, Some(100)), request(8)).contains("sampler.cache_memory"));
    assert!(message(&mut engine(&model, 4, None), request(0)).contains("zero tokens"));
    assert!(message(&mut Local::new(Limits { max_rows: 4, cache_bytes: None }), request(8)).contains("no weights"));
    let stopped = engine(&model, 4, None).generate(&[request(8)], &Sampling::at(1.0, &[]), &mut |_| Control::Stop);
    assert!(matches!(stopped, Err(Error::Stopped)));
}
