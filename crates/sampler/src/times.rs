//! When each rollout of a call was admitted, had its first token and was finished.

use std::time::Instant;

/// Seconds of wall-clock time since the call of [`crate::Engine::generate`] that sampled a rollout. They depend on the
/// machine and its load, so nothing that a run reproduces may depend on them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The rollout was given a row (or a place behind one with the same prompt); until then it waited in the queue.
    pub admitted: f64,
    /// Its first token was sampled.
    pub first_token: f64,
    /// Its last token was sampled.
    pub finished: f64,
}

/// The clock of one call.
pub struct Clock {
    started: Instant,
    /// A request that is sent away and comes back keeps its first marks.
    admitted: Vec<Option<f64>>,
    first_token: Vec<Option<f64>>,
}

impl Clock {
    /// A clock for so many requests whose call began at `started`.
    pub fn new(started: Instant, requests: usize) -> Self {
        Self { started, admitted: vec![None; requests], first_token: vec![None; requests] }
    }

    /// A request has a row.
    pub fn admit(&mut self, request: usize) {
        self.admitted[request].get_or_insert_with(|| self.started.elapsed().as_secs_f64());
    }

    /// A request has a token.
    pub fn token(&mut self, request: usize) {
        self.first_token[request].get_or_insert_with(|| self.started.elapsed().as_secs_f64());
    }

    /// A request that was admitted and has its last token.
    pub fn finish(&self, request: usize) -> Times {
        let finished = self.started.elapsed().as_secs_f64();
        let mark = |marks: &[Option<f64>]| marks[request].unwrap_or(finished);
        Times { admitted: mark(&self.admitted), first_token: mark(&self.first_token), finished }
    }
}
