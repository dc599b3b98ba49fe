//! Continuous batching: which rows run, what they feed, and who waits when the cache is full.
//!
//! Requests wait in a queue. A request is admitted when a row and the blocks of its prompt are free; those right behind
//! it with the same prompt are admitted with it, and fork from it when the prompt has been computed. When a row finds no
//! block for its next token, the row that was admitted last goes back to the front of the queue, and is computed again
//! later. What a row samples depends on its own stream and prompt alone, so none of this changes a token.

use crate::backend::{Backend, SpanOf};
use crate::ending::Ending;
use crate::engine::{Control, Error, Request, Result, Sampled};
use crate::local::{Batching, Work};
use crate::pick::{Sampling, uniform};
use crate::prefix::Prefixes;
use crate::rollout::{Finish, Rollout, Times};
use crate::times::Clock;
use model::cache::{Pool, Sequence, Store, blocks_for};
use model::decode_device::STEP_TOKENS;
use std::collections::VecDeque;
use std::time::Instant;

#[cfg(test)]
mod tests;

/// A response in progress.
struct Response {
    request: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    /// Has seen `tokens`.
    ending: Option<Ending>,
}

/// What a block of the cache of `B` holds.
type Payload<B> = <<B as Backend>::Store as Store>::Payload;

/// A response with a place in the cache.
struct Row<P: ?Sized> {
    response: Response,
    sequence: Sequence<P>,
    /// Requests of the same prompt that fork from this row when it has been fed.
    followers: Vec<usize>,
}

/// What a batch works with.
pub struct Tools<'a, B: Backend> {
    pub backend: &'a mut B,
    pub pool: &'a mut Pool<B::Store>,
    pub sampling: &'a Sampling,
    pub max_rows: usize,
    pub batching: Batching,
    /// When the call began.
    pub started: Instant,
    pub weight_version: u64,
}

/// All requests of one call, until each has its rollout.
pub struct Batch<'a, B: Backend> {
    tools: Tools<'a, B>,
    requests: &'a [Request<'a>],
    queue: VecDeque<Response>,
    /// In the order of their admission.
    rows: Vec<Row<Payload<B>>>,
    prefixes: Prefixes<B::Store>,
    done: Vec<Option<Rollout>>,
    clock: Clock,
    work: Work,
}

