//! The engine in this process: continuous batching over a cache of blocks whose memory is bounded beforehand.

use crate::backend::{Backend, Packed};
use crate::batch::{Batch, Tools};
use crate::device::OnDevice;
use crate::engine::{Control, Engine, Error, Request, Result, Sampled};
use crate::pick::Sampling;
use crate::rollout::Rollout;
use model::Qwen2;
use model::cache::{Pool, blocks_for};
use model::decode::{Compute, Decoder};
use model::decode_device::{DeviceDecoder, Form};
use std::time::Instant;

/// What the engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows decoded at once, at least one; fewer are where more would not help ([`model::decode::enough_rows`]).
    pub max_rows: usize,
    /// Bytes of the key-value cache; `None` takes what the rows need, of a device's memory at most what is free.
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
    /// The most responses in progress at once.
    pub rows: usize,
    /// Tokens that went through the model.
    pub fed_tokens: usize,
    /// Tokens of prompts that did not have to, since another row's were taken.
    pub shared_tokens: usize,
    /// Rows that were sent back to the queue since the cache was full.
    pub preemptions: usize,
    /// Steps that were replayed from a captured graph.
    pub replayed: usize,
}

/// Continuous batching on the device of the weights.
pub struct Local {
    limits: Limits,
    batching: Batching,
    compute: Compute,
    /// Whether steps are those of a device wherever the weights are, and in which form.
    form: Option<Form>,
    /// Whether steps may be captured as graphs.
    graphs: bool,
    /// What [`Local::news`] has told.
    told: Option<String>,
    loaded: Option<Loaded>,
    version: u64,
    work: Work,
}

/// Weights, and the cache of the last call.
enum Loaded {
    Packed(Box<Running<Packed>>),
    Device(Box<Running<OnDevice>>),
}

struct Running<B: Backend> {
    backend: B,
    pool: Option<Pool<B::Store>>,
}

impl Local {
    /// An engine without weights yet. On the CPU, its products are computed in `compute`; on another device, in the type of
    /// the weights.
    pub fn new(limits: Limits, compute: Compute) -> Self {
        let (batching, form, loaded, told, work) = Default::default();
        Self { limits, batching, compute, form, graphs: true, told, loaded, version: 0, work }
    }

    /// The same engine with other batching.
    pub fn with_batching(self, batching: Batching) -> Self {
        Self { batching, ..self }
    }

    /// Whether a GPU's steps may be captured as graphs (they may, if nothing is said), or their kernels are launched one by
    /// one.
    pub fn with_graphs(self, graphs: bool) -> Self {
        Self { graphs, ..self }
    }

    /// An engine whose steps are computed in this form, wherever the weights are.
    pub fn in_form(limits: Limits, form: Form) -> Self {
        Self { form: Some(form), ..Self::new(limits, Compute::F32) }
    }

    /// How steps are computed on a device; `None` for the CPU's packed weights, and before weights are loaded.
    pub fn form(&self) -> Option<Form> {
        match &self.loaded {
            Some(Loaded::Device(running)) => Some(running.backend.decoder().form()),
            _ => None,
        }
    }

    /// What the last call of [`Engine::generate`] took.
    pub fn work(&self) -> Work {
        self.work
    }

    /// How a device generates, once, and again when that has changed; nothing on the CPU.
    pub fn news(&mut self) -> Option<String> {
        let Some(Loaded::Device(running)) = &self.loaded else { return None };
        let decoder = running.backend.decoder();
        let news: String = match (decoder.form(), decoder.graphs().1) {
            (Form::Composed, _) => {
                "generation: plain tensor operations, slow; this device has no kernels for it".into()
            }
            (Form::Kernels, _) => "generation: kernels launched one by one".into(),
            (Form::Graphs, None) => "generation: kernels, steps captured as CUDA graphs".into(),
            (Form::Graphs, Some(why)) => format!("generation: kernels launched one by one; no CUDA graphs: {why}"),
        };
        let new = self.told.as_ref() != Some(&news);
        self.told = Some(news);
        self.told.clone().filter(|_| new)
    }

    /// The form of a device's steps for these weights.
    fn device_form(&self, model: &Qwen2) -> Form {
        match self.form.unwrap_or_else(|| DeviceDecoder::best_form(model)) {
            Form::Graphs if !self.graphs => Form::Kernels,
            form => form,
        }
    }

    /// Packs weights for the CPU. The cache and the working space are those of the weights before, if they fit.
    fn packed(before: Option<Loaded>, model: &Qwen2, compute: Compute) -> Result<Running<Packed>> {
        let (pool, workspace) = match before {
            Some(Loaded::Packed(running)) => {
                let Running { backend, pool } = *running;
                let pool = pool.filter(|_| backend.config() == model.config());
                // Dropped before its successor is made: there is never a second copy of the weights.
                (pool, backend.into_workspace())
            }
            _ => Default::default(),
        };
        Ok(Running { backend: Packed::new(Decoder::pack(model, compute)?, workspace), pool })
    }
}

impl<B: Backend> Running<B> {
    /// Rows at a time: what is allowed, or fewer where more would not help.
    fn rows(&self, limits: Limits) -> usize {
        limits.max_rows.min(self.backend.enough_rows().unwrap_or(usize::MAX))
    }

