//! The engine in this process: continuous batching over a cache of blocks whose memory is bounded beforehand.

use crate::batch::{Batch, Tools};
use crate::engine::{Control, Engine, Error, Request, Result, Sampled};
use crate::pick::Sampling;
use crate::rollout::Rollout;
use model::Qwen2;
use model::cache::{Pool, blocks_for};
use model::decode::{Compute, Decoder, Workspace};
use std::time::Instant;

/// What the engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows decoded at once, at least one.
    pub max_rows: usize,
    /// Bytes of the key-value cache; `None` takes what `max_rows` need.
    pub cache_bytes: Option<u64>,
}

/// How requests share rows and cache. Both are on but where one is to be measured against its absence: what is sampled
/// does not depend on them, and without them it takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// A row that has finished is replaced at once; otherwise when all rows of its batch have finished.
    pub continuous: bool,
    /// Prompts that begin alike are computed once and share blocks; otherwise each request computes its own.
    pub sharing: bool,
}

impl Default for Batching {
    fn default() -> Self {
        Self { continuous: true, sharing: true }
    }
}

/// What a call of [`Engine::generate`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Steps of the whole batch.
    pub steps: usize,
    /// Tokens that went through the model.
    pub fed_tokens: usize,
    /// Tokens of prompts that did not have to, since another row's were taken.
    pub shared_tokens: usize,
    /// Rows that were sent back to the queue since the cache was full.
    pub preemptions: usize,
}

/// Continuous batching on this machine's CPU.
pub struct Local {
    limits: Limits,
    batching: Batching,
    compute: Compute,
    decoder: Option<Decoder>,
    version: u64,
    pool: Option<Pool>,
    workspace: Workspace,
    work: Work,
}

impl Local {
    /// An engine without weights yet, whose products are computed in `compute`.
    pub fn new(limits: Limits, compute: Compute) -> Self {
        let (batching, decoder, pool, workspace, work) = Default::default();
        Self { limits, batching, compute, decoder, version: 0, pool, workspace, work }
    }

    /// The same engine with other batching.
    pub fn with_batching(mut self, batching: Batching) -> Self {
        self.batching = batching;
        self
    }

    /// What the last call of [`Engine::generate`] took.
    pub fn work(&self) -> Work {
        self.work
    }

    /// A cache for these requests: as many blocks as they need at once, or as are allowed.
    fn pool(&mut self, requests: &[Request]) -> Result<Pool> {
        let config = self.decoder.as_ref().ok_or(Error::NoWeights)?.config();
        let capacity = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(0);
        let limit = config.max_positions;
        if capacity > limit {
            let message = "shorten the prompt or the budget (schedule.l_max, --max-tokens)";
            return Err(Error::Request(format!(
                "{capacity} tokens are beyond the model's limit of {limit}; {message}"
            )));
        }
        let mut blocks = self.limits.max_rows.min(requests.len()).max(1) * blocks_for(capacity);
        if let Some(bytes) = self.limits.cache_bytes {
            let block = Pool::block_bytes(config) as u64;
            blocks = blocks.min(usize::try_from(bytes / block).unwrap_or(usize::MAX));
            if blocks < blocks_for(capacity) {
                let one = block * blocks_for(capacity) as u64;
                let message =
                    format!("a sequence of {capacity} tokens needs {one} bytes of cache, the limit is {bytes}");
                return Err(Error::Request(format!("{message}; raise sampler.cache_memory")));
            }
        }
        let mut pool = self.pool.take().unwrap_or_else(|| Pool::new(config, blocks));
        pool.set_limit(blocks);
        Ok(pool)
    }
}

impl Engine for Local {
    fn load_weights(&mut self, model: &Qwen2) -> Result<()> {
        let refreshed = self.decoder.as_mut().map_or(Ok(false), |decoder| decoder.refresh(model))?;
        if !refreshed {
            // Dropped before its successor is made: there is never a second copy of the weights.
            let before = self.decoder.take().map(|decoder| decoder.config().clone());
            if before.is_some_and(|config| config != *model.config()) {
                self.pool = None;
            }
            self.decoder = Some(Decoder::pack(model, self.compute)?);
        }
        self.version += 1;
        Ok(())
    }

    fn generate(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(Sampled) -> Control,
    ) -> Result<Vec<Rollout>> {
        let started = Instant::now();
        if let Some(i) = requests.iter().position(|r| r.prompt.is_empty() || r.max_new_tokens == 0) {
            return Err(Error::Request(format!("request {i} has an empty prompt or a budget of zero tokens")));
        }
        let mut pool = self.pool(requests)?;
        let tools = Tools {
            decoder: self.decoder.as_ref().ok_or(Error::NoWeights)?,
            pool: &mut pool,
            workspace: &mut self.workspace,
            sampling,
            max_rows: self.limits.max_rows,
            batching: self.batching,
            started,
            weight_version: self.version,
        };
        let outcome = Batch::new(tools, requests).run(watch);
        // Where rows were dropped halfway their blocks are gone with them.
        self.pool = outcome.is_ok().then_some(pool);
        let (rollouts, work) = outcome?;
        self.work = work;
        Ok(rollouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Config, init};

    const TINY: &str = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "tie_word_embeddings": true}"#;

    fn engine(max_rows: usize) -> Local {
        let config = Config::parse(TINY, std::path::Path::new("config.json")).unwrap();
        let model = init::random(config, 0.5, 3, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let mut engine = Local::new(Limits { max_rows, cache_bytes: None }, Compute::F32);
        engine.load_weights(&model).unwrap();
        engine
    }

    fn requests() -> Vec<Request<'static>> {
        (0..5).map(|stream| Request { prompt: &[1, 2, 3], stream, max_new_tokens: 3 + 4 * stream as usize }).collect()
    }

    #[test]
    fn every_token_is_seen_in_the_order_of_its_response() {
        let requests = requests();
        let mut seen = vec![Vec::new(); requests.len()];
        let mut ends = vec![None; requests.len()];
        let watch = &mut |sampled: Sampled| {
            assert_eq!(ends[sampled.request], None, "nothing follows the last token");
            seen[sampled.request].push(sampled.token);
            ends[sampled.request] = sampled.finish;
            Control::Continue
        };
        let rollouts = engine(2).generate(&requests, &Sampling::at(1.0, &[7]), watch).unwrap();
        for ((rollout, seen), end) in rollouts.iter().zip(seen).zip(ends) {
            assert_eq!(rollout.tokens, seen);
            assert_eq!(Some(rollout.finish), end);
        }
    }

    #[test]
    fn rows_at_once_do_not_change_what_is_sampled() {
        let sample =
            |rows| engine(rows).generate(&requests(), &Sampling::at(1.0, &[7]), &mut |_| Control::Continue).unwrap();
        assert_eq!(sample(1), sample(5));
    }

    #[test]
    fn a_watcher_can_stop() {
        let mut tokens = 0;
        let watch = &mut |_| {
            tokens += 1;
            Control::Stop
        };
        let stopped = engine(2).generate(&requests(), &Sampling::at(1.0, &[]), watch);
        assert!(matches!(stopped, Err(Error::Stopped)));
        // The rows of that step, and no other step.
        assert_eq!(tokens, 2);
    }
}