impl<'a, B: Backend> Batch<'a, B> {
    pub fn new(tools: Tools<'a, B>, requests: &'a [Request<'a>]) -> Self {
        let queue = (0..requests.len()).map(|request| Response::new(request, requests, tools.sampling)).collect();
        let done = requests.iter().map(|_| None).collect();
        let clock = Clock::new(tools.started, requests.len());
        let (rows, prefixes, work) = (Vec::new(), Prefixes::default(), Work::default());
        Self { tools, requests, queue, rows, prefixes, done, clock, work }
    }

    /// Runs until every request is answered; the rollouts in the order of the requests.
    pub fn run(mut self, watch: &mut dyn FnMut(Sampled) -> Control) -> Result<(Vec<Rollout>, Work)> {
        let outcome = self.steps(watch);
        for row in std::mem::take(&mut self.rows) {
            self.tools.pool.release(row.sequence);
        }
        self.prefixes.clear(self.tools.pool);
        outcome?;
        Ok((self.done.into_iter().flatten().collect(), self.work))
    }

    fn steps(&mut self, watch: &mut dyn FnMut(Sampled) -> Control) -> Result<()> {
        loop {
            self.admit();
            if self.rows.is_empty() {
                return Ok(());
            }
            let fed = self.reserve();
            if self.step(&fed, watch)? == Control::Stop {
                return Err(Error::Stopped);
            }
        }
    }

    /// Responses that have a row or will fork from one.
    fn running(&self) -> usize {
        self.rows.iter().map(|row| 1 + row.followers.len()).sum()
    }

    /// Gives rows to those who wait, in their order, while there is room.
    fn admit(&mut self) {
        if !self.tools.batching.continuous && !self.rows.is_empty() {
            return;
        }
        while self.running() < self.tools.max_rows {
            let Some(response) = self.queue.front() else { return };
            let tokens = response.all_tokens(self.requests);
            // Nothing is known where nothing is shared.
            let shared = self.prefixes.find(&tokens);
            let missing = blocks_for(tokens.len() + 1) - shared.len();
            // A block for each row in progress too, so that a row is not admitted just to be sent away.
            while self.tools.pool.available() < missing + self.running() && self.prefixes.evict(self.tools.pool) {}
            if self.tools.pool.available() < missing + self.running() && !self.rows.is_empty() {
                return;
            }
            let Some(response) = self.queue.pop_front() else { return };
            self.work.shared_tokens += shared.len() * model::cache::LANES;
            self.clock.admit(response.request);
            let mut row = Row { response, sequence: Sequence::beginning(shared), followers: Vec::new() };
            self.invite(&mut row);
            self.rows.push(row);
        }
    }

    /// Lets those behind a row with the same prompt wait for it, if their share of it fits.
    fn invite(&mut self, row: &mut Row<Payload<B>>) {
        let prompt = self.requests[row.response.request].prompt;
        if !row.response.tokens.is_empty() || !self.tools.batching.sharing {
            return;
        }
        while self.running() + 1 + row.followers.len() < self.tools.max_rows {
            let same = |next: &&Response| next.tokens.is_empty() && self.requests[next.request].prompt == prompt;
            let Some(next) = self.queue.front().filter(same) else { return };
            self.clock.admit(next.request);
            row.followers.push(next.request);
            self.queue.pop_front();
        }
    }

    /// How many tokens each row feeds, for which it now has room. Rows for which there is none are sent away.
    fn reserve(&mut self) -> Vec<usize> {
        let mut fed = Vec::with_capacity(self.rows.len());
        let mut budget = STEP_TOKENS;
        while fed.len() < self.rows.len() {
            let row = &mut self.rows[fed.len()];
            let waiting = row.response.len(self.requests) - row.sequence.len();
            // Those that decode go on in any case: one token each.
            let count = if waiting == 1 { 1 } else { waiting.min(budget) };
            if self.tools.pool.reserve(&mut row.sequence, count) {
                budget = budget.saturating_sub(count);
                fed.push(count);
            } else if !self.prefixes.evict(self.tools.pool) {
                self.send_away();
            }
        }
        fed
    }

    /// The row that was admitted last waits again.
    fn send_away(&mut self) {
        let Some(row) = self.rows.pop() else { return };
        self.work.preemptions += 1;
        self.tools.pool.release(row.sequence);
        self.requeue(row.followers);
        self.queue.push_front(row.response);
    }

    fn requeue(&mut self, followers: Vec<usize>) {
        for request in followers.into_iter().rev() {
            self.queue.push_front(Response::new(request, self.requests, self.tools.sampling));
        }
    }

    fn step(&mut self, fed: &[usize], watch: &mut dyn FnMut(Sampled) -> Control) -> Result<Control> {
        let (requests, in_progress) = (self.requests, self.running());
        let mut draws = Vec::with_capacity(self.rows.len());
        let mut spans: Vec<SpanOf<B>> = Vec::with_capacity(self.rows.len());
        for (row, &count) in self.rows.iter_mut().zip(fed).filter(|(_, count)| **count > 0) {
            let logits = row.sequence.len() + count == row.response.len(requests);
            let followers = row.followers.iter().map(|&request| uniform(requests[request].stream, 0));
            draws.push(std::iter::once(row.response.draw(requests)).chain(followers).collect::<Vec<f64>>());
            let tokens = row.response.feed(requests, row.sequence.len(), count);
            self.work.fed_tokens += count;
            spans.push(SpanOf::<B> { tokens, sequence: &mut row.sequence, logits });
        }
        self.work.steps += 1;
        self.work.rows = self.work.rows.max(in_progress);
        let Tools { backend, pool, sampling, .. } = &mut self.tools;
        let picked = backend.step(pool.store_mut(), spans, sampling, &draws)?;
        let mut picked = picked.into_iter();
        let mut control = Control::Continue;
        let mut forks = Vec::new();
        for (row, &count) in std::mem::take(&mut self.rows).into_iter().zip(fed) {
            let tokens = if count > 0 { picked.next().flatten() } else { None };
            let Some(tokens) = tokens else {
                self.rows.push(row);
                continue;
            };
            control = control.and(self.sampled(row, &tokens, &mut forks, watch)?);
        }
        self.rows.extend(forks);
        Ok(control)
    }

    /// Takes the tokens of a row that was fed whole, and of its followers, which become rows of their own.
    fn sampled(
        &mut self,
        mut row: Row<Payload<B>>,
        tokens: &[(u32, f32)],
        forks: &mut Vec<Row<Payload<B>>>,
        watch: &mut dyn FnMut(Sampled) -> Control,
    ) -> Result<Control> {
        let mut control = Control::Continue;
        let followers = std::mem::take(&mut row.followers);
        if row.response.tokens.is_empty() && self.tools.batching.sharing {
            self.prefixes.insert(self.requests[row.response.request].prompt, &row.sequence);
        }
        for (at, (&request, &token)) in followers.iter().zip(&tokens[1..]).enumerate() {
            let Some(sequence) = self.tools.pool.fork(&row.sequence) else {
                self.requeue(followers[at..].to_vec());
                break;
            };
            self.work.shared_tokens += row.sequence.len();
            let response = Response::new(request, self.requests, self.tools.sampling);
            let fork = Row { response, sequence, followers: Vec::new() };
            control = control.and(self.push(fork, token, forks, watch)?);
        }
        let mut own = Vec::new();
        control = control.and(self.push(row, tokens[0], &mut own, watch)?);
        self.rows.append(&mut own);
        Ok(control)
    }

    /// Adds a token to a row, which stays in `rows` unless the response has ended.
    fn push(
        &mut self,
        mut row: Row<Payload<B>>,
        (token, log_prob): (u32, f32),
        rows: &mut Vec<Row<Payload<B>>>,
        watch: &mut dyn FnMut(Sampled) -> Control,
    ) -> Result<Control> {
        let request = row.response.request;
        let finish = row.response.push(token, log_prob, self.requests, self.tools.sampling)?;
        self.clock.token(request);
        match finish {
            None => rows.push(row),
            Some(finish) => {
                self.tools.pool.release(row.sequence);
                let times = self.clock.finish(request);
                self.done[request] = Some(row.response.finished(finish, self.tools.weight_version, times));
            }
        }
        Ok(watch(Sampled { request, token, finish }))
    }
}

impl Response {
    fn new(request: usize, requests: &[Request], sampling: &Sampling) -> Self {
        let budget = requests[request].max_new_tokens;
        let ending = sampling.endings.as_ref().map(|endings| endings.start());
        Self { request, tokens: Vec::with_capacity(budget), log_probs: Vec::with_capacity(budget), ending }
    }

