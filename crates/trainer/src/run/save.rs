//! The checkpoints of a run: written while it goes on, where memory allows, else while it waits.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::changes;
use super::open::Run;
use super::points::BEST;
use super::writing::{Snapshot, Writing, Written};
use crate::checkpoint::{OPTIMIZER_FILE, STATE_FILE, State};

/// What a checkpoint remembers beside the counters: updates skipped in a row, and the best evaluation before its step.
pub const SKIPPED: &str = "skipped_in_a_row";

/// A weight that is infinite or not a number, by the name of its tensor.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` has values that are infinite or not a number, which are not worth a checkpoint")]
pub struct NotFinite(String);

impl Run {
    /// Sees to it that there is a checkpoint of the steps done, under its step and `names`; it may be there later only. A
    /// full disk costs the checkpoint and not the run: it goes on, and the last good one stays.
    ///
    /// # Errors
    /// The checkpoint of the last step cannot be written: there is nothing to go on to.
    pub fn keep(&mut self, names: &[String]) -> Result<()> {
        self.wait_for_writing();
        let is_another = |name: &&String| self.checkpoints.step_of(name) != Some(self.step as u64);
        let names: Vec<String> = names.iter().filter(is_another).cloned().collect();
        let Err(error) = self.keep_as(names) else { return Ok(()) };
        if self.done() {
            let resume = format!("go on with: trainer --resume {}", self.folder.display());
            let advice = if error.is::<NotFinite>() { resume } else { format!("make room and {resume}") };
            let what = "the checkpoint of the last step cannot be written";
            return Err(error.context(format!("{what}; {}; {advice}", self.last_good())));
        }
        self.say_missed(self.step as u64, &error);
        Ok(())
    }

    fn keep_as(&mut self, names: Vec<String>) -> Result<()> {
        // The last one is waited for: its failure is the run's.
        if self.background && !self.done() && !self.is_saved() {
            let state = self.state_to_save()?;
            let snapshot = Snapshot::of(&self.policy, &self.optimizer)?;
            self.writing = Some(Writing::begin(self.checkpoints.clone(), state, snapshot, names)?);
            return Ok(());
        }
        let saved = self.save()?;
        names.iter().try_for_each(|name| self.checkpoints.name(&saved, name).map(drop))
    }

    /// The checkpoint of the state after the last whole step, written unless it is there.
    ///
    /// # Errors
    /// A file cannot be written, the rows of the steps included, or a weight is not finite; the checkpoints before it are as
    /// they were.
    pub fn save(&mut self) -> Result<PathBuf> {
        self.wait_for_writing();
        if self.is_saved() {
            return Ok(self.place());
        }
        let state = self.state_to_save()?;
        let (policy, optimizer) = (&self.policy, &self.optimizer);
        let write = |folder: &std::path::Path| {
            policy.save(folder)?;
            optimizer.save(&folder.join(OPTIMIZER_FILE))
        };
        let saved = self.checkpoints.save(&state, &write)?;
        self.saved = Some(saved.clone());
        Ok(saved)
    }

    fn place(&self) -> PathBuf {
        self.checkpoints.step_path(self.step as u64)
    }

    fn is_saved(&self) -> bool {
        let place = self.place();
        self.saved.as_ref().is_some_and(|saved| *saved == place && saved.join(STATE_FILE).is_file())
    }

    /// Where the run stands, once everything that a checkpoint may not be ahead of is on the disk.
    fn state_to_save(&mut self) -> Result<State> {
        if let Some(name) = self.policy.first_not_finite()? {
            return Err(NotFinite(name.to_string()).into());
        }
        self.settle()?;
        let mut extra = BTreeMap::new();
        if self.skipped_in_a_row > 0 {
            extra.insert(SKIPPED.to_string(), self.skipped_in_a_row.into());
        }
        // Not that of this step: a checkpoint comes before its evaluation, and after it where there was no room before.
        if let Some(best) = self.best_before(self.step)? {
            let text =
                serde_json::json!({"name": best.name, "step": best.step, "pass_at_1": best.pass_at_1.to_string()});
            extra.insert(BEST.to_string(), text);
        }
        let mut settings = changes::lasting(&self.config)?;
        settings.extend(self.contents.clone());
        Ok(State {
            step: self.step as u64,
            cycle: self.step.checked_sub(1).map_or(0, |last| self.schedule.cycle(last) as u64),
            tokens_total: self.tokens_total,
            seed: self.config.run.seed,
            settings,
            extra,
        })
    }

    /// Writes the rows and samples that wait for room, and makes rows last: a checkpoint must never be ahead of them.
    ///
    /// # Errors
    /// There is still no room.
    pub fn settle(&mut self) -> Result<()> {
        self.metrics.sync()?;
        let written = self.samples.write_waiting();
        self.tolerate(written);
        self.samples.trouble().map_or(Ok(()), |trouble| bail!("{trouble}"))
    }

    /// Says what became of the checkpoint that was being written, if it is over.
    pub fn look_after_writing(&mut self) {
        if self.writing.as_ref().is_some_and(Writing::is_over) {
            self.wait_for_writing();
        }
    }

    /// Waits for the checkpoint that is being written, if there is one, and says if it could not be.
    pub fn wait_for_writing(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        let step = writing.step;
        let failed = match writing.end() {
            Ok(Written { folder, named }) => {
                self.saved = Some(folder);
                named.err()
            }
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            self.say_missed(step, &error);
        }
    }

    fn say_missed(&self, step: u64, error: &anyhow::Error) {
        let last = self.last_good();
        self.screen.line(&format!("no checkpoint after step {step}: {error:#}; {last}; the run goes on"));
    }

    fn last_good(&self) -> String {
        match &self.saved {
            Some(saved) => format!("the last good one is {}", saved.display()),
            None => "there is none yet".into(),
        }
    }
}
