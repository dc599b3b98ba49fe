//! `trainer sft`: the supervised warm start.

use super::export::check_out;
use crate::cli::SftArgs;
use crate::config::{Overrides, SftConfig};

/// Makes a policy from traces.
pub(super) fn run(args: &SftArgs) -> anyhow::Result<()> {
    let overrides = Overrides { seed: args.seed, out: args.out.clone(), device: args.device, cycles: None };
    let config = SftConfig::resolve(args.config.as_deref(), &args.set, &overrides)?;
    let out = config.run.out.clone().map_or_else(|| crate::run::folder_by_time("sft"), Ok)?;
    // Before anything is trained that could not be written, or would be written over another policy.
    check_out(&out)?;
    super::use_threads(config.run.threads)?;
    crate::sft::run(&config, &out)
}