    /// Tokens of prompt and response so far.
    fn len(&self, requests: &[Request]) -> usize {
        requests[self.request].prompt.len() + self.tokens.len()
    }

    fn all_tokens(&self, requests: &[Request]) -> Vec<u32> {
        [requests[self.request].prompt, &self.tokens].concat()
    }

    /// `count` tokens from place `first` on.
    fn feed<'s>(&self, requests: &[Request<'s>], first: usize, count: usize) -> std::borrow::Cow<'s, [u32]> {
        let prompt = requests[self.request].prompt;
        if first + count <= prompt.len() {
            return prompt[first..first + count].into();
        }
        (first..first + count)
            .map(|i| prompt.get(i).copied().unwrap_or_else(|| self.tokens[i - prompt.len()]))
            .collect()
    }

    /// The random number of the next token.
    fn draw(&self, requests: &[Request]) -> f64 {
        uniform(requests[self.request].stream, self.tokens.len())
    }

    /// Takes a token; says how the response ended if it did.
    fn push(&mut self, token: u32, log_prob: f32, requests: &[Request], sampling: &Sampling) -> Result<Option<Finish>> {
        self.tokens.push(token);
        self.log_probs.push(log_prob);
        let ends = self.ending.as_mut().map_or(Ok(false), |ending| ending(token))?;
        if ends || sampling.stop.contains(&token) {
            return Ok(Some(Finish::Stop));
        }
        Ok((self.tokens.len() >= requests[self.request].max_new_tokens).then_some(Finish::Length))
    }

    fn finished(self, finish: Finish, weight_version: u64, times: Times) -> Rollout {
        Rollout { tokens: self.tokens, log_probs: self.log_probs, finish, weight_version, times }
    }
}
