//! The engine in this process: continuous batching over a preallocated cache.
//!
//! Requests wait in a queue; a row that has finished is replaced at once, so one long response never holds a batch. What a
//! row samples depends on its own stream and prompt alone, never on its neighbours.

use crate::engine::{Control, Engine, Error, Request, Result, Sampled};
use crate::pick::{Sampling, pick, uniform};
use crate::rollout::{Finish, Rollout};
use model::Qwen2;
use model::cache::KvCache;
use model::decode::{Decoder, Span};

/// What the engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows decoded at once, at least one.
    pub max_rows: usize,
    /// Bytes of the key-value cache; `None` takes what `max_rows` need.
    pub cache_bytes: Option<u64>,
}

/// Continuous batching on this machine's CPU.
pub struct Local {
    limits: Limits,
    decoder: Option<Decoder>,
    version: u64,
    cache: Option<KvCache>,
}

/// A row in progress.
struct Row {
    request: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
}

impl Local {
    /// An engine without weights yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, decoder: None, version: 0, cache: None }
    }

    /// A cache for these requests: as many rows as are allowed, are needed, and fit.
    fn cache(&mut self, requests: &[Request]) -> Result<KvCache> {
        let decoder = self.decoder.as_ref().ok_or(Error::NoWeights)?;
        let capacity = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(0);
        let limit = decoder.config().max_positions;
        if capacity > limit {
            let message = "shorten the prompt or the budget (schedule.l_max, --max-tokens)";
            return Err(Error::Request(format!(
                "{capacity} tokens are beyond the model's limit of {limit}; {message}"
            )));
        }
        let mut rows = self.limits.max_rows.min(requests.len()).max(1);
        if let Some(bytes) = self.limits.cache_bytes {
            let row = KvCache::bytes(decoder.config(), 1, capacity) as u64;
            rows = rows.min(usize::try_from(bytes / row).unwrap_or(usize::MAX));
            if rows == 0 {
                let message =
                    format!("a sequence of {capacity} tokens needs {row} bytes of cache, the limit is {bytes}");
                return Err(Error::Request(format!("{message}; raise sampler.cache_memory")));
            }
        }
        match self.cache.take() {
            Some(mut cache) if cache.fits(rows, capacity) => {
                cache.slots_mut().iter_mut().for_each(model::cache::Slot::clear);
                Ok(cache)
            }
            _ => Ok(decoder.cache(rows, capacity)),
        }
    }

    fn run(
        &self,
        cache: &mut KvCache,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(Sampled) -> Control,
    ) -> Result<Vec<Rollout>> {
        let decoder = self.decoder.as_ref().ok_or(Error::NoWeights)?;
        let slots = self.limits.max_rows.min(cache.slots_mut().len());
        let mut queue = 0..requests.len();
        let mut rows: Vec<Option<Row>> = (0..slots).map(|_| None).collect();
        let mut done: Vec<Option<Rollout>> = requests.iter().map(|_| None).collect();
        loop {
            for (row, slot) in rows.iter_mut().zip(cache.slots_mut()).filter(|(row, _)| row.is_none()) {
                slot.clear();
                *row = queue.next().map(|request| Row::new(request, requests[request].max_new_tokens));
            }
            let (mut active, spans): (Vec<&mut Option<Row>>, Vec<Span>) = rows
                .iter_mut()
                .zip(cache.slots_mut())
                .filter_map(|(row, slot)| {
                    let tokens = row.as_ref()?.feed(requests).to_vec().into();
                    Some((row, Span { tokens, slot }))
                })
                .unzip();
            if active.is_empty() {
                break;
            }
            let draws: Vec<f64> = active.iter().flat_map(|row| row.as_ref().map(|r| r.draw(requests))).collect();
            let picked = decoder.step(spans, |i, logits| pick(logits, sampling, draws[i]))?;
            let mut control = Control::Continue;
            for (slot, (token, log_prob)) in active.iter_mut().zip(picked) {
                let Some(row) = slot else { continue };
                let request = row.request;
                let finish = row.push(token, log_prob, requests, sampling);
                if let Some(finish) = finish {
                    done[request] = slot.take().map(|row| row.finished(finish, self.version));
                }
                if watch(Sampled { request, token, finish }) == Control::Stop {
                    control = Control::Stop;
                }
            }
            if control == Control::Stop {
                return Err(Error::Stopped);
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}

impl Row {
    fn new(request: usize, budget: usize) -> Self {
        Self { request, tokens: Vec::with_capacity(budget), log_probs: Vec::with_capacity(budget) }
    }

    /// What the next step reads: the whole prompt first, then the token sampled last.
    fn feed<'a>(&'a self, requests: &'a [Request]) -> &'a [u32] {
        match self.tokens.len() {
            0 => requests[self.request].prompt,
            n => &self.tokens[n - 1..],
        }
    }

    /// The random number of the next token.
    fn draw(&self, requests: &[Request]) -> f64 {
        uniform(requests[self.request].stream, self.tokens.len())
    }

    /// Takes a token; says how the response ended if it did.
    fn push(&mut self, token: u32, log_prob: f32, requests: &[Request], sampling: &Sampling) -> Option<Finish> {
        self.tokens.push(token);
        self.log_probs.push(log_prob);
        if sampling.stop.contains(&token) {
            return Some(Finish::Stop);
        }
        (self.tokens.len() >= requests[self.request].max_new_tokens).then_some(Finish::Length)
    }

    fn finished(self, finish: Finish, weight_version: u64) -> Rollout {
        Rollout { tokens: self.tokens, log_probs: self.log_probs, finish, weight_version }
    }
}

impl Engine for Local {
    fn load_weights(&mut self, model: &Qwen2) -> Result<()> {
        let refreshed = self.decoder.as_mut().map_or(Ok(false), |decoder| decoder.refresh(model))?;
        if !refreshed {
            // Dropped before its successor is made: there is never a second copy of the weights.
            self.decoder = None;
            self.decoder = Some(Decoder::pack(model)?);
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
        if let Some(i) = requests.iter().position(|r| r.prompt.is_empty() || r.max_new_tokens == 0) {
            return Err(Error::Request(format!("request {i} has an empty prompt or a budget of zero tokens")));
        }
        let mut cache = self.cache(requests)?;
        let rollouts = self.run(&mut cache, requests, sampling, watch);
        self.cache = Some(cache);
        rollouts
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
        let mut engine = Local::new(Limits { max_rows, cache_bytes: None });
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
