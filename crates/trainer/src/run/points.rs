//! What is due between steps: which checkpoints under which names, evaluations; and the end of a run.

use anyhow::{Context, Result};
use sampler::Engine;

use super::open::Run;
use super::{example, interrupt};
use crate::evaluate::{self, Label, Settings};
use crate::metrics::{EvalRow, read_evals};
use crate::{policy, report};

/// The name of the checkpoint of the best evaluation.
pub const BEST: &str = "best";

impl Run {
    /// Whether the last step is done: by the schedule, or because the rollout tokens are spent.
    pub fn done(&self) -> bool {
        self.share_done() >= 1.0
    }

    /// How much of the run is done, from 0: of its steps or of its rollout tokens, whichever is more.
    pub fn share_done(&self) -> f64 {
        let steps = self.step as f64 / self.schedule.total_steps() as f64;
        let limit = self.config.schedule.rollout_tokens;
        limit.map_or(steps, |limit| steps.max(self.tokens_total as f64 / limit as f64))
    }

    /// The named points that the steps done so far end at: `start`, a cycle's low or high, or the `end` of a run that
    /// stops elsewhere.
    fn names(&self) -> Vec<String> {
        if self.step == 0 {
            return vec!["start".into()];
        }
        let mut names = Vec::new();
        for mark in self.schedule.marks() {
            if mark.low == self.step {
                names.push(format!("cycle-{}-low", mark.cycle));
            }
            if mark.high == self.step {
                names.push(format!("cycle-{}-high", mark.cycle));
            }
        }
        if names.is_empty() && self.done() {
            names.push("end".into());
        }
        names
    }

    fn is_due(&self, every: usize) -> bool {
        every > 0 && self.step.is_multiple_of(every)
    }

    /// The evaluations that are due after the steps done: those of the named points, or one of `evaluate.every`.
    fn evaluations(&self) -> Vec<String> {
        let names = self.names();
        let unnamed = names.is_empty() && self.is_due(self.config.evaluate.every);
        if unnamed { vec![format!("step-{}", self.step)] } else { names }
    }

    /// What is due after a step: checkpoints and evaluations at each low and high, and others as configured.
    ///
    /// # Errors
    /// A failed evaluation, or a last checkpoint that cannot be written. One in between is missed, not fatal.
    pub fn mark(&mut self) -> Result<()> {
        self.look_after_writing();
        let names = self.names();
        if !names.is_empty() || self.is_due(self.config.checkpoint.every) {
            self.keep(&names)?;
        }
        let evaluations = self.evaluations();
        evaluations.iter().try_for_each(|name| self.evaluate(name))
    }

    /// What the steps done should have left and an interruption cut short: names, evaluations, the best.
    pub fn catch_up(&mut self) -> Result<()> {
        if self.saved.is_some() && self.step > 0 {
            let names = self.names();
            self.keep(&names)?;
        }
        let rows = read_evals(&self.folder)?;
        for name in self.evaluations() {
            // `end` comes again at another step when a run that had spent its tokens is given more.
            if !rows.iter().any(|row| row.name == name && row.step == self.step) {
                self.evaluate(&name)?;
            } else if !self.samples.has_evaluation(self.step, &name) {
                // A disk had room for the row alone.
                self.measure(&name)?;
            }
        }
        self.keep_best()
    }

    /// Training comes next: the device memory that only sampling needs is given back. Says how a device generates, once.
    pub fn after_sampling(&mut self) {
        self.engine.rest();
        if let Some(news) = self.engine.news() {
            self.screen.line(&news);
        }
    }

    /// Measures the policy on the held-out problems, and writes the row that says so.
    pub fn evaluate(&mut self, name: &str) -> Result<()> {
        let row = self.measure(name)?;
        self.metrics.eval(&row)?;
        self.screen.evaluated(&row);
        self.say_trouble();
        self.keep_best()
    }

