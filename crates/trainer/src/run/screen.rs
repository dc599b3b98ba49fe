//! What a person sees while it runs: a bar on a terminal, a line a step elsewhere.

use anyhow::Result;

use crate::bar::{Bar, Part};
use crate::commands::note;
use crate::metrics::{EvalRow, StepRow, plus_minus};

/// The progress of a run, on stderr.
pub struct Screen {
    bar: Bar,
    total: usize,
    /// Steps done.
    done: usize,
    /// The last step done here, in figures.
    last: Vec<Part>,
}

impl Screen {
    /// A run of `total` steps of which `done` are behind it.
    pub fn new(done: usize, total: usize) -> Result<Self> {
        let screen = Self { bar: Bar::new(done as u64, total as u64)?, total, done, last: Vec::new() };
        screen.doing("");
        Ok(screen)
    }

    /// The next step samples.
    pub fn sampling(&self) {
        if self.last.is_empty() {
            // An evaluation may have gone before, which says nothing of how long a step takes.
            self.bar.forget_time();
        }
        self.doing(&format!("sampling step {}", self.done + 1));
    }

    /// The next step learns from its samples.
    pub fn updating(&self) {
        self.doing(&format!("updating step {}", self.done + 1));
    }

    /// A step is done.
    pub fn step(&mut self, row: &StepRow) {
        let figures = [
            (7, format!("cycle {} {}", row.cycle, row.phase)),
            (5, format!("budget {}", row.budget)),
            (3, format!("{:.0}% right", 100.0 * row.accuracy)),
            (6, format!("{:.0} tokens", row.response_tokens)),
        ];
        if self.bar.is_hidden() {
            let line = figures.each_ref().map(|(_, text)| text.as_str()).join(" · ");
            note(&format!("step {}/{} · {line} · {:.1} s", row.step, self.total, row.seconds));
        }
        self.done = row.step;
        self.last = figures.map(|(rank, text)| Part::new(rank, text)).into();
        self.doing("");
    }

    /// An evaluation is under way.
    pub fn evaluating(&self, name: &str) {
        self.doing(&format!("evaluating {name}"));
    }

    /// An evaluation is done.
    pub fn evaluated(&self, row: &EvalRow) {
        self.doing("");
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

    /// Shows how many steps are done, the figures of the last one, and what goes on now.
    fn doing(&self, what: &str) {
        let mut parts = vec![Part::new(0, format!("{}/{}", self.done, self.total))];
        parts.extend(self.last.iter().cloned());
        if !what.is_empty() {
            parts.push(Part::new(2, what));
        }
        self.bar.show(self.done as u64, parts);
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            note(text);
        } else {
            self.bar.line(text);
        }
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.bar.finish();
    }
}
