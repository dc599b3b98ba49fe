//! What a person sees while a study goes on: a bar a run on a terminal, a line an evaluation elsewhere.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    config::Config,
    metrics::{plus_minus, read_evals, read_steps},
    report::short_name,
};

/// Parts that a bar is divided into.
const PARTS: u64 = 1000;

/// The progress of a study, on stderr.
pub struct Progress {
    bars: MultiProgress,
    whole: ProgressBar,
}

impl Progress {
    /// Of a study with so many runs.
    pub fn new(runs: usize) -> Self {
        let bars = MultiProgress::new();
        let whole = bars.add(ProgressBar::new(runs as u64));
        whole.set_style(style("{pos}/{len} runs · {elapsed} gone"));
        whole.tick();
        Self { bars, whole }
    }

    /// A run has ended.
    pub fn done(&self) {
        self.whole.inc(1);
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        // `println` of hidden bars writes nothing.
        if self.bars.is_hidden() || self.bars.println(text).is_err() {
            line(text);
        }
    }

    /// A run has begun.
    pub fn line(&self, name: &str, folder: &Path, config: &Config) -> Line {
        let bar = self.bars.insert_before(&self.whole, ProgressBar::new(PARTS));
        bar.set_style(style("{prefix:<24} {bar:12.cyan/dim} {wide_msg}").progress_chars("━╸─"));
        bar.set_prefix(name.to_string());
        let steps = config.schedule.budget().map_or(1, |budget| budget.total_steps());
        self.say(&format!("{name}: begun"));
        let tokens = config.schedule.rollout_tokens;
        Line { bar, name: name.into(), folder: folder.into(), steps, tokens, evals: 0 }
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.whole.finish_and_clear();
    }
}

/// A line on stderr. Not `eprintln!`, which panics when stderr is closed.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The progress of one run, as its folder tells it.
pub struct Line {
    bar: ProgressBar,
    name: String,
    folder: PathBuf,
    steps: usize,
    tokens: Option<u64>,
    /// Evaluations that have been shown.
    evals: usize,
}

impl Line {
    /// Shows what the run has done. A file that is not there yet, or not readable, shows nothing: whether the run is
    /// whole is judged at its end.
    pub fn show(&mut self, progress: &Progress) {
        if let Some(row) = read_steps(&self.folder).ok().and_then(|rows| rows.last().cloned()) {
            let by_steps = row.step as f64 / self.steps as f64;
            let share = self.tokens.map_or(by_steps, |tokens| by_steps.max(row.tokens_total as f64 / tokens as f64));
            self.bar.set_position((share * PARTS as f64) as u64);
            self.bar.set_message(format!(
                "step {} · budget {} · {:.0}% right · {:.0} tokens",
                row.step,
                row.budget,
                100.0 * row.accuracy,
                row.response_tokens
            ));
        }
        let evals = read_evals(&self.folder).unwrap_or_default();
        for row in evals.iter().skip(self.evals) {
            progress.say(&format!(
                "{}: {} at step {}: {:.1}{}% right · {:.0}{} tokens",
                self.name,
                short_name(&row.name),
                row.step,
                100.0 * row.pass_at_1,
                plus_minus(row.pass_at_1_se.map(|error| 100.0 * error), 1),
                row.response_tokens,
                plus_minus(row.response_tokens_se, 0)
            ));
        }
        // A resumed run begins with fewer rows than it had.
        self.evals = evals.len();
    }

    /// The run has ended.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
