//! Which evaluations a run has to have at a step, and whether they are there.

use std::path::Path;

use anyhow::Result;

use crate::commands::UsageError;
use crate::config::Config;
use crate::metrics::{EVALS_FILE, EvalRow, read_evals};

/// The first evaluation due before `step` that `rows` do not have, with the step that it is of. That of `step` itself is
/// not asked for: it comes after the step's checkpoint.
///
/// # Errors
/// Settings without a schedule, which checked ones never are.
pub fn missing_before(config: &Config, rows: &[EvalRow], step: usize) -> Result<Option<(usize, String)>> {
    let mut due = vec![(0, "start".to_string())];
    for mark in config.schedule.budget()?.marks() {
        due.push((mark.low, format!("cycle-{}-low", mark.cycle)));
        due.push((mark.high, format!("cycle-{}-high", mark.cycle)));
    }
    let is_missing =
        |(at, name): &(usize, String)| *at < step && !rows.iter().any(|row| row.step == *at && row.name == *name);
    Ok(due.into_iter().find(is_missing))
}

/// Refuses to go on after `step` steps where the row of an evaluation before is lost: what the run shows at its end would
/// be measured against another one.
///
/// # Errors
/// [`UsageError`] that names the row.
pub fn refuse_lost(folder: &Path, config: &Config, step: usize) -> Result<()> {
    let path = folder.join(EVALS_FILE);
    let rows = if path.exists() { read_evals(folder)? } else { Vec::new() };
    let Some((at, name)) = missing_before(config, &rows, step)? else { return Ok(()) };
    let what = "the checkpoint to go on from comes after it; put the file back, or start a new run";
    Err(UsageError::new(format!("{}: there is no row of {name} (step {at}); {what}", path.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::metrics::tests::eval_row;

    #[test]
    fn what_is_due_before_a_step_has_to_be_there() {
        let sets = ["schedule.cycles=1", "schedule.cycle_steps=4"].map(String::from);
        let config = Config::resolve(None, &sets, &Overrides::default()).unwrap();
        let missing = |rows: &[(usize, &str)], step| {
            let rows: Vec<EvalRow> = rows.iter().map(|&(step, name)| eval_row(step, name, 0.5, 100.0)).collect();
            missing_before(&config, &rows, step).unwrap()
        };
        assert_eq!(missing(&[], 0), None);
        assert_eq!(missing(&[], 1), Some((0, "start".into())));
        assert_eq!(missing(&[(0, "start")], 2), None, "the low's own step");
        assert_eq!(missing(&[(0, "start")], 3), Some((2, "cycle-1-low".into())));
        assert_eq!(missing(&[(0, "start"), (2, "cycle-1-low")], 4), None);
    }
}
