//! `trainer doctor`: what a run needs, what there is, what would fail.

use anyhow::bail;

use crate::cli::DoctorArgs;
use crate::commands::print;
use crate::config::{Config, Overrides};

/// Prints what was found; fails if a run would.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let overrides = Overrides { device: args.device, ..Overrides::default() };
    let config = Config::resolve(args.settings.config.as_deref(), &args.settings.set, &overrides)?;
    let report = crate::doctor::examine(&config);
    print(&report.text)?;
    match report.failures.as_slice() {
        [] => Ok(()),
        [failure] => bail!("a run with these settings would fail: {failure}"),
        [first, rest @ ..] => bail!("a run with these settings would fail: {first} (and {} more)", rest.len()),
    }
}
