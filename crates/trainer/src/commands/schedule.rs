//! `trainer schedule`: the response budget of every step.

use std::fmt::Write;

use anyhow::Context;

use crate::cli::ScheduleArgs;
use crate::commands::{UsageError, print};
use crate::config::{Config, Overrides};

/// Prints `step,cycle,phase,budget`, steps from 0 and cycles from 1, and draws it if asked to.
pub(super) fn run(args: &ScheduleArgs) -> anyhow::Result<()> {
    let config = Config::resolve(args.settings.config.as_deref(), &args.settings.set, &Overrides::default())?;
    let budget = config.schedule.budget().map_err(|error| UsageError::new(error.to_string()))?;
    if let Some(path) = &args.svg {
        std::fs::write(path, crate::report::budget_svg(&budget))
            .with_context(|| format!("{}: cannot write the drawing", path.display()))?;
    }
    let mut csv = String::from("step,cycle,phase,budget\n");
    for step in 0..budget.total_steps() {
        writeln!(csv, "{step},{},{},{}", budget.cycle(step), budget.phase(step), budget.length(step))?;
        // A schedule can have billions of steps; its text should not have to fit into memory.
        if csv.len() > 1 << 16 {
            print(&csv)?;
            csv.clear();
        }
    }
    print(&csv)
}
