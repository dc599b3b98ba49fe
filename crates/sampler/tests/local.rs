//! A rollout depends on its own stream, prompt and weights alone: not on its neighbours, the batch size, the threads.

use candle_core::{DType, Device};
use model::{Config, PackedBatch, Qwen2, init};
use sampler::{
    Batching, Compute, Control, Endings, Engine, Error, Finish, Limits, Local, Request, Rollout, Sampling, pick,
};
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
    // Backwards, by prompt, so that groups fork from one row, and all over the place; with room and without.
    let place = |name: u64, i: usize| pick::uniform(pick::stream(&[name]), i).to_bits();
    let orders: [&dyn Fn(usize) -> u64; 3] = [&|i| u64::MAX - i as u64, &|i| i as u64 % 7, &|i| place(8, i)];
    for (order, key) in orders.iter().enumerate() {
        let mut at: Vec<usize> = (0..requests.len()).collect();
        at.sort_by_key(|&i| key(i));
        let queue: Vec<Request> = at.iter().map(|&i| requests[i].clone()).collect();
        for (threads, rows, blocks) in [(2, 50, None), (1, 64, Some(4)), (2, 64, Some(9))] {
            let mut engine = engine(&model, rows, blocks.map(|blocks| blocks * block));
            let got = pool(threads).install(|| generate(&mut engine, &queue));
            let same = at.iter().zip(&got).all(|(&i, got)| *got == want[i]);
            assert!(same, "order {order} of the queue, {rows} rows, {blocks:?} blocks: something else is sampled");
            assert!(engine.work().preemptions > 0 || blocks != Some(4), "{:?}", engine.work());
        }
    }
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
    let sampled: Vec<f32> = rollouts.iter().flat_map(|r| r.log_probs.iter().copied()).collect();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let trained = pool.install(|| model.scores(&batch, 1.0).unwrap().log_probs.to_vec1::<f32>().unwrap());
        assert_eq!(trained.len(), sampled.len());
        let gap = trained.iter().zip(&sampled).fold(0.0f32, |gap, (t, s)| gap.max((t - s).abs()));
        assert!(gap < 1e-4, "sampler and trainer differ by {gap} on {threads} threads");
    }
}

#[test]
fn rounded_products_sample_the_same_in_any_batch_too() {
    let (model, prompts) = (policy(), prompts());
    let requests = &requests(&prompts)[..200];
    let run = |compute, rows, threads| {
        let mut engine = Local::new(Limits { max_rows: rows, cache_bytes: None }, compute);
        engine.load_weights(&model).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| generate(&mut engine, requests))
    };
    let exact = run(Compute::F32, 64, 1);
    for compute in [Compute::Bf16, Compute::Int8] {
        let want = run(compute, 64, 1);
        assert!(want == run(compute, 7, 2), "{compute:?}");
        assert!(want != exact, "{compute:?} is f32");
    }
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
fn an_ending_cuts_a_rollout_where_it_says_and_changes_nothing_before() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    // The response ends with the third even token: told a token twice or not at all, an ending would be off.
    let even = |tokens: &[u32]| tokens.iter().enumerate().filter(|(_, t)| *t % 2 == 0).nth(2).map(|(i, _)| i);
    let endings = Endings::new(|| {
        let mut seen = 0;
        Box::new(move |token| {
            seen += usize::from(token % 2 == 0);
            Ok(seen == 3)
        })
    });
    let sampling = Sampling { endings: Some(endings), ..Sampling::at(1.0, &[3]) };
    let whole = generate(&mut engine(&model, 64, None), &requests);
    let block = 16 * 2 * 2 * 2 * 16 * 4;
    for (rows, blocks) in [(64, None), (7, None), (64, Some(3))] {
        let mut engine = engine(&model, rows, blocks.map(|blocks| blocks * block));
        let cut = engine.generate(&requests, &sampling, &mut |_| Control::Continue).unwrap();
        assert_eq!(engine.work().preemptions > 0, blocks.is_some());
        for (whole, cut) in whole.iter().zip(&cut) {
            let end = even(&whole.tokens);
            let len = end.map_or(whole.tokens.len(), |end| end + 1);
            assert_eq!(
                (&cut.tokens, &cut.log_probs),
                (&whole.tokens[..len].to_vec(), &whole.log_probs[..len].to_vec())
            );
            assert_eq!(cut.finish, if end.is_some() { Finish::Stop } else { whole.finish });
        }
    }
    let broken = Endings::new(|| Box::new(|_| Err(Error::Request("no such token".into()))));
    let sampling = Sampling { endings: Some(broken), ..Sampling::at(1.0, &[]) };
    let mut engine = engine(&model, 64, None);
    let refused = engine.generate(&requests, &sampling, &mut |_| Control::Continue);
    assert!(matches!(refused, Err(Error::Request(message)) if message == "no such token"));
    assert!(generate(&mut engine, &requests) == whole, "the engine is as it was before");
}

#[test]
fn times_are_in_order_and_a_rollout_that_waits_for_a_row_is_admitted_after_another_has_finished() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    let started = std::time::Instant::now();
    let rollouts = generate(&mut engine(&model, 8, Some(6 * 16 * 2 * 2 * 2 * 16 * 4)), &requests);
    let spent = started.elapsed().as_secs_f64();
    for rollout in &rollouts {
        let times = rollout.times;
        assert!(0.0 < times.admitted && times.admitted < times.first_token, "{times:?}");
        assert!(times.first_token <= times.finished && times.finished <= spent, "{times:?}");
        assert!(rollout.tokens.len() == 1 || times.first_token < times.finished, "{times:?}");
    }
    let first = rollouts.iter().map(|r| r.times.finished).fold(f64::INFINITY, f64::min);
    let waited = rollouts.iter().filter(|r| r.times.admitted > first).count();
    assert!(waited >= requests.len() - 2 * 8, "{waited} waited");
}

#[test]
fn without_sharing_or_refilling_the_same_is_sampled_with_more_work() {
    let (model, prompts) = (policy(), prompts());
    let requests = requests(&prompts);
    let run = |batching: Batching| {
        let mut engine = Local::new(Limits { max_rows: 64, cache_bytes: None }, Compute::F32).with_batching(batching);
        engine.load_weights(&model).unwrap();
        (generate(&mut engine, &requests), engine.work())
    };
    let (want, all) = run(Batching::default());
    let (alone, unshared) = run(Batching { sharing: false, ..Batching::default() });
    let (fixed, halting) = run(Batching { continuous: false, ..Batching::default() });
    assert!(alone == want && fixed == want);
    assert!(all.shared_tokens > 0 && unshared.shared_tokens == 0);
    assert_eq!(unshared.fed_tokens, all.fed_tokens + all.shared_tokens);
    // Batches of 64 wait for a response of up to 24 tokens each.
    assert!(halting.steps > all.steps, "{halting:?} {all:?}");
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
