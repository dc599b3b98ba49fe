//! How far sampling is, on stderr: a bar on a terminal, a line for each tenth elsewhere.

use anyhow::Result;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use sampler::Sampled;

/// Tokens between two looks at the bar.
const TOKENS_A_LOOK: u64 = 256;

/// The progress of a number of responses.
pub(super) struct Progress {
    bar: ProgressBar,
    responses: u64,
    tokens: u64,
    /// Tenths that were said.
    tenths: u64,
}

impl Progress {
    /// Nothing is sampled yet.
    pub(super) fn new(responses: usize) -> Result<Self> {
        let template = "{bar:24.cyan/dim} {pos}/{len} responses · {msg} · {elapsed} gone, {eta} to go";
        let style = ProgressStyle::with_template(template)?.progress_chars("━╸─");
        let bar = ProgressBar::new(responses as u64).with_style(style);
        Ok(Self { bar, responses: 0, tokens: 0, tenths: 0 })
    }

    /// A token came.
    pub(super) fn saw(&mut self, sampled: Sampled) {
        self.tokens += 1;
        if self.tokens % TOKENS_A_LOOK == 1 {
            self.bar.set_message(format!("{} tokens", HumanCount(self.tokens)));
        }
        if sampled.finish.is_some() {
            self.responses += 1;
            self.bar.set_position(self.responses);
            self.say();
        }
    }

    fn say(&mut self) {
        let all = self.bar.length().unwrap_or(0).max(1);
        let tenths = 10 * self.responses / all;
        if self.bar.is_hidden() && tenths > self.tenths {
            super::note(&format!("{}/{all} responses · {} tokens", self.responses, HumanCount(self.tokens)));
        }
        self.tenths = tenths;
    }

    /// Leaves the terminal as it was.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