    /// Measures the policy on the held-out problems and keeps some samples.
    fn measure(&mut self, name: &str) -> Result<EvalRow> {
        self.screen.evaluating(name);
        let config = &self.config.evaluate;
        let mut sampling = policy::sampling(&self.policy.text, config.temperature, &self.config.sampler.stop)?;
        sampling.top_p = config.top_p;
        let settings = Settings {
            samples: config.samples,
            max_tokens: config.max_tokens.unwrap_or(self.schedule.largest()),
            sampling,
            seed: self.config.run.seed,
            extraction: self.extraction,
        };
        self.engine.load_weights(&self.policy.model)?;
        let watch = &mut |_| interrupt::control();
        let samples = evaluate::sample(&mut self.engine, &self.policy.text, &self.held_out, &settings, watch)?;
        self.after_sampling();
        let data = &self.config.data.eval;
        let label = Label { step: self.step, name, data, tokens_total: self.tokens_total };
        let row = evaluate::summarise(&samples, &settings, label);
        // The row comes after them: it says that the evaluation is done.
        let kept = self.samples.evaluation(self.step, name, &self.held_out, &samples);
        self.tolerate(kept);
        Ok(row)
    }

    /// Names the checkpoint of the best evaluation after the start `best`, of equal ones the first.
    fn keep_best(&mut self) -> Result<()> {
        let Some(best) = self.best()? else { return Ok(()) };
        let step = best.step as u64;
        if self.checkpoints.step_of(BEST) == Some(step) {
            return Ok(());
        }
        if best.step == self.step {
            // The others too: there may have been no room for them before the evaluation.
            let mut names = self.names();
            names.push(BEST.to_string());
            return self.keep(&names);
        }
        // An interrupted run has not come to it; the checkpoint is there under the evaluation's own name.
        self.wait_for_writing();
        let named = self.checkpoints.step_of(&best.name) == Some(step);
        if named {
            let path = self.checkpoints.path(&best.name);
            let renamed = self.checkpoints.name(&path, BEST).map(drop);
            self.tolerate(renamed);
        }
        Ok(())
    }

    fn best(&self) -> Result<Option<EvalRow>> {
        self.best_before(usize::MAX)
    }

    /// The best evaluation after the start and before `step`.
    pub fn best_before(&self, step: usize) -> Result<Option<EvalRow>> {
        let rows = read_evals(&self.folder)?.into_iter().filter(|row| row.step > 0 && row.step < step);
        Ok(rows.reduce(|best, row| if row.pass_at_1 > best.pass_at_1 { row } else { best }))
    }

    /// Says that something could not be kept that the run can do without.
    pub fn tolerate(&self, kept: Result<()>) {
        if let Err(error) = kept {
            self.screen.line(&format!("{error:#}; the run goes on without it"));
        }
    }

    /// Says, once, that rows or samples wait for room, and that they are written again.
    pub fn say_trouble(&mut self) {
        if let Some(lost) = self.metrics.lost_events() {
            self.screen.line(&format!("{lost}; TensorBoard will not show everything, the .jsonl files have it"));
        }
        let trouble = self.metrics.trouble().or(self.samples.trouble()).map(str::to_owned);
        if trouble == self.said {
            return;
        }
        match &trouble {
            Some(trouble) => self.screen.line(&format!("{trouble}; the run goes on, and the rows wait in memory")),
            None => self.screen.line("the rows that waited are written"),
        }
        self.said = trouble;
    }

    /// Writes the report and shows the result.
    pub fn finish(&mut self) -> Result<()> {
        self.screen.finish();
        self.wait_for_writing();
        let resume = format!("make room and go on with: trainer --resume {}", self.folder.display());
        self.settle().context(resume)?;
        let report = report::write_run_report(&self.folder)?;
        let evals = read_evals(&self.folder)?;
        crate::commands::print(&format!("\n{}\n", report::summary_table(&evals)))?;
        if let Some([before, after]) = example::before_and_after(&self.folder)? {
            let prompt = &before.prompt;
            let [first, last] = [&before, &after].map(|row| format!("({}):\n{}", row.verdict(), row.shown()));
            crate::commands::print(&format!("{prompt}\n\nbefore {first}\nafter {last}\n"))?;
        }
        crate::commands::note(&format!("report: {}", report.display()));
        Ok(())
    }
}