    /// A cache for these requests: as many blocks as they need at once, or as are allowed.
    fn pool(&mut self, limits: Limits, requests: &[Request]) -> Result<Pool<B::Store>> {
        let config = self.backend.config();
        let capacity = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(0);
        let limit = config.max_positions;
        if capacity > limit {
            let message = "shorten the prompt or the budget (schedule.l_max, --max-tokens)";
            return Err(Error::Request(format!(
                "{capacity} tokens are beyond the model's limit of {limit}; {message}"
            )));
        }
        let rows = self.rows(limits);
        let mut blocks = rows.min(requests.len()).max(1) * blocks_for(capacity);
        // What the last call took counts as free: it is used again, or given back first.
        let held = self.pool.as_ref().map_or(0, |pool| self.backend.held(pool.store()));
        let room = self.backend.room(rows)?.map(|room| room.saturating_add(held));
        let allowed = match (limits.cache_bytes, room) {
            (Some(limit), Some(room)) => Some(limit.min(room)),
            (limit, room) => limit.or(room),
        };
        if let Some(bytes) = allowed {
            let block = self.backend.block_bytes() as u64;
            blocks = blocks.min(usize::try_from(bytes / block).unwrap_or(usize::MAX));
            if blocks < blocks_for(capacity) {
                let one = block * blocks_for(capacity) as u64;
                let message =
                    format!("a sequence of {capacity} tokens needs {one} bytes of cache, the limit is {bytes}");
                let advice = if limits.cache_bytes == Some(bytes) {
                    "raise sampler.cache_memory"
                } else {
                    "that is what the device has free; shorten the budget, or free its memory"
                };
                return Err(Error::Request(format!("{message}; {advice}")));
            }
        }
        let before = self.pool.take().filter(|pool| self.backend.fits(pool.store(), blocks));
        let mut pool = match before {
            Some(pool) => pool,
            None => Pool::new(self.backend.store(blocks)?, blocks),
        };
        pool.set_limit(blocks);
        Ok(pool)
    }

    fn generate(&mut self, call: Call) -> Result<(Vec<Rollout>, Work)> {
        let mut pool = self.pool(call.limits, call.requests)?;
        let max_rows = self.rows(call.limits);
        let tools = Tools {
            backend: &mut self.backend,
            pool: &mut pool,
            sampling: call.sampling,
            max_rows,
            batching: call.batching,
            started: call.started,
            weight_version: call.version,
        };
        let outcome = Batch::new(tools, call.requests).run(call.watch);
        // Where rows were dropped halfway their blocks are gone with them.
        self.pool = outcome.is_ok().then_some(pool);
        outcome
    }
}

/// One call of [`Engine::generate`].
struct Call<'a> {
    limits: Limits,
    batching: Batching,
    started: Instant,
    version: u64,
    requests: &'a [Request<'a>],
    sampling: &'a Sampling,
    watch: &'a mut dyn FnMut(Sampled) -> Control,
}

impl Engine for Local {
    fn load_weights(&mut self, model: &Qwen2) -> Result<()> {
        let refreshed = match &mut self.loaded {
            Some(Loaded::Packed(running)) => running.backend.decoder_mut().refresh(model)?,
            Some(Loaded::Device(running)) => running.backend.refresh(model)?,
            None => false,
        };
        if !refreshed {
            let before = self.loaded.take();
            self.loaded = Some(if model.device().is_cpu() && self.form.is_none() {
                Loaded::Packed(Box::new(Self::packed(before, model, self.compute)?))
            } else {
                drop(before);
                let backend = OnDevice::new(model, self.device_form(model))?;
                Loaded::Device(Box::new(Running { backend, pool: None }))
            });
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
        let (limits, batching, version) = (self.limits, self.batching, self.version);
        let call = Call { limits, batching, started, version, requests, sampling, watch };
        let (rollouts, work) = match self.loaded.as_mut().ok_or(Error::NoWeights)? {
            Loaded::Packed(running) => running.generate(call)?,
            Loaded::Device(running) => {
                let before = running.backend.decoder().graphs().0;
                let (rollouts, work) = running.generate(call)?;
                (rollouts, Work { replayed: running.backend.decoder().graphs().0 - before, ..work })
            }
        };
        self.work = work;
        Ok(rollouts)
    }

    fn rest(&mut self) {
        if let Some(Loaded::Device(running)) = &mut self.loaded {
            running.pool = None;
            running.backend.rest();
        }
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
    fn the_most_rows_at_once_are_counted() {
        let rows_of = |allowed| {
            let mut engine = engine(allowed);
            engine.generate(&requests(), &Sampling::at(1.0, &[7]), &mut |_| Control::Continue).unwrap();
            engine.work().rows
        };
        assert_eq!([1, 3, 5, 64].map(rows_of), [1, 3, 5, 5]);
        // A small model's products gain nothing from more than so many rows.
        let enough = model::decode::enough_rows(1, rayon::current_num_threads()).unwrap();
        let many = vec![Request { prompt: &[1, 2, 3], stream: 1, max_new_tokens: 2 }; enough + 9];
        let mut engine = engine(enough + 9);
        engine.generate(&many, &Sampling::at(1.0, &[]), &mut |_| Control::Continue).unwrap();
        assert_eq!(engine.work().rows, enough);
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
