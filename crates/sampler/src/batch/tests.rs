//! The scheduler over a backend whose cache holds the tokens themselves, and whose next token is a hash of all it finds there:
//! a block that is missing, stale or another's changes what is sampled.

use super::*;
use crate::backend::Drawn;
use crate::pick;
use model::Config;
use model::cache::LANES;
use std::path::Path;
use std::sync::Arc;

/// Blocks of tokens.
struct Tokens;

impl Store for Tokens {
    type Payload = [u32; LANES];

    fn make(&mut self) -> Option<Arc<[u32; LANES]>> {
        Some(Arc::new([u32::MAX; LANES]))
    }

    fn unmake(&mut self, _: Arc<[u32; LANES]>) {}

    fn copy(&mut self, from: &[u32; LANES], to: &mut [u32; LANES]) {
        *to = *from;
    }
}

struct Hashes {
    config: Config,
    /// Tokens fed by each step.
    fed: Vec<usize>,
}

/// The token behind these, at `u`.
fn next(tokens: impl Iterator<Item = u32>, u: f64) -> (u32, f32) {
    let parts: Vec<u64> = tokens.map(u64::from).chain([u.to_bits()]).collect();
    let hash = pick::stream(&parts);
    ((hash % 50) as u32, (hash >> 40) as f32)
}

impl Backend for Hashes {
    type Store = Tokens;

    fn config(&self) -> &Config {
        &self.config
    }

    fn block_bytes(&self) -> usize {
        size_of::<[u32; LANES]>()
    }

    fn room(&self, _: usize) -> Result<Option<u64>> {
        Ok(None)
    }

    fn held(&self, _: &Tokens) -> u64 {
        0
    }

    fn fits(&self, _: &Tokens, _: usize) -> bool {
        true
    }

    fn store(&self, _: usize) -> Result<Tokens> {
        Ok(Tokens)
    }

    fn step(
        &mut self,
        _: &mut Tokens,
        spans: Vec<SpanOf<Self>>,
        _: &Sampling,
        draws: &[Vec<f64>],
    ) -> Result<Vec<Drawn>> {
        self.fed.push(spans.iter().map(|span| span.tokens.len()).sum());
        let feed = |(span, draws): (SpanOf<Self>, &Vec<f64>)| {
            let start = span.sequence.len();
            for (position, &token) in (start..).zip(span.tokens.iter()) {
                span.sequence.own_block(position).expect("a block of its own")[position % LANES] = token;
            }
            span.sequence.advance(span.tokens.len());
            let held = || span.sequence.blocks().iter().flat_map(|block| **block).take(span.sequence.len());
            span.logits.then(|| draws.iter().map(|&u| next(held(), u)).collect())
        };
        Ok(spans.into_iter().zip(draws).map(feed).collect())
    }
}

fn backend() -> Hashes {
    let text = r#"{"model_type": "qwen2", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 9000}"#;
    Hashes { config: Config::parse(text, Path::new("config.json")).unwrap(), fed: Vec::new() }
}

/// What a request alone gives, by the definition.
fn alone(request: &Request, stop: u32) -> (Vec<u32>, Vec<f32>) {
    let (mut tokens, mut log_probs) = (Vec::new(), Vec::new());
    while tokens.len() < request.max_new_tokens && tokens.last() != Some(&stop) {
        let u = uniform(request.stream, tokens.len());
        let (token, log_prob) = next(request.prompt.iter().chain(&tokens).copied(), u);
        tokens.push(token);
        log_probs.push(log_prob);
    }
    (tokens, log_probs)
}

#[test]
fn every_row_finds_its_own_tokens_in_its_blocks_whatever_happens_to_others() {
    let prompts: Vec<Vec<u32>> = [3, 16, 17, 40, 40, 5000]
        .iter()
        .enumerate()
        // The fourth and the fifth begin alike.
        .map(|(p, &n)| (0..n).map(|i| if p == 4 && i < 35 { i * 7 + 3 } else { i * 7 + p as u32 } % 50).collect())
        .collect();
    let requests: Vec<Request> = (0..60)
        .map(|i| Request {
            prompt: &prompts[if i < 56 { i % 20 / 4 } else { 5 }],
            stream: pick::stream(&[3, i as u64]),
            max_new_tokens: 1 + i * 7 % 40,
        })
        .collect();
    let sampling = Sampling::at(1.0, &[11]);
    // The last has room for the longest row and hardly more.
    for (max_rows, blocks) in [(60, 2000), (7, 2000), (1, 400), (60, 316)] {
        let (mut backend, mut pool) = (backend(), Pool::new(Tokens, blocks));
        let tools = Tools {
            backend: &mut backend,
            pool: &mut pool,
            sampling: &sampling,
            max_rows,
            batching: Batching::default(),
            started: Instant::now(),
            weight_version: 1,
        };
        let (rollouts, work) = Batch::new(tools, &requests).run(&mut |_| Control::Continue).unwrap();
        for (i, (rollout, request)) in rollouts.iter().zip(&requests).enumerate() {
            let want = alone(request, 11);
            assert_eq!((&rollout.tokens, &rollout.log_probs), (&want.0, &want.1), "response {i} of {max_rows} rows");
        }
        assert_eq!(pool.available(), blocks, "every block came back");
        assert!(backend.fed.iter().all(|&fed| fed <= STEP_TOKENS + max_rows), "{:?}", backend.fed);
        assert_eq!(backend.fed.iter().sum::<usize>(), work.fed_tokens);
        assert!(work.shared_tokens > 0, "{work:?}");
        assert!(blocks > 316 || work.preemptions > 0, "{work:?}");
    }
}
