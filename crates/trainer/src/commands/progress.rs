//! How far sampling is, on stderr: a bar on a terminal, a line for each tenth elsewhere.

use anyhow::Result;
use indicatif::HumanCount;
use sampler::Sampled;

use crate::bar::{Bar, Part};

/// Tokens between two looks at the bar.
const TOKENS_A_LOOK: u64 = 256;

/// The progress of a number of responses.
pub(super) struct Progress {
    bar: Bar,
    all: u64,
    responses: u64,
    tokens: u64,
    /// Tenths that were said.
    tenths: u64,
}

impl Progress {
    /// Nothing is sampled yet.
    pub(super) fn new(responses: usize) -> Result<Self> {
        let all = responses as u64;
        Ok(Self { bar: Bar::new(0, all)?, all, responses: 0, tokens: 0, tenths: 0 })
    }

    /// A token came.
    pub(super) fn saw(&mut self, sampled: Sampled) {
        self.tokens += 1;
        let ended = sampled.finish.is_some();
        self.responses += u64::from(ended);
        if ended {
            self.say();
        }
        if ended || self.tokens % TOKENS_A_LOOK == 1 {
            let responses = format!("{}/{} responses", self.responses, self.all);
            let tokens = format!("{} tokens", HumanCount(self.tokens));
            self.bar.show(self.responses, vec![Part::new(0, responses), Part::new(2, tokens)]);
        }
    }

    fn say(&mut self) {
        let tenths = 10 * self.responses / self.all.max(1);
        if self.bar.is_hidden() && tenths > self.tenths {
            super::note(&format!("{}/{} responses · {} tokens", self.responses, self.all, HumanCount(self.tokens)));
        }
        self.tenths = tenths;
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(&self) {
        self.bar.finish();
    }
}
