//! `trainer report`: one HTML file of one or more runs.

use crate::cli::ReportArgs;
use crate::commands::{UsageError, print};

/// Writes the report and prints its path.
pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    for run in &args.runs {
        if !run.join("config.toml").is_file() {
            return Err(UsageError::new(format!("{}: not a run folder: it has no config.toml", run.display())).into());
        }
    }
    let page = match (&args.out, args.runs.as_slice()) {
        (None, [run]) => crate::report::write_run_report(run)?,
        (out, runs) => {
            let page = out.clone().unwrap_or_else(|| runs[0].join("report.html"));
            crate::report::write_report(runs, &page)?;
            page
        }
    };
    print(&format!("{}\n", page.display()))
}
