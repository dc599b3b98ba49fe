//! What a person sees while it runs: a bar on a terminal, a line a step elsewhere.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::note;
use crate::metrics::{EvalRow, StepRow, plus_minus};

/// The progress of a run, on stderr.
pub struct Screen {
    bar: ProgressBar,
    total: usize,
}

impl Screen {
    /// A run of `total` steps of which `done` are behind it.
    pub fn new(done: usize, total: usize) -> Result<Self> {
        let template = "{bar:24.cyan/dim} {pos}/{len} {msg} · {elapsed} gone, {eta} to go";
        let bar =
            ProgressBar::new(total as u64).with_style(ProgressStyle::with_template(template)?.progress_chars("━╸─"));
        bar.set_position(done as u64);
        bar.reset_eta();
        Ok(Self { bar, total })
    }

    /// A step is done.
    pub fn step(&self, row: &StepRow) {
        let line = format!(
            "cycle {} {} · budget {} · {:.0}% right · {:.0} tokens",
            row.cycle,
            row.phase,
            row.budget,
            100.0 * row.accuracy,
            row.response_tokens
        );
        self.bar.set_message(line.clone());
        self.bar.set_position(row.step as u64);
        if self.bar.is_hidden() {
            note(&format!("step {}/{} · {line} · {:.1} s", row.step, self.total, row.seconds));
        }
    }

    /// An evaluation is under way.
    pub fn evaluating(&self, name: &str) {
        self.bar.set_message(format!("evaluating {name}"));
        self.bar.tick();
    }

    /// An evaluation is done.
    pub fn evaluated(&self, row: &EvalRow) {
        self.line(&format!(
            "{:<14} {:5.1}{}% right · {:4.0}{} tokens · {:4.1}% cut off",
            row.name,
            100.0 * row.pass_at_1,
            plus_minus(row.pass_at_1_se.map(|error| 100.0 * error), 1),
            row.response_tokens,
            plus_minus(row.response_tokens_se, 0),
            100.0 * row.truncated
        ));
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            note(text);
        } else {
            self.bar.println(text);
        }
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
