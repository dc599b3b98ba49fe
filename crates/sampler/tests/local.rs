//! A rollout depends on its own stream, prompt and weights alone: not on its neighbours, the batch size, the threads.

use candle_core::{DType, Device};
use model::{Config, PackedBatch, Qwen2, init};
use sampler::{Compute, Control, Engine, Error, Finish, Limits, Local, Request, Rollout, Sampling, pick};
use std::path::Path;

fn policy() -> Qwen2 {
    let text = r#"{"model_type": "qwen2", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}"#;
    let config = Config::parse(text, Path::new("config.json")).unwrap();
    init::random(config, 0.15, 11, DType::F32, &Device::Cpu).unwrap()
}

fn engine(model: &Qwen2, max_rows: usize, cache_bytes: Option<u64>) -> Local {
    let mut engine = Local::new(Limits { max_rows, cache_bytes }, Compute::F32);
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
    // Room for the longest sequence and a little more: rows are sent away and computed again.
    let block = 16 * 2 * 2 * 2 * 16 * 4;
    for (threads, blocks) in [(1, 3), (2, 5), (2, 40)] {
        let mut engine = engine(&model, 64, Some(blocks * block));
        let got = pool(threads).install(|| generate(&mut engine, &requests));
        assert!(got == want, "a cache of {blocks} blocks on {threads} threads samples something else");
        assert!(engine.work().preemptions > 0 || blocks > 5, "{:?}", engine.work());
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
fn a_prompt_is_computed_once_for_its_group() {
    let model = policy();
    let prompt: Vec<u32> = (0..53).map(|i| (i * 7) % 40).collect();
    let longer: Vec<u32> = prompt.iter().copied().chain([1, 2, 3]).collect();
    let request = |prompt, stream| Request { prompt, stream, max_new_tokens: 8 };
    let group: Vec<Request> = (0..6).map(|stream| request(&prompt, stream)).chain([request(&longer, 9)]).collect();
    let sampling = Sampling::at(1.0, &[]);
    let run = |rows, group: &[Request]| {
        let mut engine = engine(&model, rows, None);
        let rollouts = engine.generate(group, &sampling, &mut |_| Control::Continue).unwrap();
        (rollouts, engine.work())
    };
    // All at once: the prompt once, seven tokens for each of the six, and the longer prompt, which shares no block with
    // one that is computed in the same step.
    let (want, work) = run(7, &group);
    assert_eq!((work.fed_tokens, work.shared_tokens), (53 + 6 * 7 + 56 + 7, 5 * 53));
    // Two rows: of each later pair one takes the three full blocks and computes the rest, and the other forks from it.
    let (got, work) = run(2, &group);
    assert_eq!(got, want);
    assert_eq!((work.fed_tokens, work.shared_tokens), (53 + 6 * 7 + 2 * 5 + 8 + 7, 53 + 2 * (48 + 53) + 48));
    // Each alone.
    for (request, want) in group.iter().zip(&want) {
        assert_eq!(run(1, std::slice::from_ref(request)).0, std::slice::from_ref(want));
    }
}

#[test]
fn long_prompts_are_fed_by_parts_beside_others() {
    let text = r#"{"model_type": "qwen2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 6000}"#;
    let config = Config::parse(text, Path::new("config.json")).unwrap();
    let model = init::random(config, 0.15, 11, DType::F32, &Device::Cpu).unwrap();
    let prompts: Vec<Vec<u32>> =
        [3, 3000, 5000].into_iter().map(|n| (0..n).map(|i| (i * 7 + n) % 40).collect()).collect();
    let requests: Vec<Request> =
        prompts.iter().map(|prompt| Request { prompt, stream: prompt.len() as u64, max_new_tokens: 5 }).collect();
    let mut together = engine(&model, 3, None);
    let want: Vec<Rollout> =
        requests.iter().flat_map(|r| generate(&mut engine(&model, 1, None), std::slice::from_ref(r))).collect();
    assert_eq!(generate(&mut together, &requests), want);
    // 8003 tokens of prompts at 2048 a step, and what is left of the responses.
    assert!(together.work().steps >= 4, "{:?}", together.work());
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
    assert!(
        message(&mut Local::new(Limits { max_rows: 4, cache_bytes: None }, Compute::F32), request(8))
            .contains("no weights")
    );
    let stopped = engine(&model, 4, None).generate(&[request(8)], &Sampling::at(1.0, &[]), &mut |_| Control::Stop);
    assert!(matches!(stopped, Err(Error::Stopped)));
}
