//! What is due between steps: checkpoints, their names, evaluations; and the end of a run.

use anyhow::{Context, Result, bail};
use sampler::Engine;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::open::Run;
use super::{changes, interrupt, record};
use crate::checkpoint::{STATE_FILE, State};
use crate::evaluate::{self, Label, Settings};
use crate::metrics::{EvalRow, read_evals};
use crate::{policy, report};

/// What a checkpoint remembers beside the counters: updates skipped in a row, and the best evaluation so far.
pub const SKIPPED: &str = "skipped_in_a_row";
const BEST: &str = "best";

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
        let written: Vec<String> = read_evals(&self.folder)?.into_iter().map(|row| row.name).collect();
        let missing: Vec<String> = self.evaluations().into_iter().filter(|name| !written.contains(name)).collect();
        if missing.is_empty() { self.keep_best() } else { missing.iter().try_for_each(|name| self.evaluate(name)) }
    }

    /// Writes a checkpoint under its step and `names`. A full disk costs the checkpoint and not the run: it goes on, and
    /// the last good one stays. At the end of the run there is nothing to go on to.
    fn keep(&mut self, names: &[String]) -> Result<()> {
        let kept = self.save().and_then(|saved| {
            for name in names.iter().filter(|name| self.checkpoints.step_of(name) != Some(self.step as u64)) {
                self.checkpoints.name(&saved, name)?;
            }
            Ok(())
        });
        let Err(error) = kept else { return Ok(()) };
        let last = match &self.saved {
            Some(saved) => format!("the last good one is {}", saved.display()),
            None => "there is none yet".into(),
        };
        if self.done() {
            let advice = format!("{last}; make room and go on with: trainer --resume {}", self.folder.display());
            return Err(error.context(format!("the checkpoint of the last step cannot be written; {advice}")));
        }
        self.screen.line(&format!("no checkpoint after step {}: {error:#}; {last}; the run goes on", self.step));
        Ok(())
    }

    /// Training comes next: the device memory that only sampling needs is given back. Says how a device generates, once.
    pub fn after_sampling(&mut self) {
        self.engine.rest();
        if let Some(news) = self.engine.news() {
            self.screen.line(&news);
        }
    }

    /// Measures the policy on the held-out problems.
    pub fn evaluate(&mut self, name: &str) -> Result<()> {
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
        // The row comes last: it says that the evaluation is done.
        let recorded = record::evaluation(&self.folder, self.step, name, &self.held_out, &samples);
        self.tolerate(recorded);
        self.metrics.eval(&row)?;
        self.screen.evaluated(&row);
        self.say_trouble();
        self.keep_best()
    }

    /// Names the checkpoint of the best evaluation after the start `best`, of equal ones the first.
    fn keep_best(&mut self) -> Result<()> {
        let Some(best) = self.best()? else { return Ok(()) };
        let step = best.step as u64;
        if self.checkpoints.step_of(BEST) == Some(step) {
            return Ok(());
        }
        if best.step == self.step {
            return self.keep(&[BEST.to_string()]);
        }
        // An interrupted run has not come to it; the checkpoint is there under the evaluation's own name.
        let named = self.checkpoints.step_of(&best.name) == Some(step);
        if named {
            let path = self.checkpoints.path(&best.name);
            let renamed = self.checkpoints.name(&path, BEST).map(drop);
            self.tolerate(renamed);
        }
        Ok(())
    }

    fn best(&self) -> Result<Option<EvalRow>> {
        let rows = read_evals(&self.folder)?.into_iter().filter(|row| row.step > 0);
        Ok(rows.reduce(|best, row| if row.pass_at_1 > best.pass_at_1 { row } else { best }))
    }

    /// The checkpoint of the state after the last whole step, written unless it is there.
    ///
    /// # Errors
    /// A file cannot be written, the rows of the steps included, or a weight is not finite; the checkpoints before it are as
    /// they were.
    pub fn save(&mut self) -> Result<PathBuf> {
        let place = self.checkpoints.step_path(self.step as u64);
        if self.saved.as_ref().is_some_and(|saved| *saved == place && saved.join(STATE_FILE).is_file()) {
            return Ok(place);
        }
        if let Some(name) = self.policy.first_not_finite()? {
            bail!("`{name}` has values that are infinite or not a number, which are not worth a checkpoint");
        }
        self.metrics.sync()?;
        let mut extra = BTreeMap::new();
        if self.skipped_in_a_row > 0 {
            extra.insert(SKIPPED.to_string(), self.skipped_in_a_row.into());
        }
        if let Some(best) = self.best()? {
            let text =
                serde_json::json!({"name": best.name, "step": best.step, "pass_at_1": best.pass_at_1.to_string()});
            extra.insert(BEST.to_string(), text);
        }
        let state = State {
            step: self.step as u64,
            cycle: self.step.checked_sub(1).map_or(0, |last| self.schedule.cycle(last) as u64),
            tokens_total: self.tokens_total,
            seed: self.config.run.seed,
            settings: changes::lasting(&self.config)?,
            extra,
        };
        let saved = self.checkpoints.save(&state, &|folder| self.policy.save(folder), &self.optimizer)?;
        self.saved = Some(saved.clone());
        Ok(saved)
    }

    /// Says that something could not be kept that the run can do without.
    pub fn tolerate(&self, kept: Result<()>) {
        if let Err(error) = kept {
            self.screen.line(&format!("{error:#}; the run goes on without it"));
        }
    }

    /// Says, once, that rows wait for room, and that they are written again.
    pub fn say_trouble(&mut self) {
        let trouble = self.metrics.trouble().map(str::to_owned);
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
        let resume = || format!("make room and go on with: trainer --resume {}", self.folder.display());
        self.metrics.sync().with_context(resume)?;
        let report = report::write_run_report(&self.folder)?;
        let evals = read_evals(&self.folder)?;
        crate::commands::print(&format!("\n{}\n", report::summary_table(&evals)))?;
        if let Some([before, after]) = record::before_and_after(&self.folder)? {
            let prompt = &before.prompt;
            crate::commands::print(&format!("{prompt}\n\nbefore:\n{}\nafter:\n{}\n", before.shown(), after.shown()))?;
        }
        crate::commands::note(&format!("report: {}", report.display()));
        Ok(())
    }
}
